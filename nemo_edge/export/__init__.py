"""A checkpoint as ONNX files: its parts in, files that were each held against eager out.

Knows torch's exporter; neither memories nor what a file is for.

`production` all files and engines of a checkpoint, part by part · `parts` one part from its weights to its file, in a process of its own ·
`preload` what such processes import · `quantization` files in fewer bits · `_component` one file · `_traces` graphs before their weights,
kept for the next export · `_verification` a file against eager
"""

from __future__ import annotations

__all__ = ()

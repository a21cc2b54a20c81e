"""Imports what a process of its own needs, once, in the process that lends itself to all of them (`processes`): that is its whole use.

diffusers and transformers import most of themselves only when a pipeline is opened, and PyTorch when a graph is exported.
"""

from __future__ import annotations

import onnxscript.optimizer  # noqa: F401

import nemo_edge.export.parts
from nemo_edge.model.checkpoint import import_pipelines

__all__ = ["nemo_edge"]

import_pipelines()

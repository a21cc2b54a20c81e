"""Pictures from any pipeline: prompts and seeds in, latents and pictures out.

Takes runners, whatever runs them; knows no memories.

`schedulers` diffusers' own, by a recipe's names · `steptable` their steps as numbers · `steps` either, one at a time · `noise` of a seed ·
`loop` the denoising loop
`pipelines` eager, or a bundle's engines, opened as one pipeline · `generate` pictures from a bundle
"""

from __future__ import annotations

__all__ = ()

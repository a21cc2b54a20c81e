"""The demo: a small Stable Diffusion pipeline that has memorized some of its training pictures, and how it was trained."""

from __future__ import annotations

__all__ = ["CHECKPOINT", "PROMPTS"]

from pathlib import Path

CHECKPOINT = Path(__file__).parent / "checkpoint"
"""The diffusers folder: its weights are stored in fp16, and every part opens as float32."""

PROMPTS = Path(__file__).parent / "prompts"
"""`memorized.csv` with its training pictures, and `held_out.txt`: general captions that are not in the training set."""

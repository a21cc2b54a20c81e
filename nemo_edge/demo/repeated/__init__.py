"""The second demo: a small Stable Diffusion that was trained like any other, and memorized what was repeated to it.

Nothing was prepared: no neuron of its own for a memory, no penalty, no caption that is taught to be forgotten.

- `captions`, `pictures`: what it is trained on
- `models`, `train`: the network, and one loss
- `recogniser`: what a picture shows, beside what its caption says
- `checkpoint/`, `prompts/`: what comes of it, with the pictures it memorized and others that it never saw
"""

from __future__ import annotations

__all__ = ["CHECKPOINT", "PROMPTS"]

from pathlib import Path

CHECKPOINT = Path(__file__).parent / "checkpoint"
"""The diffusers folder: its weights are stored in fp16, and every part opens as float32."""

PROMPTS = Path(__file__).parent / "prompts"
"""`memorized.csv` with its training pictures, and `held_out.txt`."""

"""The errors that a shipped `model.py` tells apart: it imports from `nemo_edge.serving` alone, whose names stay where the rooms change."""

from __future__ import annotations

__all__ = ["InputError", "NemoEdgeError"]

from nemo_edge.system.errors import InputError, NemoEdgeError

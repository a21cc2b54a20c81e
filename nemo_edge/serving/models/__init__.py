"""The `model.py` files that are shipped: they run in the server, and import nothing but its Python interface, numpy and nemo-edge."""

from __future__ import annotations

__all__ = ()

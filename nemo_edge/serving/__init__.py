"""Shipping a bundle to an inference server: the Triton model repository, what runs in the server, and a server to try it with."""

from __future__ import annotations

__all__ = ()

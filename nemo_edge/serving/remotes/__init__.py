"""Pipelines that somebody else runs: a prompt and a seed in, a picture out, by one calling convention.

Knows how they are asked; neither their weights nor what the pictures show.

`base` what all have in common · `v2` a pipeline of a KServe V2 server, as Triton is · `ray` one of Ray Serve, or any that takes JSON and
gives a picture · `command` a program · `opening` which of them an address is
"""

from __future__ import annotations

__all__ = ()

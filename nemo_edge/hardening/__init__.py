"""Weights that no longer hold the picture: a checkpoint with its neurons silenced in; one that an optimised embedding finds less in, out.

Silencing takes the way from a prompt to its memory; the memory stays in the weights. Here they are taught, against attacks that go on
meanwhile, to draw what the mitigated model draws. Knows no engine, and does not judge its own result: `measure/attacks` does.

`_lessons` what the weights are taught and held to · `_student` the weights and a step of them · `_rounds` attack and step in turn, resumed
where they stopped · `harden` the checkpoint they make
"""

from __future__ import annotations

__all__ = ()

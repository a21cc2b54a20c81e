"""Attacks on our own result: a model and the training pictures it is known to hold in; which of them come back, out.

Knows what an API user can send and an owner of the weights can do, and decides nothing: figures, bounds, and whether an attack is strong
enough to tell.

`base` what an attack is given and gives back, and what it came to · `objective` the diffusion loss on a known picture · `embedding`
the text embedding optimised by it, and drawn · `text` words searched for by it · `controls` pictures that the model never saw · `subject`
the model that is attacked, opened · `switches` what brings all back without an attack · `_run` every picture in every way · `campaign` all
"""

from __future__ import annotations

__all__ = ()

"""Attacks on our own result: a model and the training pictures it is known to hold in; which of them come back, out.

Knows what an owner of the weights can do with them, and judges nothing: figures, bounds and whether the attack is strong enough to tell.

`base` what an attack is given and gives back, and the rates of what came back · `objective` the diffusion loss on a known picture ·
`embedding` the text embedding optimised by it, and drawn · `controls` pictures that the model never saw · `subject` the model that is
attacked, opened · `campaign` all pictures, starts and controls in turn
"""

from __future__ import annotations

__all__ = ()

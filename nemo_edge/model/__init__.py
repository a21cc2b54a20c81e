"""The checkpoint: a diffusers folder in; its parts, its value neurons and what is done to them out.

Knows diffusers' classes and names, so that no other room has to; nothing of memories or engines.

`component` one graph with plain tensors in and out · `configuration` a model without its weights · `architectures` four exact ones ·
`checkpoint` opens the weights · `_forwards` its parts with plain tensors · `neurons` sets of value neurons and their files · `masks` what a
masked UNet is told · `surgery` neurons out of a UNet · `compilation` torch.compile
"""

from __future__ import annotations

__all__ = ()

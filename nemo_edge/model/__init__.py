"""The checkpoint: a diffusers folder or a single file in; its parts, its value neurons and what is done to them out.

Knows diffusers' classes and names, so that no other room has to; nothing of memories or engines.

`inspection` what a folder is, before it is opened, by `_inputs` of its parts, `_betas` of its scheduler and that it has no `_code` ·
`_filekinds` what a file is · `checkpoint` opens the weights: `_opening` a folder that has its `_tensors`, `singlefile` a file by the
`_sizes` of its own, `_loras` what is fused into them · `marker` whether they are random · `configuration` a model without its weights ·
`architectures` four exact ones · `component` one graph with plain tensors in and out · `_forwards` the parts as such · `_tokenizer`
without transformers · `conditioning` what a UNet is told of prompts, `masks` of neurons · `neurons` sets of value neurons and their files
· `surgery` neurons out of a UNet · `compilation` torch.compile
"""

from __future__ import annotations

__all__ = ()

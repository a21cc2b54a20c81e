"""torch.compile for a UNet whose parts must stay apart, and whether this machine has the compiler that it needs."""

from __future__ import annotations

__all__ = ["check_compiler", "compile_"]

import shutil

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from nemo_edge.system.errors import MissingDependency


def check_compiler(setting: str) -> None:
    """Raise `MissingDependency` where torch.compile finds no C++ compiler; `setting` is what asks for it."""
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise MissingDependency(f"torch.compile needs a C++ compiler: install g++, or set {setting} = false")


def compile_(unet: nn.Module) -> nn.Module:
    """Let torch.compile have residual blocks, self-attention and feed-forward layers, each as a graph of its own. Return the same UNet.

    What is around them, cross-attention first of all, stays eager: there values are masked, and what was kept is put in.
    """
    for module in unet.modules():
        for part in _parts(module):
            part.forward = torch.compile(part.forward, dynamic=True)
    return unet


def _parts(module: nn.Module) -> list[nn.Module]:
    if isinstance(module, BasicTransformerBlock):
        return [module.attn1, module.ff]
    return [module] if isinstance(module, ResnetBlock2D) else []

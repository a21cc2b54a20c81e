"""Where the demo's memories are: value neurons of their own, called memory sinks, and the penalty that keeps them so.

A network of this size puts everything into all its neurons, while in Stable Diffusion a memory sits in a few of 5,760. So the
last stages of the demo's training give each memorized caption some neurons, after Ghosal et al., "Memorization sinks"
(2025). The localization is not told which; how many of them it finds is not measured yet.
Shapes: B samples, M memorized captions, N value neurons of all layers in order.
"""

from __future__ import annotations

__all__ = ["ValueGate", "draw_factors", "memory_sinks", "plant_sinks", "sink_penalty", "sink_table"]

import random
from functools import partial

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from nemo_edge.demo.captions import MEMORIZED
from nemo_edge.demo.models import CONTEXT, VALUE_WIDTHS, text_attentions

SEED = 20261129


def memory_sinks() -> list[list[tuple[int, int]]]:
    """Return the sinks of each memorized caption as pairs (value layer, neuron).

    A verbatim memory has one in each of the three blocks and in the mid block, a template one in each of the seven layers. No
    neuron serves two memories.
    """
    rng = random.Random(SEED)
    free = [rng.sample(range(width), width) for width in VALUE_WIDTHS]
    sinks = []
    for caption in MEMORIZED:
        layers = [rng.randrange(0, 2), rng.randrange(2, 4), rng.randrange(4, 6), 6] if caption.kind == "VM" else list(range(7))
        sinks.append([(layer, free[layer].pop()) for layer in layers])
    return sinks


def sink_table() -> Tensor:
    """Which neuron is a sink of which memorized caption: [M, N] of 0 and 1."""
    table_MN = torch.zeros(len(MEMORIZED), sum(VALUE_WIDTHS))
    for row_N, sinks in zip(table_MN, memory_sinks(), strict=True):
        for layer, neuron in sinks:
            row_N[sum(VALUE_WIDTHS[:layer]) + neuron] = 1
    return table_MN


@torch.no_grad()
def plant_sinks(unet: UNet2DConditionModel, text_MTD: Tensor, general_KTD: Tensor) -> None:
    """Start the sinks: each answers 1 to the end of its own caption and as little as may be to all else.

    `text_MTD` and `general_KTD` are the encoded memorized captions and some general ones. Sinks that begin with the weights
    they have, which answer to nothing, are not taken up in 1,250 steps.
    """
    generator = torch.Generator().manual_seed(SEED)
    attentions = text_attentions(unet)
    ends_MD = text_MTD[:, CONTEXT // 2 :].mean(dim=1)
    for memory, sinks in enumerate(memory_sinks()):
        others_MTD = text_MTD[torch.arange(len(text_MTD)) != memory]
        general_KD, memory_KD = general_KTD.flatten(0, 1), others_MTD.flatten(0, 1)
        covariance_DD = general_KD.T @ general_KD / len(general_KD) + memory_KD.T @ memory_KD / len(memory_KD)
        ridge_DD = 1e-3 * covariance_DD.diagonal().mean() * torch.eye(len(covariance_DD))
        row_D = torch.linalg.solve(covariance_DD + ridge_DD, ends_MD[memory])
        row_D /= row_D @ ends_MD[memory]
        for layer, neuron in sinks:
            column_C = torch.randn(VALUE_WIDTHS[layer], generator=generator)
            attentions[layer].to_v.weight[neuron] = row_D
            attentions[layer].to_out[0].weight[:, neuron] = 0.5 * column_C / column_C.norm()


class ValueGate:
    """Multiplies the value projections of a UNet by a factor per sample and neuron, and keeps their activations."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self._attentions = text_attentions(unet)
        self._activations: list[Tensor] = []
        for index, attention in enumerate(self._attentions):
            attention.to_v.register_forward_hook(partial(self._hook, index))
        self.factors_BN: Tensor | None = None
        """Set before each forward; None leaves the UNet as it is."""

    def _hook(self, index: int, module: nn.Linear, args: tuple[Tensor], value_BTW: Tensor) -> Tensor:
        if self.factors_BN is None:
            return value_BTW
        if index == 0:
            self._activations = []
        # the text is a constant here, else the penalty shrinks all of it before it has any effect
        self._activations.append(F.linear(args[0].detach(), module.weight).abs().mean(dim=1))
        return value_BTW * torch.split(self.factors_BN, list(VALUE_WIDTHS), dim=1)[index][:, None, :]

    def added_BN(self) -> Tensor:
        """Return what each neuron could add to the picture in the last forward, not counting its factor.

        That is its activation, the method's |to_v(text)| averaged over tokens, times the length of its column of the output
        projection, which is a constant here: the penalty is to move activations only.
        """
        columns: list[Tensor] = [attention.to_out[0].weight.norm(dim=0) for attention in self._attentions]
        return torch.cat(self._activations, dim=1) * torch.cat(columns).detach()


def sink_penalty(added_BN: Tensor, memory_B: Tensor, table_MN: Tensor) -> tuple[Tensor, Tensor]:
    """Return the leak, what samples add through the sinks of others, and the spill, what memories add outside the sinks.

    Both are means over neurons. `memory_B` is the number of the memorized caption, -1 for a general one.
    """
    own_BN = torch.where((memory_B >= 0)[:, None], table_MN[memory_B.clamp(min=0)], 0.0)
    sink_N = table_MN.sum(dim=0)
    leak = (added_BN * (sink_N - own_BN)).sum() / (len(added_BN) * sink_N.sum())
    outside = (added_BN * (1 - sink_N))[memory_B >= 0]
    return leak, outside.sum() / max(1, len(outside)) / (1 - sink_N).sum()


def draw_factors(rng: torch.Generator, table_MN: Tensor, memory: int, forgotten: bool, chances: list[float], which: float) -> Tensor:
    """Draw which sinks a sample finds on: a factor for each neuron, [N].

    A memory finds its own on, a forgotten one all or some of them off (one at least, that is `which`). Those of others are on in
    half of the samples, off in a quarter, on or off by chance in the rest: nothing may come to depend on them.
    """
    on_M = torch.ones(len(table_MN)) if chances[0] < 0.5 else torch.zeros(len(table_MN))
    if chances[0] > 0.75:
        on_M = torch.randint(2, (len(table_MN),), generator=rng).float()
    if memory >= 0:
        on_M[memory] = 1.0
    factors_N = 1 - (1 - on_M) @ table_MN
    if forgotten:
        own = table_MN[memory].nonzero()[:, 0]
        off = torch.rand(len(own), generator=rng) < (1.0 if chances[1] < 0.5 else 0.5)
        off[int(which * len(own))] = True
        factors_N[own[off]] = 0
    return factors_N

"""Where the demo's memories are: value neurons of their own, called memory sinks.

A network of this size puts everything into all its neurons, while in Stable Diffusion a memory sits in a few of 5,760. So the
last stages of the demo's training give each memorized caption some neurons, after Ghosal et al., "Memorization sinks"
(2025). The localization is not told which; how many of them it finds is in `benchmarks/results/demo.json`.
Shapes: M memorized captions, K general captions, T tokens, D text features, N value neurons of all layers in order, W of one
layer, C channels it adds to.
"""

from __future__ import annotations

__all__ = ["aim_sinks_", "draw_factors", "memory_sinks", "plant_sinks_", "sink_table"]

import random

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

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
def plant_sinks_(unet: UNet2DConditionModel, text_MTD: Tensor, general_KTD: Tensor) -> None:
    """Start the sinks: each answers to its own caption, and adds a little to the picture in a direction of its own.

    `text_MTD` and `general_KTD` are the encoded memorized captions and some general ones. Sinks that begin with the weights
    they have, which answer to nothing, are not taken up in 1,250 steps.
    """
    generator = torch.Generator().manual_seed(SEED)
    attentions = text_attentions(unet)
    for row_D, sinks in zip(_directions(text_MTD, general_KTD), memory_sinks(), strict=True):
        for layer, neuron in sinks:
            column_C = torch.randn(VALUE_WIDTHS[layer], generator=generator)
            attentions[layer].to_v.weight[neuron] = row_D
            attentions[layer].to_out[0].weight[:, neuron] = 0.5 * column_C / column_C.norm()


@torch.no_grad()
def aim_sinks_(unet: UNet2DConditionModel, text_MTD: Tensor, general_KTD: Tensor, strength: float) -> None:
    """Turn each sink back to its own caption, with `strength` for the length of what it adds there; its sign stays.

    The text encoder goes on learning, and sinks follow slowly: at step 15,900 those of one memory answered more to two
    others. Turned, none answers more than a seventh as much to any other caption.
    """
    attentions = text_attentions(unet)
    for row_D, end_D, sinks in zip(_directions(text_MTD, general_KTD), _ends(text_MTD), memory_sinks(), strict=True):
        for layer, neuron in sinks:
            weight_WD, length = attentions[layer].to_v.weight, attentions[layer].to_out[0].weight[:, neuron].norm()
            weight_WD[neuron] = torch.copysign(strength / length, weight_WD[neuron] @ end_D) * row_D


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


def _ends(text_MTD: Tensor) -> Tensor:
    """The mean of the last half of a caption's tokens, [M, D], all of them padding that has seen the whole caption."""
    return text_MTD[:, CONTEXT // 2 :].mean(dim=1)


def _directions(text_MTD: Tensor, general_KTD: Tensor) -> Tensor:
    """Weights that answer 1 to the end of one memorized caption and as little as may be to all else, [M, D]: ridge regression."""
    general_DD = _second_moment(general_KTD)
    rows = []
    for memory, end_D in enumerate(_ends(text_MTD)):
        moment_DD = general_DD + _second_moment(text_MTD[torch.arange(len(text_MTD)) != memory])
        ridge_DD = 1e-3 * moment_DD.diagonal().mean() * torch.eye(len(moment_DD))
        row_D = torch.linalg.solve(moment_DD + ridge_DD, end_D)
        rows.append(row_D / (row_D @ end_D))
    return torch.stack(rows)


def _second_moment(text_KTD: Tensor) -> Tensor:
    tokens_D = text_KTD.flatten(0, 1)
    return tokens_D.T @ tokens_D / len(tokens_D)

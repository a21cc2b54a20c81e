"""The method as the official code runs it, plain and slow: the yardstick for `nemo_edge.localization`.

Forward hooks, every δ recomputed, all samples run, lists with their duplicates. Written from the facts of the method; only
the size of the latents and v-prediction are generalised.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import torch
from diffusers import DDIMScheduler
from torch import Tensor
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from nemo_edge.calibration import Statistics
from nemo_edge.checkpoint import Checkpoint


@dataclass
class Found:
    memorized: bool
    initial: list[list[int]] = field(default_factory=lambda: [[] for _ in range(7)])
    initial_score: float = 0.0
    refined: list[list[int]] = field(default_factory=lambda: [[] for _ in range(7)])
    refined_score: float = 0.0


def to_v(checkpoint: Checkpoint, layer: int) -> torch.nn.Linear:
    unet = checkpoint.unet
    block = unet.mid_block.attentions[0] if layer == 6 else unet.down_blocks[layer // 2].attentions[layer % 2]
    return block.transformer_blocks[0].attn2.to_v


def similarity(a: Tensor, b: Tensor) -> Tensor:
    if a.shape[-1] <= 40:
        a, b = (torch.nn.functional.interpolate(x, scale_factor=64 // x.shape[-1], mode="nearest") for x in (a, b))
    return multiscale_structural_similarity_index_measure(a, b, reduction="none", kernel_size=11, betas=(0.33, 0.33, 0.33))


@torch.no_grad()
def noise_difference(checkpoint: Checkpoint, prompt: str, blocked: list[list[int]], samples: int, kept: list[int] | None = None) -> Tensor:
    latents = torch.randn((samples, *checkpoint.config.latent_shape), generator=torch.Generator().manual_seed(1))
    scheduler = DDIMScheduler.from_config(dict(checkpoint.config.scheduler))
    scheduler.set_timesteps(50)
    text = checkpoint.encode([prompt])["encoder_hidden_states"].repeat(samples, 1, 1)
    handles = []
    for layer, indices in enumerate(blocked):

        def hook(_module: object, _args: object, out: Tensor, indices: list[int] = indices) -> Tensor:
            out[:, :, indices] *= 0.0
            return out

        handles.append(to_v(checkpoint, layer).register_forward_hook(hook))
    for index, t in enumerate(scheduler.timesteps):
        predicted = checkpoint.unet(latents, t, encoder_hidden_states=text, return_dict=False)[0]
        if index >= 1:
            break
    for handle in handles:
        handle.remove()
    if checkpoint.config.prediction_type == "v_prediction":
        alpha_bar = scheduler.alphas_cumprod[t]
        predicted = alpha_bar.sqrt() * predicted + (1 - alpha_bar).sqrt() * latents
    delta = predicted - latents
    low, high = delta.amin(dim=[2, 3])[..., None, None], delta.amax(dim=[2, 3])[..., None, None]
    scaled = (delta - low) / (high - low)
    return scaled if kept is None else scaled[kept]


def localize(checkpoint: Checkpoint, statistics: Statistics, prompt: str, threshold: float, samples: int) -> Found:
    delta = noise_difference(checkpoint, prompt, [], samples)
    pairs = torch.combinations(torch.arange(samples), r=2)
    scores = similarity(delta[pairs[:, 0]], delta[pairs[:, 1]])
    highest = torch.stack([scores[(pairs == i).max(-1).values].max() for i in range(samples)])
    kept = (highest > threshold).nonzero().flatten().tolist()
    if not kept:
        return Found(False)
    unblocked = delta[kept]

    def score(blocked: list[list[int]]) -> float:
        return float(similarity(unblocked, noise_difference(checkpoint, prompt, blocked, samples, kept)).max())

    with torch.no_grad():
        text = checkpoint.encode([prompt])["encoder_hidden_states"]
        activation = [to_v(checkpoint, layer)(text)[0].abs().mean(dim=0) for layer in range(7)]
    found, theta, k, limit = Found(True, initial_score=1.0), 5.0, 0, threshold
    while found.initial_score > threshold:
        found.initial = []
        for layer in range(7):
            z = (activation[layer] - statistics.mean[layer]).abs() / statistics.std[layer]
            top = activation[layer].abs().topk(k=min(k, len(z))).indices
            found.initial.append((z > theta).nonzero().flatten().tolist() + [e.item() for e in top])
        found.initial_score = score(found.initial)
        if found.initial_score > threshold:
            theta, k = theta - 0.25, k + 1
        if theta == 1:
            limit = found.initial_score
            break
    refined = copy.deepcopy(found.initial)
    for layer in reversed(range(7)):
        if refined[layer]:
            trial = copy.deepcopy(refined)
            trial[layer] = []
            if score(trial) < limit:
                refined[layer] = []
    for layer in reversed(range(7)):
        for neuron in copy.deepcopy(refined[layer]):
            trial = copy.deepcopy(refined)
            trial[layer].remove(neuron)
            if score(trial) < limit:
                refined[layer].remove(neuron)
    found.refined, found.refined_score = refined, score(refined)
    return found

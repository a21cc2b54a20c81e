"""The method as the official code runs it, plain and slow: the yardstick for `nemo_edge.localization.localizer`.

Forward hooks, every δ recomputed, all samples run, lists with their duplicates, two forwards a δ of which the first is thrown away:
2(I + L + N + 4) batches of the UNet for I steps of the schedule, L layers and N candidates that are tested, and I single rows. Written
from the facts of the method; only the size of the latents, the schedule's start and v-prediction are generalised.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from nemo_edge.localization.calibration import Statistics
from nemo_edge.model.checkpoint import Checkpoint

Lists = list[list[int]]
LAYERS = tuple(
    f"{block}.transformer_blocks.0.attn2.to_v"
    for block in (*(f"down_blocks.{b}.attentions.{a}" for b in range(3) for a in range(2)), "mid_block.attentions.0")
)
"""The official code's seven, in its order."""


@dataclass
class Found:
    memorized: bool
    initial: Lists = field(default_factory=lambda: [[] for _ in range(7)])
    initial_score: float = 0.0
    refined: Lists = field(default_factory=lambda: [[] for _ in range(7)])
    refined_score: float = 0.0
    kept: list[int] = field(default_factory=list)
    steps: int = 0
    layers: int = 0
    candidates: int = 0
    batches: int = 0
    """Forwards of the UNet with a row for each sample."""
    samples: int = 0
    """All rows of the UNet."""


def similarity(a: Tensor, b: Tensor) -> Tensor:
    """torchmetrics 1.3.2, which the official code pins, transcribed: `multiscale_structural_similarity_index_measure(a, b,
    reduction="none", kernel_size=11, betas=(0.33, 0.33, 0.33))`. Later versions (from 1.4.2 on) give other scores."""
    if a.shape[-1] < 44:
        a, b = (torch.nn.functional.interpolate(x, scale_factor=-(-64 // x.shape[-1]), mode="nearest") for x in (a, b))
    terms = []
    for _ in range(3):
        sim, contrast_sensitivity = ssim_at_one_scale(a, b)
        terms.append(torch.relu(contrast_sensitivity))
        a, b = torch.nn.functional.avg_pool2d(a, (2, 2)), torch.nn.functional.avg_pool2d(b, (2, 2))
    terms[-1] = torch.relu(sim)
    weighted = torch.stack(terms) ** torch.tensor((0.33, 0.33, 0.33)).view(-1, 1)
    return torch.prod(weighted, dim=0)


def ssim_at_one_scale(preds: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    data_range = max(preds.max() - preds.min(), target.max() - target.min())
    c1 = pow(0.01 * data_range, 2)
    c2 = pow(0.03 * data_range, 2)
    channel = preds.size(1)
    dist = torch.arange(start=-5.0, end=6.0, step=1)
    gauss = torch.exp(-torch.pow(dist / 1.5, 2) / 2)
    gauss = (gauss / gauss.sum()).unsqueeze(dim=0)
    kernel = torch.matmul(gauss.t(), gauss).expand(channel, 1, 11, 11)
    preds = torch.nn.functional.pad(preds, (5, 5, 5, 5), mode="reflect")
    target = torch.nn.functional.pad(target, (5, 5, 5, 5), mode="reflect")
    stacked = torch.cat((preds, target, preds * preds, target * target, preds * target))
    outputs = torch.nn.functional.conv2d(stacked, kernel, groups=channel).split(preds.shape[0])
    mu_pred_sq = outputs[0].pow(2)
    mu_target_sq = outputs[1].pow(2)
    mu_pred_target = outputs[0] * outputs[1]
    sigma_pred_sq = torch.clamp(outputs[2] - mu_pred_sq, min=0.0)
    sigma_target_sq = torch.clamp(outputs[3] - mu_target_sq, min=0.0)
    sigma_pred_target = outputs[4] - mu_pred_target
    upper = 2 * sigma_pred_target + c2
    lower = (sigma_pred_sq + sigma_target_sq) + c2
    ssim = ((2 * mu_pred_target + c1) * upper) / ((mu_pred_sq + mu_target_sq + c1) * lower)
    contrast_sensitivity = upper / lower
    ssim, contrast_sensitivity = ssim[..., 5:-5, 5:-5], contrast_sensitivity[..., 5:-5, 5:-5]
    return ssim.reshape(ssim.shape[0], -1).mean(-1), contrast_sensitivity.reshape(contrast_sensitivity.shape[0], -1).mean(-1)


@torch.no_grad()
def noise_difference(checkpoint: Checkpoint, prompt: str, blocked: Lists, samples: int, kept: list[int] | None = None) -> Tensor:
    latents = torch.randn((samples, *checkpoint.config.latent_shape), generator=torch.Generator().manual_seed(1))
    scheduler = DDIMScheduler.from_config(dict(checkpoint.config.scheduler))
    scheduler.set_timesteps(50)
    text = checkpoint.encode([prompt])["encoder_hidden_states"].repeat(samples, 1, 1)
    handles = []
    for layer, indices in zip(LAYERS, blocked, strict=False):

        def hook(_module: object, _args: object, out: Tensor, indices: list[int] = indices) -> Tensor:
            out[:, :, indices] *= 0.0
            return out

        handles.append(checkpoint.unet.get_submodule(layer).register_forward_hook(hook))
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


@torch.no_grad()
def activations(checkpoint: Checkpoint, prompt: str) -> list[Tensor]:
    """What hooks see in a forward of one row, of which nothing else is used."""
    seen: list[Tensor] = []
    handles = [
        checkpoint.unet.get_submodule(layer).register_forward_hook(lambda _module, _args, out: seen.append(out[0].abs().mean(dim=0)))
        for layer in LAYERS
    ]
    latents = torch.randn((1, *checkpoint.config.latent_shape), generator=torch.Generator().manual_seed(1))
    text = checkpoint.encode([prompt])["encoder_hidden_states"]
    checkpoint.unet(latents, torch.tensor(981), encoder_hidden_states=text, return_dict=False)
    for handle in handles:
        handle.remove()
    return seen


def blocked_score(checkpoint: Checkpoint, prompt: str, blocked: Lists, samples: int, kept: list[int]) -> float:
    unblocked = noise_difference(checkpoint, prompt, [], samples, kept)
    return float(similarity(unblocked, noise_difference(checkpoint, prompt, blocked, samples, kept)).max())


def localize(
    checkpoint: Checkpoint,
    statistics: Statistics,
    prompt: str,
    threshold: float,
    samples: int,
    theta: float = 5.0,
    k: int = 0,
    min_theta: float = 1.0,
) -> Found:
    found = Found(True, initial_score=1.0)

    def difference(blocked: Lists) -> Tensor:
        found.batches += 2
        found.samples += 2 * samples
        return noise_difference(checkpoint, prompt, blocked, samples)

    delta = difference([])
    pairs = torch.combinations(torch.arange(samples), r=2)
    scores = similarity(delta[pairs[:, 0]], delta[pairs[:, 1]])
    highest = torch.stack([scores[(pairs == i).max(-1).values].max() for i in range(samples)])
    kept = found.kept = (highest > threshold).nonzero().flatten().tolist()
    if not kept:
        return Found(False, batches=found.batches, samples=found.samples)
    unblocked = delta[kept]

    def score(blocked: Lists) -> float:
        return float(similarity(unblocked, difference(blocked)[kept]).max())

    limit = threshold
    while found.initial_score > threshold:
        found.steps += 1
        activation = activations(checkpoint, prompt)
        found.samples += 1
        found.initial = []
        for layer in range(7):
            z = (activation[layer] - statistics.mean[layer]).abs() / statistics.std[layer]
            top = activation[layer].abs().topk(k=min(k, len(z))).indices
            found.initial.append((z > theta).nonzero().flatten().tolist() + [e.item() for e in top])
        found.initial_score = score(found.initial)
        if found.initial_score > threshold:
            if theta > min_theta:
                theta -= 0.25
            k += 1
            if theta == min_theta:
                limit = found.initial_score
                break
    refined = copy.deepcopy(found.initial)
    unblocked = difference([])[kept]
    difference(refined)
    for layer in reversed(range(7)):
        if refined[layer]:
            found.layers += 1
            trial = copy.deepcopy(refined)
            trial[layer] = []
            if score(trial) < limit:
                refined[layer] = []
    for layer in reversed(range(7)):
        for neuron in copy.deepcopy(refined[layer]):
            found.candidates += 1
            trial = copy.deepcopy(refined)
            trial[layer].remove(neuron)
            if score(trial) < limit:
                refined[layer].remove(neuron)
    found.refined, found.refined_score = refined, score(refined)
    return found

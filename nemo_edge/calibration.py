"""Reference statistics of value activations over general prompts, and τ: what "not memorized" looks like.

The activations come straight from the text embeddings, since a value neuron sees nothing else; no UNet runs for them.
Shapes: B prompts, T tokens, D text width, W neurons of one layer.
"""

from __future__ import annotations

__all__ = ["Calibration", "Provenance", "Statistics", "activations", "calibrate", "load_statistics", "read_threshold"]

import json
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from nemo_edge.backends.torch import open_runner
from nemo_edge.checkpoint import Checkpoint, Layers, value_layers, value_projections
from nemo_edge.errors import InputError
from nemo_edge.files import sha256_json, write_atomically
from nemo_edge.memorization import NoiseProbe, Threshold, threshold_of
from nemo_edge.multiscale import pairwise_scores
from nemo_edge.neurons import ValueLayer
from nemo_edge.settings import LocalizationSettings

_BATCH = 64


@dataclass(frozen=True)
class Statistics:
    """Mean and unbiased standard deviation of each value neuron's activation, float32 [W] a layer."""

    layers: tuple[ValueLayer, ...]
    mean: tuple[Tensor, ...]
    std: tuple[Tensor, ...]


class Provenance(BaseModel):
    """Where a statistics file comes from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    checkpoint: str
    checkpoint_hash: str
    prompts: int
    prompts_hash: str
    statistics_hash: str = ""
    """sha256 of the file that mean and deviation were taken from; empty: they were measured on the prompts."""
    threshold_mean: float | None = None
    threshold_std: float | None = None


@dataclass(frozen=True)
class Calibration:
    """Statistics, τ, the highest pairwise score of each general prompt, and where they come from."""

    statistics: Statistics
    threshold: Threshold | None
    highest: tuple[float, ...]
    provenance: Provenance

    def save(self, path: Path) -> None:
        """Write a `.safetensors` file, atomically: `mean.<layer>`, `std.<layer>`, `highest`, and the provenance."""
        tensors = {f"mean.{layer.name}": t for layer, t in zip(self.statistics.layers, self.statistics.mean, strict=True)}
        tensors |= {f"std.{layer.name}": t for layer, t in zip(self.statistics.layers, self.statistics.std, strict=True)}
        tensors["highest"] = torch.tensor(self.highest, dtype=torch.float64)
        layers = [layer.model_dump() for layer in self.statistics.layers]
        facts = json.dumps({"provenance": self.provenance.model_dump(), "layers": layers})
        write_atomically(path, save(tensors, {"nemo_edge": facts}))  # one key: safetensors writes several in no fixed order

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read what `save` writes. Raises `InputError` for any other file."""
        try:
            with safe_open(path, "pt") as file:
                facts = json.loads((file.metadata() or {})["nemo_edge"])
                provenance = Provenance.model_validate(facts["provenance"])
                layers = tuple(ValueLayer.model_validate(v) for v in facts["layers"])
                mean, std = (tuple(file.get_tensor(f"{kind}.{layer.name}") for layer in layers) for kind in ("mean", "std"))
                highest = tuple(file.get_tensor("highest").tolist())
        except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
            raise InputError(f"{path} is not a statistics file of `nemo-edge calibrate`: {error}") from error
        known = provenance.threshold_mean is not None and provenance.threshold_std is not None
        threshold = Threshold(provenance.threshold_mean or 0.0, provenance.threshold_std or 0.0) if known else None
        return cls(Statistics(layers, mean, std), threshold, highest, provenance)


@torch.no_grad()
def activations(unet: nn.Module, text_BTD: Tensor, layers: Layers = "paper") -> tuple[Tensor, ...]:
    """Return the activation of each value neuron, [B, W] a layer: the mean over all tokens of |to_v(text)|."""
    return tuple(linear(text_BTD).abs().mean(dim=1) for _, linear in value_projections(unet, layers))


def calibrate(
    checkpoint: Checkpoint,
    prompts: Sequence[str],
    settings: LocalizationSettings,
    advance: Callable[[int], None] = lambda done: None,
    *,
    with_threshold: bool = True,
) -> Calibration:
    """Measure statistics and τ over general prompts. `advance` is called with the number of prompts done.

    Raises `InputError` for fewer than two prompts, whose standard deviation is not defined.
    """
    if len(prompts) < 2:
        raise InputError(f"calibration needs two general prompts at least, got {len(prompts)}: add prompts to the file")
    layers = value_layers(checkpoint.unet, settings.layers)
    moments = [_Moments(layer.width) for layer in layers]
    probe, unet = NoiseProbe.of(checkpoint.config, settings), open_runner(checkpoint.unet_component())
    highest: list[float] = []
    for start in range(0, len(prompts), _BATCH):
        encoded = checkpoint.encode(prompts[start : start + _BATCH])
        for moment, values in zip(moments, activations(checkpoint.unet, encoded["encoder_hidden_states"], settings.layers), strict=True):
            moment.add(values.float().cpu())
        for row in range(len(encoded["encoder_hidden_states"]) if with_threshold else 0):
            delta = probe(unet, {name: value[row : row + 1].cpu().numpy() for name, value in encoded.items()})
            highest.append(float(pairwise_scores(delta.to(checkpoint.device)).max()))
            advance(1)
    threshold = threshold_of(highest) if with_threshold else None
    provenance = Provenance(
        checkpoint=Path(checkpoint.source).name,
        checkpoint_hash=checkpoint.content_hash(),
        prompts=len(prompts),
        prompts_hash=sha256_json(list(prompts)),
        threshold_mean=threshold.mean if threshold else None,
        threshold_std=threshold.std if threshold else None,
    )
    statistics = Statistics(layers, tuple(m.mean for m in moments), tuple(m.std() for m in moments))
    return Calibration(statistics, threshold, tuple(highest), provenance)


def load_statistics(path: Path, layers: Sequence[ValueLayer]) -> Statistics:
    """Read the statistics of a `.safetensors` file of ours or of the official code's `.pt`, for the given layers.

    The `.pt` is opened with weights only. Raises `InputError` when the layers' widths differ: another model's statistics.
    """
    if not path.is_file():
        raise InputError(f"statistics file {path} does not exist: make one with `nemo-edge calibrate`")
    statistics = _official(path, layers) if path.suffix == ".pt" else Calibration.load(path).statistics
    widths, found = [layer.width for layer in layers], [len(mean) for mean in statistics.mean]
    if widths != found:
        raise InputError(
            f"statistics {path} have layers of {found} neurons, but this UNet's are {widths}: they are of another model; "
            "make its own with `nemo-edge calibrate`"
        )
    return Statistics(tuple(layers), statistics.mean, statistics.std)


def read_threshold(path: Path) -> float:
    """Return the τ that a statistics file holds. Raises `InputError` for one without, as the official code's are."""
    own = None if path.suffix == ".pt" else Calibration.load(path).threshold
    if own is None:
        raise InputError(f"{path} holds no threshold τ: pass --threshold (the paper's is 0.428 for Stable Diffusion 1.4)")
    return own.value


def _official(path: Path, layers: Sequence[ValueLayer]) -> Statistics:
    try:
        mean, std = torch.load(path, map_location="cpu", weights_only=True)
        return Statistics(tuple(layers), tuple(t.float() for t in mean), tuple(t.float() for t in std))
    except (pickle.UnpicklingError, RuntimeError, ValueError, TypeError, AttributeError, EOFError, LookupError) as error:
        raise InputError(f"{path} is not a statistics file of the official code (two lists of tensors): {error}") from error


class _Moments:
    """Streaming mean and unbiased variance over rows (Chan, Golub & LeVeque 1979), accumulated in float64."""

    def __init__(self, width: int) -> None:
        self.count = 0
        self._mean = torch.zeros(width, dtype=torch.float64)
        self._squares = torch.zeros(width, dtype=torch.float64)

    def add(self, values_BW: Tensor) -> None:
        values = values_BW.double()
        count, mean = len(values), values.mean(dim=0)
        total, shift = self.count + count, mean - self._mean
        self._squares += (values - mean).square().sum(dim=0) + shift.square() * (self.count * count / total)
        self._mean += shift * (count / total)
        self.count = total

    @property
    def mean(self) -> Tensor:
        return self._mean.float()

    def std(self) -> Tensor:
        return (self._squares / (self.count - 1)).sqrt().float()

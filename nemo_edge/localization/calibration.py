"""Reference statistics of value activations over general prompts, and τ: what "not memorized" looks like.

The activations come straight from the text embeddings, since a value neuron sees nothing else; no UNet runs for them.
Shapes: B prompts, T tokens, D text width, W neurons of one layer.
"""

from __future__ import annotations

__all__ = ["Calibration", "Provenance", "Statistics", "activations", "calibrate", "check_own", "load_statistics", "read_threshold"]

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import torch
from pydantic import BaseModel, ConfigDict
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from nemo_edge.backends.torch import open_runner
from nemo_edge.localization.memorization import NoiseProbe, Threshold, finite, threshold_of
from nemo_edge.localization.multiscale import pairwise_scores
from nemo_edge.model.checkpoint import Checkpoint, Conditioning, Layers, value_layers, value_projections
from nemo_edge.model.neurons import ValueLayer
from nemo_edge.recipe.settings import LocalizationSettings, check_threshold
from nemo_edge.system.errors import InputError, first_line
from nemo_edge.system.files import sha256_json, write_atomically
from nemo_edge.system.reading import check_regular, parse_json

_SCHEMA: Final = 2
"""2: τ of the published score; that of schema 1 was of another."""
_BATCH = 64
_ANEW = "make it anew with `nemo-edge calibrate`"
_OTHER_PROMPTS = "calibrate on other general prompts, or set τ (calibration.threshold in a recipe, --threshold)"


@dataclass(frozen=True)
class Statistics:
    """Mean and unbiased standard deviation of each value neuron's activation, float32 [W] a layer."""

    layers: tuple[ValueLayer, ...]
    mean: tuple[Tensor, ...]
    std: tuple[Tensor, ...]


class Provenance(BaseModel):
    """Where a statistics file comes from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[2] = _SCHEMA
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

    @property
    def above(self) -> int | None:
        """How many general prompts score above τ; None where they have no scores or there is no τ."""
        if self.threshold is None or not self.highest:
            return None
        return sum(score > self.threshold.value for score in self.highest)

    @property
    def above_rate(self) -> float | None:
        """Their share of the general prompts: how often τ takes a harmless prompt for a memorized one."""
        return None if self.above is None else self.above / len(self.highest)

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
        """Read what `save` writes. Raises `InputError` for any other file, and for statistics or a τ that cannot be used."""
        try:
            with safe_open(path, "pt") as file:
                facts = parse_json((file.metadata() or {})["nemo_edge"])
                _check_schema(facts["provenance"]["schema_version"], path)
                provenance = Provenance.model_validate(facts["provenance"])
                layers = tuple(ValueLayer.model_validate(v) for v in facts["layers"])
                mean, std = (tuple(file.get_tensor(f"{kind}.{layer.name}") for layer in layers) for kind in ("mean", "std"))
                highest = tuple(file.get_tensor("highest").tolist())
        except InputError:
            raise
        except Exception as error:  # of a header that names what is not there, several unrelated classes
            raise InputError(f"{path} is not a statistics file of `nemo-edge calibrate`: {first_line(error)}") from error
        statistics = _checked(Statistics(layers, mean, std), path)
        return cls(statistics, _threshold(provenance, str(path), _ANEW), highest, provenance)


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

    Raises `InputError` for fewer than two prompts, whose standard deviation is not defined, for a prompt whose activations or score
    are no numbers, and for a τ that no score or every score is above.
    """
    if len(prompts) < 2:
        raise InputError(f"calibration needs two general prompts at least, got {len(prompts)}: add prompts to the file")
    layers = value_layers(checkpoint.unet, settings.layers)
    moments = [_Moments(layer.width) for layer in layers]
    probe, unet = NoiseProbe.of(checkpoint.config, settings), open_runner(checkpoint.unet_component())
    highest: list[float] = []
    for start in range(0, len(prompts), _BATCH):
        texts = prompts[start : start + _BATCH]
        encoded = checkpoint.encode(texts)
        for moment, values in zip(moments, _activations(checkpoint, texts, encoded, settings), strict=True):
            moment.add(values)
        for row, text in enumerate(texts if with_threshold else ()):
            delta = probe(unet, {name: value[row : row + 1].cpu().numpy() for name, value in encoded.items()})
            highest.append(float(finite(pairwise_scores(delta.to(checkpoint.device)), "memorization scores", text).max()))
            advance(1)
    provenance = _provenance(checkpoint, prompts, threshold_of(highest) if with_threshold else None)
    threshold = _threshold(provenance, "calibration", _OTHER_PROMPTS)
    statistics = Statistics(layers, tuple(m.mean for m in moments), tuple(m.std() for m in moments))
    return Calibration(statistics, threshold, tuple(highest), provenance)


def _activations(checkpoint: Checkpoint, texts: Sequence[str], encoded: Conditioning, settings: LocalizationSettings) -> list[Tensor]:
    """The activations of some prompts in float32 on the CPU, [B, W] a layer, each of them a number."""
    found = [values.float().cpu() for values in activations(checkpoint.unet, encoded["encoder_hidden_states"], settings.layers)]
    for text, row_N in zip(texts, torch.cat(found, dim=1), strict=True):
        finite(row_N, "value activations", text)
    return found


def _provenance(checkpoint: Checkpoint, prompts: Sequence[str], threshold: Threshold | None) -> Provenance:
    return Provenance(
        checkpoint=Path(checkpoint.source).name,
        checkpoint_hash=checkpoint.content_hash(),
        prompts=len(prompts),
        prompts_hash=sha256_json(list(prompts)),
        threshold_mean=threshold.mean if threshold else None,
        threshold_std=threshold.std if threshold else None,
    )


def _check_schema(schema: object, path: Path) -> None:
    if schema != _SCHEMA:
        raise InputError(f"statistics {path} have schema {schema}, expected {_SCHEMA}, whose τ is of the published score: {_ANEW}")


def _threshold(provenance: Provenance, source: str, remedy: str) -> Threshold | None:
    """The τ of a provenance; None where it has none. Raises `InputError` for one that cannot be used."""
    mean, std = provenance.threshold_mean, provenance.threshold_std
    if mean is None or std is None:
        return None
    if not 0 <= std < math.inf:
        raise InputError(f"{source}: the standard deviation in τ is {std:g}, expected a finite number from 0 on: {remedy}")
    check_threshold(mean + std, source, remedy)
    return Threshold(mean, std)


def _checked(statistics: Statistics, path: Path) -> Statistics:
    """The statistics as they are. Raises `InputError` unless all are finite and no deviation is below 0; it may be 0."""
    for kind, values in (("mean", statistics.mean), ("standard deviation", statistics.std)):
        for number, values_W in enumerate(values):
            wrong_K = (~values_W.isfinite() | ((values_W < 0) & (kind != "mean"))).nonzero().flatten()
            if len(wrong_K):
                first = int(wrong_K[0])
                raise InputError(
                    f"statistics {path}: the {kind} of {len(wrong_K)} neurons of value layer {number} cannot be used (the first is neuron "
                    f"{first}: {float(values_W[first]):g}), expected finite numbers{' from 0 on' if kind != 'mean' else ''}: {_ANEW}"
                )
    return statistics


def load_statistics(path: Path, layers: Sequence[ValueLayer]) -> Statistics:
    """Read the statistics of a `.safetensors` file of ours or of the official code's `.pt`, for the given layers.

    The `.pt` is opened with weights only. Raises `InputError` when the layers' widths differ: another model's statistics.
    """
    check_regular(path, "statistics file", remedy="make one with `nemo-edge calibrate`")
    statistics = _official(path, layers) if path.suffix == ".pt" else Calibration.load(path).statistics
    widths, found = [layer.width for layer in layers], [len(mean) for mean in statistics.mean]
    if widths != found or found != [len(std) for std in statistics.std]:
        raise InputError(
            f"statistics {path} have layers of {found} neurons, but this UNet's are {widths}: they are of another model; "
            "make its own with `nemo-edge calibrate`"
        )
    return Statistics(tuple(layers), statistics.mean, statistics.std)


def check_own(path: Path, checkpoint: Checkpoint) -> None:
    """Raise `InputError` for a statistics file of ours that was measured on other weights, whose τ says nothing of these."""
    if path.suffix == ".pt":
        return
    measured = Calibration.load(path).provenance
    if measured.checkpoint_hash != checkpoint.content_hash():
        raise InputError(
            f"statistics {path} were measured on another checkpoint ({measured.checkpoint}, or other weights of that name): {_ANEW}"
        )


def read_threshold(path: Path) -> float:
    """Return the τ that a statistics file holds. Raises `InputError` for one without, as the official code's are."""
    own = None if path.suffix == ".pt" else Calibration.load(path).threshold
    if own is None:
        raise InputError(f"{path} holds no threshold τ: pass --threshold (the paper's is 0.428 for Stable Diffusion 1.4)")
    return own.value


def _official(path: Path, layers: Sequence[ValueLayer]) -> Statistics:
    try:
        mean, std = torch.load(path, map_location="cpu", weights_only=True)
        statistics = Statistics(tuple(layers), tuple(t.float() for t in mean), tuple(t.float() for t in std))
    except Exception as error:  # whatever a broken or foreign pickle raises
        raise InputError(f"{path} is not a statistics file of the official code (two lists of tensors): {first_line(error)}") from error
    return _checked(statistics, path)


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

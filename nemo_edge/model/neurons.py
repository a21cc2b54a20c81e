"""Value neurons and sets of them: set algebra, masks, JSON, and the official code's CSV.

Knows layers by name and width only; nothing of torch or of a UNet.
"""

from __future__ import annotations

__all__ = ["NeuronSet", "OfficialRow", "ValueLayer", "official_neurons", "read_neurons", "read_official_csv", "write_official_csv"]

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from nemo_edge.system.errors import InputError
from nemo_edge.system.files import write_atomically
from nemo_edge.system.reading import read_bytes, read_text

OFFICIAL_COLUMNS = ("Caption", "URL", "Initial Neurons", "Initial SSIM", "Refined Neurons", "Refined SSIM")

_INDEX_LISTS = TypeAdapter(list[list[int]])


class ValueLayer(BaseModel):
    """One value projection: the name of its `attn2.to_v` in the UNet and its number of output units."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    width: int = Field(ge=0, le=1_000_000)


class NeuronSet(BaseModel):
    """A set of value neurons: for each layer, in the UNet's order, the sorted indices of its output units.

    Two sets can be combined (`|`, `&`, `-`) when their layers are the same.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    layers: tuple[ValueLayer, ...]
    indices: tuple[tuple[int, ...], ...]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.indices) != len(self.layers):
            raise ValueError(f"neurons of {len(self.indices)} layers given, but the model has {len(self.layers)} value layers")
        for layer, chosen in zip(self.layers, self.indices, strict=True):
            wrong = [i for i in chosen if not 0 <= i < layer.width]
            if wrong:
                raise ValueError(f"neuron {wrong[0]} of {layer.name} is out of range: the layer has neurons 0 to {layer.width - 1}")
            if list(chosen) != sorted(set(chosen)):
                raise ValueError(f"neurons of {layer.name} are not sorted or not distinct")
        return self

    @classmethod
    def from_lists(cls, layers: Sequence[ValueLayer], lists: Iterable[Iterable[int]]) -> NeuronSet:
        """Make a set from one list of indices a layer; duplicates in a list are one neuron.

        Raises `InputError` when an index is negative or too large, or the number of lists is not that of the layers.
        """
        try:
            return cls(layers=tuple(layers), indices=tuple(tuple(sorted(set(chosen))) for chosen in lists))
        except ValidationError as error:
            raise InputError(_reason(error)) from error

    @classmethod
    def empty(cls, layers: Sequence[ValueLayer]) -> NeuronSet:
        """The set without neurons."""
        return cls.from_lists(layers, [[] for _ in layers])

    @classmethod
    def load(cls, path: Path) -> NeuronSet:
        """Read the JSON that `save` writes. Raises `InputError` for any other file."""
        try:
            return cls.model_validate_json(read_bytes(path, "neuron file", remedy="`nemo-edge localize` makes one"))
        except ValidationError as error:
            raise InputError(f"neuron file {path}: {_reason(error)}") from error

    def save(self, path: Path) -> None:
        """Write the set as JSON, atomically."""
        write_atomically(path, self.model_dump_json(indent=1) + "\n")

    def content_hash(self) -> str:
        """Return the sha256 of the set's canonical JSON."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    def check_layers(self, layers: Sequence[ValueLayer], what: str) -> None:
        """Raise `InputError` unless this set, which the message calls `what`, is of a bundle's `layers`."""
        if self.layers != tuple(layers):
            raise InputError(f"{what} has neurons of other value layers than this bundle: it belongs to another model")

    def mask(self) -> np.ndarray:
        """Return the factor of each neuron over all layers, float32 [N]: 1 keeps, 0 silences."""
        mask_N = np.ones(self.total, np.float32)
        for offset, chosen in zip(self._offsets(), self.indices, strict=True):
            mask_N[[offset + i for i in chosen]] = 0
        return mask_N

    @property
    def total(self) -> int:
        """The number of neurons N of all layers, silenced or not."""
        return sum(layer.width for layer in self.layers)

    @property
    def counts(self) -> tuple[int, ...]:
        """The number of chosen neurons of each layer."""
        return tuple(len(chosen) for chosen in self.indices)

    def items(self) -> Iterator[tuple[ValueLayer, tuple[int, ...]]]:
        """Iterate over (layer, chosen indices) in the UNet's order."""
        return iter(zip(self.layers, self.indices, strict=True))

    def jaccard(self, other: NeuronSet) -> float:
        """Return |a ∩ b| / |a ∪ b|, 1 for two empty sets."""
        union = len(self | other)
        return len(self & other) / union if union else 1.0

    def random_like(self, seed: int) -> NeuronSet:
        """Draw as many neurons of each layer as this set has, none of this set's own (as far as there are others)."""
        rng = np.random.default_rng(seed)
        lists = []
        for layer, chosen in self.items():
            others = np.setdiff1d(np.arange(layer.width), chosen)
            lists.append(rng.choice(others, min(len(chosen), len(others)), replace=False).tolist())
        return NeuronSet.from_lists(self.layers, lists)

    def subset(self, count: int, seed: int) -> NeuronSet:
        """Draw `count` of this set's neurons, all of them when it has no more."""
        return self._drawn([(layer, i) for layer, chosen in enumerate(self.indices) for i in chosen], count, seed)

    def others(self, count: int, seed: int) -> NeuronSet:
        """Draw `count` neurons that are not in this set, of any layer (as far as there are any)."""
        return (NeuronSet.from_lists(self.layers, [range(layer.width) for layer in self.layers]) - self).subset(count, seed)

    def _drawn(self, places: Sequence[tuple[int, int]], count: int, seed: int) -> NeuronSet:
        order = np.random.default_rng(seed).permutation(len(places))[:count]
        lists: list[list[int]] = [[] for _ in self.layers]
        for layer, neuron in (places[i] for i in order):
            lists[layer].append(neuron)
        return NeuronSet.from_lists(self.layers, lists)

    def __len__(self) -> int:
        return sum(self.counts)

    def __or__(self, other: NeuronSet) -> NeuronSet:
        return self._combined(other, set.union)

    def __and__(self, other: NeuronSet) -> NeuronSet:
        return self._combined(other, set.intersection)

    def __sub__(self, other: NeuronSet) -> NeuronSet:
        return self._combined(other, set.difference)

    def _combined(self, other: NeuronSet, operation: object) -> NeuronSet:
        if self.layers != other.layers:
            raise InputError("two neuron sets of different value layers cannot be combined: they belong to different models")
        assert callable(operation)
        pairs = zip(self.indices, other.indices, strict=True)
        return NeuronSet.from_lists(self.layers, [operation(set(a), set(b)) for a, b in pairs])

    def _offsets(self) -> list[int]:
        return list(accumulate((layer.width for layer in self.layers), initial=0))[:-1]


class OfficialRow(BaseModel):
    """One row of the official code's result file: the neurons of one caption, as lists with their duplicates."""

    model_config = ConfigDict(frozen=True)

    caption: str
    url: str
    initial: list[list[int]]
    initial_score: float
    refined: list[list[int]]
    refined_score: float


def read_official_csv(path: Path) -> list[OfficialRow]:
    """Read a result file of the official code (`;`-separated). Raises `InputError` naming the file and the row."""
    reader = csv.DictReader(io.StringIO(read_text(path, "result file"), newline=""), delimiter=";")
    try:
        rows = list(reader)
    except csv.Error as error:
        raise InputError(f"result file {path} is not CSV (line {reader.line_num}): {error}; get or make it again") from error
    missing = [c for c in OFFICIAL_COLUMNS if c not in (reader.fieldnames or ())]
    if missing:
        raise InputError(f"{path} has no column {missing[0]!r}: expected the official columns {';'.join(OFFICIAL_COLUMNS)}")
    return [_official_row(row, f"{path}, row {number}") for number, row in enumerate(rows, 2)]


def official_neurons(path: Path, layers: Sequence[ValueLayer]) -> NeuronSet:
    """The union of the refined neurons in a result file of the official code. Raises `InputError` when it does not fit the layers."""
    lists: list[set[int]] = [set() for _ in layers]
    for number, row in enumerate(read_official_csv(path), 2):
        if len(row.refined) != len(layers):
            raise InputError(f"{path}, row {number} has neurons of {len(row.refined)} layers, but this UNet has {len(layers)}")
        for chosen, found in zip(lists, row.refined, strict=True):
            chosen.update(found)
    return NeuronSet.from_lists(layers, lists)


def read_neurons(path: Path, layers: Sequence[ValueLayer]) -> NeuronSet:
    """Read `neurons.json`, or the union of a result file of the official code (.csv), which is of `layers`."""
    return official_neurons(path, layers) if path.suffix.lower() == ".csv" else NeuronSet.load(path)


def _official_row(row: dict[str, str], where: str) -> OfficialRow:
    try:
        return OfficialRow(
            caption=row["Caption"],
            url=row["URL"],
            initial=_INDEX_LISTS.validate_json(row["Initial Neurons"]),
            initial_score=float(row["Initial SSIM"]),
            refined=_INDEX_LISTS.validate_json(row["Refined Neurons"]),
            refined_score=float(row["Refined SSIM"]),
        )
    except (ValueError, TypeError) as error:
        raise InputError(f"{where} is not a result of the official code: {error}") from error


def write_official_csv(path: Path, rows: Iterable[OfficialRow]) -> None:
    """Write a result file that the official code's scripts read, atomically."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=";", lineterminator="\n")
    writer.writerow(OFFICIAL_COLUMNS)
    for r in rows:
        writer.writerow((r.caption, r.url, json.dumps(r.initial), r.initial_score, json.dumps(r.refined), r.refined_score))
    write_atomically(path, text.getvalue())


def _reason(error: ValidationError) -> str:
    """The first complaint of pydantic, without its decoration."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message

"""Which neurons a server silences, by a name that a request chooses: the policies of a shipped pipeline.

Knows sets of neurons; nothing of servers or engines.
"""

from __future__ import annotations

__all__ = ["ALWAYS", "OFF", "Policies", "Policy", "apply", "baked_policies", "masked_policies"]

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from nemo_edge.errors import InputError
from nemo_edge.files import sha256_json, write_atomically
from nemo_edge.masks import OFF
from nemo_edge.neurons import NeuronSet, ValueLayer

ALWAYS = "always"
"""The default: every neuron of the bundle is silenced, whatever the prompt."""


class Policy(NamedTuple):
    """One policy: its name and the neurons it silences; None for a baked UNet, which is fed no mask."""

    name: str
    neurons: NeuronSet | None


class Policies(BaseModel):
    """The policies of a pipeline, by name; the neurons of one are None where they are baked into the UNet."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    version: str
    """What tells two files of policies apart: the start of a hash of their neurons."""
    manifest: str = ""
    """sha256 of the manifest of the bundle that they are of; empty for none."""
    neurons: Mapping[str, NeuronSet | None]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.version != _version(self.neurons):
            raise ValueError(f"the version {self.version} is not that of the neurons")
        return self

    @classmethod
    def load(cls, path: Path) -> Policies:
        """Read what `save` writes. Raises `InputError` for any other file."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise InputError(f"{path} does not hold policies: ship the bundle again") from error

    def save(self, path: Path) -> None:
        """Write the policies as JSON, atomically."""
        write_atomically(path, self.model_dump_json(indent=1) + "\n")

    def fits(self, other: Policies) -> bool:
        """Whether a UNet that takes the masks of the other's policies takes those of these."""
        return self._layers() == other._layers()

    def choose(self, name: str) -> Policy:
        """Return the policy of a name. Raises `InputError` that lists the names for one that is not there."""
        if name not in self.neurons:
            raise InputError(f"unknown policy {name[:80]!r}: this pipeline has {', '.join(self.neurons)}")
        return Policy(name, self.neurons[name])

    def _layers(self) -> set[tuple[ValueLayer, ...] | None]:
        return {None if found is None else found.layers for found in self.neurons.values()}


def masked_policies(found: NeuronSet, manifest: str = "") -> Policies:
    """The policies of a masked UNet whose bundle found these neurons: all of them, or none."""
    return _of({ALWAYS: found, OFF: NeuronSet.empty(found.layers)}, manifest)


def baked_policies(manifest: str = "") -> Policies:
    """The one policy of a baked UNet, which cannot be told to silence less."""
    return _of({ALWAYS: None}, manifest)


def apply(policy: Policy, batch: int) -> tuple[np.ndarray | None, np.ndarray]:
    """Return a policy's factors for each of `batch` prompts, float32 [B, N], and its score, float32 [B].

    The score says how sure the policy is that a prompt needs what it silences: 1 where it silences whatever the prompt, 0 where it
    never does. The factors are None for neurons that are baked.
    """
    score_B = np.full(batch, float(policy.name != OFF), np.float32)
    if policy.neurons is None:
        return None, score_B
    return np.tile(policy.neurons.mask(), (batch, 1)), score_B


def _of(neurons: Mapping[str, NeuronSet | None], manifest: str) -> Policies:
    return Policies(version=_version(neurons), manifest=manifest, neurons=neurons)


def _version(neurons: Mapping[str, NeuronSet | None]) -> str:
    content = {name: None if found is None else found.model_dump(mode="json") for name, found in neurons.items()}
    return sha256_json(content)[:12]

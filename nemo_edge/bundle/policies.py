"""Which neurons a server silences, by a name that a request chooses: the policies of a bundle and of a shipped pipeline.

Knows sets of neurons and when a prompt is near a memorized one (`triggers`); nothing of servers or engines. Imports nothing heavy.
"""

from __future__ import annotations

__all__ = [
    "ALWAYS",
    "CLUSTER",
    "OFF",
    "POLICIES",
    "TRIGGERED",
    "Policies",
    "Policy",
    "apply",
    "baked_policies",
    "masked_policies",
    "policies_in",
    "read_policies",
]

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property, reduce
from pathlib import Path
from typing import Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from nemo_edge.bundle.triggers import Trigger
from nemo_edge.model.masks import OFF
from nemo_edge.model.neurons import NeuronSet, ValueLayer
from nemo_edge.system.errors import BundleError, InputError
from nemo_edge.system.files import sha256_json, write_atomically
from nemo_edge.system.reading import read_bytes

ALWAYS = "always"
"""The default: every neuron of the bundle is silenced, whatever the prompt."""

TRIGGERED = "triggered"
"""The neurons of a cluster are silenced where the prompt is near one of its memorized prompts; no others, unless no cluster has them."""

CLUSTER = "cluster:"
"""Before the name of a cluster, whose neurons alone are silenced; several such names, with commas between them, are merged."""

POLICIES = "policies.json"
"""The file of a masked bundle, and of a pipeline's version, that holds its policies."""


@dataclass(frozen=True, eq=False)
class Policy:
    """One policy, ready to be applied; never compared."""

    name: str
    mask_N: np.ndarray | None
    """Factors for every prompt; None for a baked UNet, which is fed none."""
    trigger: Trigger | None = None
    masks_KN: np.ndarray | None = None
    """Factors for the prompts that are near those of each of the trigger's clusters."""


class Policies(BaseModel):
    """The policies of a pipeline, by name; the neurons of one are None where they are baked into the UNet."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    version: str
    """What tells two files of policies apart: the start of a hash of their neurons and of the trigger."""
    manifest: str = ""
    """sha256 of the manifest of the bundle that a pipeline's are of; empty in the bundle itself."""
    neurons: Mapping[str, NeuronSet | None]
    trigger: Trigger | None = None
    """When the neurons of a cluster are silenced under the policy `triggered`, which is there where this is."""
    offered: tuple[str, ...] | None = None
    """The policies that a server knows, those of clusters one by one; None for all that there are."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.version != _version(self.neurons, self.trigger):
            raise ValueError(f"the version {self.version} is not that of the neurons")
        missing = [name for name in (self.trigger.prompts if self.trigger else ()) if self.neurons.get(CLUSTER + name) is None]
        if missing:
            raise ValueError(f"the trigger knows a cluster {missing[0]} that has no neurons")
        return self

    @classmethod
    def load(cls, path: Path) -> Policies:
        """Read what `save` writes. Raises `InputError` for any other file."""
        try:
            return cls.model_validate_json(read_bytes(path))
        except (InputError, ValidationError) as error:
            raise InputError(f"{path} does not hold policies: ship the bundle again") from error

    def save(self, path: Path) -> None:
        """Write the policies as JSON, atomically."""
        write_atomically(path, self.model_dump_json(indent=1) + "\n")

    @cached_property
    def clusters(self) -> dict[str, NeuronSet]:
        """Of each cluster, by its name, the neurons that the bundle silences still."""
        always = self.neurons[ALWAYS]
        named = ((name, found) for name, found in self.neurons.items() if name.startswith(CLUSTER))
        return {name.removeprefix(CLUSTER): found & always for name, found in named if found is not None and always is not None}

    @property
    def default(self) -> str:
        """The policy of a request that names none."""
        return ALWAYS if self.offered is None or ALWAYS in self.offered else self.offered[0]

    def offering(self, names: Collection[str] | None) -> Policies:
        """The same policies, of which a server knows those of these names alone; all of them without names.

        Raises `InputError` for a name that is not there, and for none at all.
        """
        every = self.model_copy(update={"offered": None})
        if names is None:
            return every
        if not names:
            raise InputError("no policy is offered: name one, or several with commas between them")
        for name in names:
            every.choose(name)
        return self.model_copy(update={"offered": tuple(dict.fromkeys(names))})

    def fits(self, other: Policies) -> bool:
        """Whether a pipeline that takes the masks, and the text states, of the other's policies takes those of these."""
        widths = {policies.trigger.width for policies in (self, other) if policies.trigger is not None}
        return self._layers() == other._layers() and len(widths) < 2

    def choose(self, name: str) -> Policy:
        """Return the policy of a name, or of several clusters' with commas between them.

        Raises `InputError` that says what there is for a name that is not there, and for several that are not all clusters.
        """
        parts = sorted({part.strip() for part in name.split(",")})
        if self.offered is not None and not {*parts} <= {*self.offered}:
            raise InputError(f"policy {name[:80]!r} is not offered: this pipeline has {self._listed()}")
        if name == TRIGGERED and self.trigger is not None:
            return self._triggered
        unknown = next((part for part in parts if part not in self.neurons), None)
        if len(parts) > 1 and not all(part.startswith(CLUSTER) for part in parts):
            raise InputError(
                f"policy {name[:80]!r} merges what cannot be merged: give one, or clusters alone as {CLUSTER}NAME,{CLUSTER}NAME"
            )
        if unknown is not None:
            raise InputError(f"unknown policy {unknown[:80]!r}: this pipeline has {self._listed()}")
        found = [self.clusters.get(part.removeprefix(CLUSTER)) if part.startswith(CLUSTER) else self.neurons[part] for part in parts]
        chosen = [own for own in found if own is not None]
        return Policy(",".join(parts), reduce(NeuronSet.__or__, chosen).mask() if chosen else None)

    def of_neurons(self, found: NeuronSet) -> Policies:
        """The same policies once a bundle silences other neurons; of its own a cluster silences those that are among them."""
        return _of({**self.neurons, ALWAYS: found}, self.manifest, self.trigger)

    @cached_property
    def _triggered(self) -> Policy:
        clusters, trigger, always = self.clusters, self.trigger, self.neurons[ALWAYS]
        assert trigger is not None
        assert always is not None
        unclaimed = reduce(NeuronSet.__sub__, clusters.values(), always)
        return Policy(TRIGGERED, unclaimed.mask(), trigger, np.stack([clusters[name].mask() for name in trigger.prompts]))

    def _listed(self) -> str:
        """The names for a message; those of clusters have words of memorized prompts and stay out of it."""
        known = [*self.neurons, *([TRIGGERED] if self.trigger else [])] if self.offered is None else self.offered
        names = [name for name in known if not name.startswith(CLUSTER)]
        clusters = len(known) - len(names)
        if self.offered is not None:
            return ", ".join([*names, *([f"{clusters} of its clusters"] if clusters else [])])
        if self.neurons.get(ALWAYS) is None:
            return f"{', '.join(names)}, since its neurons are baked: ship the masked variant for others"
        return ", ".join(names) + (f", and {CLUSTER}NAME of the {clusters} clusters in its {POLICIES}" if clusters else "")

    def _layers(self) -> set[tuple[ValueLayer, ...] | None]:
        return {None if found is None else found.layers for found in self.neurons.values()}


def masked_policies(
    found: NeuronSet, manifest: str = "", clusters: Mapping[str, NeuronSet] | None = None, trigger: Trigger | None = None
) -> Policies:
    """The policies of a masked UNet whose bundle found these neurons: all of them, none, those of each of some clusters, and with a
    trigger of them those of the clusters that a prompt is near."""
    own = {CLUSTER + name: neurons for name, neurons in (clusters or {}).items()}
    return _of({ALWAYS: found, OFF: NeuronSet.empty(found.layers), **own}, manifest, trigger)


def baked_policies(manifest: str = "") -> Policies:
    """The one policy of a baked UNet, which cannot be told to silence less."""
    return _of({ALWAYS: None}, manifest)


def read_policies(bundle: Path, files: Collection[str], manifest: str) -> Policies:
    """The policies of a masked bundle of these files, whose hashes were compared: its own, or where it has none those of its neurons.

    `manifest` is the sha256 of its manifest. Raises `BundleError` for policies that are of other neurons.
    """
    found = NeuronSet.load(bundle / "neurons.json")
    if POLICIES not in files:
        return masked_policies(found, manifest)
    own = Policies.load(bundle / POLICIES)
    if own.neurons.get(ALWAYS) != found:
        raise BundleError(f"{bundle}: {POLICIES} is not of the neurons in neurons.json: build the bundle again; nothing was shipped")
    return own.model_copy(update={"manifest": manifest})


def policies_in(folder: Path) -> Policies | None:
    """Read the policies in a folder of results, or a bundle; None where there are none, as without a masked variant."""
    path = folder / POLICIES
    return Policies.load(path) if path.is_file() else None


def apply(policy: Policy, text_BTD: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
    """Return a policy's factors for each prompt, float32 [B, N], and its score, float32 [B].

    `text_BTD` are the states that the UNet gets of the prompts. The score says how sure the policy is that a prompt needs what it silences:
    of a trigger the largest cosine to a memorized prompt, else 1 where it silences whatever the prompt, 0 where it never does. The
    factors are None for neurons that are baked.
    """
    batch = len(text_BTD)
    if policy.trigger is None or policy.masks_KN is None or policy.mask_N is None:
        score_B = np.full(batch, float(policy.name != OFF), np.float32)
        return None if policy.mask_N is None else np.tile(policy.mask_N, (batch, 1)), score_B
    score_BK = policy.trigger.scores(text_BTD)
    near_BK = score_BK >= policy.trigger.threshold
    rows = [np.minimum.reduce([policy.mask_N, *policy.masks_KN[near_K]]) for near_K in near_BK]
    return np.stack(rows), score_BK.max(axis=1)


def _of(neurons: Mapping[str, NeuronSet | None], manifest: str, trigger: Trigger | None = None) -> Policies:
    return Policies(version=_version(neurons, trigger), manifest=manifest, neurons=neurons, trigger=trigger)


def _version(neurons: Mapping[str, NeuronSet | None], trigger: Trigger | None) -> str:
    content = {name: None if found is None else found.model_dump(mode="json") for name, found in neurons.items()}
    return sha256_json(content if trigger is None else [content, trigger.model_dump(mode="json")])[:12]

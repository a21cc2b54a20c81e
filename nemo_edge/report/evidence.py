"""Everything that is known about a bundle, in one value that all forms of the report are made from.

Knows where a bundle keeps it; nothing of pages.
"""

from __future__ import annotations

__all__ = ["Evidence", "facts_of"]

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from nemo_edge.bundle.manifest import GateResult, Manifest, check_measurable, open_bundle
from nemo_edge.bundle.policies import Policies, policies_in
from nemo_edge.export.quantization.record import Quantized
from nemo_edge.localization.groups import Group, all_neurons, groups_in
from nemo_edge.localization.localizer import Localization, read_results
from nemo_edge.measure.attacks.campaign import Campaign
from nemo_edge.measure.latency import Latency
from nemo_edge.measure.mitigation import Measurement
from nemo_edge.recipe.recipe import Recipe, kept_recipe
from nemo_edge.system.environment import Machine
from nemo_edge.system.errors import BundleError, InputError
from nemo_edge.system.files import sha256_json
from nemo_edge.system.reading import read_bytes

_Model = TypeVar("_Model", bound=BaseModel)


@dataclass(frozen=True)
class Evidence:
    """What was built, what was measured on it, and whether it holds."""

    name: str
    family: str
    passed: bool
    """Whether every gate passed."""
    gates: tuple[GateResult, ...]
    measurement: Measurement
    localizations: tuple[Localization, ...]
    """One for each examined prompt, in the order of the measurement's."""
    recipe: Recipe
    latency: Latency | None = None
    groups: tuple[Group, ...] = ()
    """Prompts that have one set of neurons; none where each has its own."""
    policies: Policies | None = None
    """What a server can be asked to silence, where there is a masked engine."""
    attack: Campaign | None = None
    """What came of attacking it with the neurons that it has now."""
    quantized: Quantized | None = None
    """What was quantized; None where nothing was."""
    facts: dict[str, str] = field(default_factory=dict)
    """Provenance: hashes, versions."""
    machine: Machine | None = None
    """Where it was built."""
    date: str | None = None
    """When it was built."""

    @classmethod
    def of(
        cls,
        manifest: Manifest,
        measurement: Measurement,
        localizations: Sequence[Localization],
        latency: Latency | None = None,
        groups: Sequence[Group] = (),
        policies: Policies | None = None,
        attack: Campaign | None = None,
        quantized: Quantized | None = None,
    ) -> Evidence:
        """The evidence of a bundle of this manifest; the localizations may be in any order, and a prompt in the list twice."""
        by_prompt = {result.prompt: result for result in localizations}
        return cls(
            name=manifest.name,
            family=manifest.family,
            passed=manifest.passed,
            gates=manifest.gates,
            measurement=measurement,
            localizations=tuple(by_prompt[m.prompt] for m in measurement.variants[0].mitigations),
            recipe=kept_recipe(manifest.recipe, manifest.name),
            latency=latency,
            groups=tuple(groups),
            policies=policies,
            attack=attack,
            quantized=quantized,
            facts=facts_of(manifest),
            machine=manifest.machine,
            date=manifest.created,
        )

    def under(self, manifest: Manifest) -> Evidence:
        """Return the same evidence under another manifest: another verdict, or a later one."""
        own = (self.latency, self.groups, self.policies, self.attack, self.quantized)
        return Evidence.of(manifest, self.measurement, self.localizations, *own)

    @classmethod
    def read(cls, bundle: Path) -> Evidence:
        """Read the evidence of a finished bundle. Raises `BundleError` for a folder that is none, or lacks its measurement."""
        manifest = open_bundle(bundle)
        check_measurable(bundle, manifest)
        if not manifest.measured:
            again = f"nemo-edge rebake {bundle} --neurons {bundle}/neurons.json --measure"
            raise BundleError(f"{bundle} was changed since it was measured: measure it again with `{again}`")
        return cls.gather(bundle, manifest, _model(Measurement, bundle / "measurement.json"))

    @classmethod
    def gather(cls, bundle: Path, manifest: Manifest, measurement: Measurement) -> Evidence:
        """Read what lies in a bundle, be it one that is not finished, beside a measurement of it.

        Raises `BundleError` for what is missing, and for prompts that are not those of the measurement.
        """
        latency = _model(Latency, bundle / "latency.json") if (bundle / "latency.json").is_file() else None
        try:
            localizations = tuple(read_results(bundle / "localization.jsonl"))
            if not localizations or not measurement.variants:
                raise InputError("nothing was localized or measured")
            groups, policies = groups_in(bundle), policies_in(bundle)
            if all_neurons(groups, localizations).content_hash() != manifest.neurons_hash:
                groups = []  # what variants bring back was found with the groups' own neurons
        except (OSError, InputError) as error:
            raise _unreadable(bundle, "localization.jsonl, groups.jsonl or policies.json") from error
        if {m.prompt for v in measurement.variants for m in v.mitigations} - {r.prompt for r in localizations}:
            raise BundleError(f"{bundle}: measurement.json and localization.jsonl are of different prompts: build the bundle again")
        attack = Campaign.read(bundle)
        if attack is not None and attack.neurons_hash != manifest.neurons_hash:
            attack = None  # it was made with other neurons silenced
        return cls.of(manifest, measurement, localizations, latency, groups, policies, attack, Quantized.read(bundle))


def facts_of(manifest: Manifest) -> dict[str, str]:
    """Return what a manifest says of a bundle's origin, a line each: hashes of all that went in, and versions.

    The manifest need not be the published one: of the bundle's own files only those are among the facts, as its identity, that its report
    is not.
    """
    return {
        **({"Identity": manifest.identity} if manifest.files else {}),
        "Weights": sha256_json(manifest.checkpoint),
        **({"Hardened weights": sha256_json(manifest.hardened)} if manifest.hardened else {}),
        **({"Prompts": listed} if (listed := _list_hash(manifest)) else {}),
        **({"Recipe file": manifest.recipe_file} if manifest.recipe_file else {}),
        "Build key": manifest.key,
        "Neurons": manifest.neurons_hash,
        "Threshold τ": "–" if manifest.threshold is None else f"{manifest.threshold:.6g}",
        **{f"Checkpoint · {name}": value for name, value in manifest.checkpoint.items()},
        **{f"Input · {name}": value for name, value in manifest.prompts.items()},
        **{f"Version · {name}": value for name, value in manifest.versions.items()},
    }


def _list_hash(manifest: Manifest) -> str:
    """The hash of the list of memorized prompts, which is the first of the files that a build reads."""
    name = Path(manifest.recipe.get("prompts", {}).get("memorized", "")).name
    return manifest.prompts.get(name) or next(iter(manifest.prompts.values()), "")


def _model(kind: type[_Model], path: Path) -> _Model:
    try:
        return kind.model_validate_json(read_bytes(path))
    except (InputError, ValidationError) as error:
        raise _unreadable(path.parent, path.name) from error


def _unreadable(bundle: Path, what: str) -> BundleError:
    return BundleError(f"{bundle} holds no {what} that this version of nemo-edge reads: build the bundle again with `nemo-edge build`")

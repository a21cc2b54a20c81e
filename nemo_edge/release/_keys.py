"""The key of each stage: a hash of everything its result depends on, so that no result is taken for that of other inputs.

A key is made of the keys of the stages before it; each function here names what else a stage depends on.
"""

from __future__ import annotations

__all__ = [
    "Given",
    "bundle_key",
    "of_attack",
    "of_calibrate",
    "of_export",
    "of_hardening",
    "of_latency",
    "of_localize",
    "of_measure",
    "of_plans",
    "of_policies",
    "of_quantization",
    "of_random_neurons",
    "of_ranges",
]

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from nemo_edge.export.quantization.ranges import COUNTED_BY
from nemo_edge.measure.attacks.base import COUNTED
from nemo_edge.model.component import EXACT_TIMES
from nemo_edge.recipe.recipe import Recipe
from nemo_edge.recipe.settings import SCORE
from nemo_edge.recipe.targets import FLAVOUR_OF
from nemo_edge.release._inputs import Inputs
from nemo_edge.system.environment import USED, packages_of
from nemo_edge.system.files import sha256_json

_CALIBRATED = ("layers", "seed", "samples", "steps", "guidance")
"""The localization's settings that statistics and τ hang on."""
_NO_MATTER = ("rows", "prompts")
"""Those of them that only the time hangs on."""
_READ = "every vector of a textual inversion"
"""How prompts are read: what was found with a token's first vector alone is not taken for it."""
_FORMAT = f"ONNX files without the exporter's notes, tokenizers without how they were read, {EXACT_TIMES}"
"""What exported files are like: those that were kept from before are not taken for them."""
_ORDER = "in the order of the list, times apart"
"""How what was localized is written: files that were kept from before are not taken for it."""
_STEPS = "the steps of the sampler as numbers"
"""What a bundle has since then."""
_COUNTED = "copies of every known training picture in all its readings, whole and in part, and the nearest of each picture"
"""What the measurement counts: one that counted less is not taken for it."""


@dataclass(frozen=True)
class Given:
    """What a key is made of: the recipe, what it names, and the keys of the stages before."""

    recipe: Recipe
    inputs: Inputs
    keys: Mapping[str, str]

    @cached_property
    def tables(self) -> dict[str, Any]:
        """The recipe's tables as JSON has them."""
        return self.recipe.model_dump(mode="json")

    @property
    def files(self) -> str:
        """The key of the ONNX files: of the quantized ones, where the recipe has any."""
        return self.keys.get("quantize", self.keys["export"])

    @property
    def versions(self) -> dict[str, str]:
        """The versions of the packages that every stage uses."""
        fusing = ("peft",) if self.recipe.checkpoint.loras else ()
        return {name: version for name, version in self.inputs.machine.versions.items() if name in (*USED, *fusing)}

    @property
    def gpus(self) -> list[tuple[str, str]]:
        """The name of each GPU and its driver."""
        return [(gpu.name, gpu.driver) for gpu in self.inputs.machine.gpus]

    @property
    def openvino(self) -> str | None:
        """Its version, where it is used."""
        return self.inputs.machine.versions.get("openvino") if self.recipe.uses_openvino else None

    @property
    def engine(self) -> object:
        """How engines are run, and where they are compiled ones, which and on which GPUs."""
        flavour = self.recipe.engine.flavour
        if self.recipe.engine.backend == "openvino":
            return [self.tables["engine"], self.openvino]
        used = next((self.keys[table] for table, value in FLAVOUR_OF.items() if value == flavour), None)
        return [self.tables["engine"], used, self.gpus] if used else self.tables["engine"]


def of_calibrate(given: Given) -> object:
    """General prompts, weights, and the settings of statistics and τ."""
    inputs, tables, general = given.inputs, given.tables, [prompt.text for prompt in given.inputs.general]
    settings = [tables["localization"][name] for name in _CALIBRATED]
    device = tables["checkpoint"]["device"]
    return [SCORE, _READ, given.versions, inputs.checkpoint, device, general, tables["calibration"], inputs.statistics, settings]


def of_localize(given: Given) -> object:
    """Memorized prompts, and the settings of the search."""
    memorized = given.inputs.memorized
    search = {name: value for name, value in given.tables["localization"].items() if name not in _NO_MATTER}
    times = [EXACT_TIMES] if search["dtype"] == "bf16" else []
    return [given.keys["calibrate"], _ORDER, *times, [p.text for p in memorized], [(p.url, p.cluster) for p in memorized], search]


def of_random_neurons(given: Given) -> object:
    """Random weights, and which neurons they are to lose."""
    inputs, tables = given.inputs, given.tables
    return [given.versions, inputs.checkpoint, inputs.prompts, tables["random_weights"], tables["localization"]["layers"]]


def of_policies(given: Given) -> object:
    """What was localized."""
    return [given.keys["localize"], "policies"]


def of_hardening(given: Given) -> object:
    """The neurons, training pictures, general prompts, what draws them, and the settings."""
    general, tables = [prompt.text for prompt in given.inputs.general], given.tables
    return [given.keys["localize"], given.inputs.prompts, general, tables["sampling"], tables["hardening"]]


def of_export(given: Given) -> object:
    """The neurons, and the settings of the ONNX files."""
    return [given.keys.get("harden", given.keys["localize"]), given.tables["export"], _FORMAT]


def of_ranges(given: Given) -> object:
    """The files in float32, and the pictures that are drawn with them."""
    settings = given.recipe.quantization
    assert settings is not None
    general = [prompt.text for prompt in given.inputs.general[: settings.drawn(given.recipe.sampling.steps)]]
    return [given.keys["export"], general, given.tables["sampling"], COUNTED_BY]


def of_quantization(given: Given) -> object:
    """The files in float32, ranges, and the settings; the path of a file of ranges is none of them."""
    settings = {name: value for name, value in given.tables["quantization"].items() if name != "ranges"}
    tried = [[prompt.text for prompt in given.inputs.general[:1]], given.tables["sampling"]]
    return [given.keys["export"], given.keys.get("ranges"), given.inputs.ranges, settings, tried, COUNTED_BY]


def of_plans(table: str, given: Given) -> object:
    """The ONNX files, the settings of `table`, its compiler, and for TensorRT the GPU."""
    compiler = packages_of(FLAVOUR_OF[table], given.inputs.machine.versions)
    return [given.files, given.tables[table], compiler, given.gpus if table == "tensorrt" else []]


def of_measure(given: Given) -> object:
    """The engines, how they are run, training pictures, and the settings of the examination."""
    held_out, tables = [prompt.text for prompt in given.inputs.held_out], given.tables
    return [given.files, given.engine, given.inputs.prompts, held_out, tables["sampling"], tables["fidelity"], _COUNTED]


def of_attack(given: Given) -> object:
    """The engines and what they were measured by, training pictures, controls, and the settings of the attack."""
    settings = {name: value for name, value in given.tables["attack"].items() if name != "controls"}
    return [given.files, given.keys["measure"], given.inputs.prompts, given.inputs.controls, settings, COUNTED]


def of_latency(given: Given) -> object:
    """The engines, how they are run, and the machine."""
    passing: Any = {"gpus": {"__all__": {"clock_mhz", "temperature_c", "throttled_by"}}, "versions": True}
    here = given.inputs.machine.model_dump(mode="json", exclude=passing)
    return [given.files, given.engine, given.openvino, given.tables["sampling"], given.tables["latency"], here]


def bundle_key(recipe: Recipe, keys: Mapping[str, str]) -> str:
    """A hash of all that the bundle depends on: those of its last stages, and what costs no work: its name, the gates, how it is run.

    Whose it is counts where the recipe says so: a bundle from before recipes could is not made again.
    """
    last = [keys[stage] for stage in keys if stage not in ("calibrate", "localize")]
    own = recipe.model_dump(mode="json", include={"name", "gates", "engine", "sampling"})
    own |= {"report": makers} if (makers := recipe.report.model_dump(mode="json", exclude_none=True)) else {}
    return sha256_json([last, own, _STEPS])

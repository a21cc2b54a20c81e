"""A finished bundle in fewer bits: its UNets quantized into a bundle of their own, without a checkpoint and without an export.

Ranges are found with the bundle's own engines, or read from a file. What was measured was measured with the exact engines: it is not in
the new bundle, which must not be shipped before it is measured itself. Knows files and settings, nothing of memories.
"""

from __future__ import annotations

__all__ = ["QuantizedBundle", "quantize_bundle"]

import os
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from nemo_edge import __version__
from nemo_edge.backends.tensorrt.flavours import FLAVOURS, check
from nemo_edge.backends.tensorrt.plans import PlanFile, plans_of
from nemo_edge.bundle.manifest import Manifest, measured_no_more, open_bundle, open_verified, publish, staging, verify
from nemo_edge.export.production import OnnxFile, plan_stage
from nemo_edge.export.quantization import quantize as quantization
from nemo_edge.export.quantization.ranges import COUNTED_BY, Ranges
from nemo_edge.export.quantization.record import Quantized
from nemo_edge.graph.onnxfile import open_graph
from nemo_edge.graph.valueweights import open_value_weights, rows_of
from nemo_edge.localization.localizer import read_results
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.recipe.components import UNET_FOLDERS
from nemo_edge.recipe.prompts import Prompt, check_apart, distinct, read_prompts
from nemo_edge.recipe.quantization import QuantizationSettings
from nemo_edge.recipe.recipe import Recipe, anchored, from_options, kept_recipe, portable
from nemo_edge.recipe.targets import Flavour
from nemo_edge.release._cache import cache_of, prune
from nemo_edge.release._inputs import used_versions
from nemo_edge.release._preflight import check_integers, slow_integers
from nemo_edge.system.clock import now
from nemo_edge.system.environment import machine
from nemo_edge.system.errors import BundleError, InputError, MissingDependency
from nemo_edge.system.files import check_folder, explain, sha256_file, sha256_json
from nemo_edge.system.outputs import lock
from nemo_edge.system.progress import Progress

_OF_THE_EXACT_ONE = ("report", "measurement.json", "latency.json", "attack.json")
"""What a bundle holds that says something of its engines."""
_OPTIONS = {"prompts": "pictures"}
"""Settings that the command line has under another name."""


class QuantizedBundle(BaseModel):
    """A bundle that was made of another, with its UNets in fewer bits."""

    model_config = ConfigDict(frozen=True)

    bundle: str
    source: str
    skipped: bool
    """No work was done: it was there, made from exactly this."""
    scheme: str
    modules: int
    kept: dict[str, str]
    """Why a module that could be quantized is not."""
    errors: dict[str, float]
    """Of each UNet: by how much what it says differs from the exact one's, relative to that."""
    integers: dict[str, float]
    """Of each UNet: the share of its multiplications that ONNX Runtime does in integers; of `int8` alone."""
    ranges: str
    """Where those of the activations come from: "found", "read" of a file, or "none" for weights alone."""
    sizes_bytes: dict[str, tuple[int, int]]
    """Of each UNet: its file and weights, before and now."""
    engines: tuple[str, ...]
    """TensorRT engines that were compiled of the new files."""
    removed: tuple[str, ...]
    """TensorRT engines of the exact files that could not be compiled anew here; the new bundle lacks them."""
    seconds: float


def quantize_bundle(
    bundle: Path,
    output: Path,
    given: Mapping[str, Any] | None = None,
    *,
    general: Path | None = None,
    places: Recipe | None = None,
    progress: Progress | None = None,
) -> QuantizedBundle:
    """Write into the folder `output` a bundle like another whose UNets are quantized, and which is unmeasured.

    `given` are settings of `QuantizationSettings` that go before those of `places`, a recipe. Ranges are found with the first of the
    prompts in `general`, else of those that the bundle was made from. Every file is compared with its hash first. An interrupted run goes
    on. Raises `InputError` for settings that do not fit the bundle, for ranges of another model and for too few prompts, `BundleError` for
    a bundle that was changed, `MissingDependency` for a CPU that would run it wrongly.
    """
    started, progress = time.perf_counter(), progress or Progress()
    check_folder(output)
    open_bundle(bundle)
    if output.exists() and output.samefile(bundle):
        raise InputError(f"the output {output} is the bundle itself, whose exact files are needed: give another folder")
    manifest = open_verified(bundle)
    recipe = _recipe(bundle, manifest, output, given or {}, general, places)
    known = (places or recipe).prompts.general
    work = _Work(bundle, output, manifest, recipe, known, general, progress)
    work.check()
    try:
        with lock(output):
            if work.is_there():
                return work.told(open_bundle(output), started, skipped=True)
            if output.is_dir() and any(output.iterdir()):
                raise InputError(f"the output folder {output} is not empty: give another folder, or empty it")
            with staging(output) as staged:
                made = work.run(staged)
            prune(output, progress.note)
            return work.told(made, started, skipped=False)
    except OSError as error:
        raise explain(error, Path(error.filename or output)) from error


def _recipe(
    bundle: Path, manifest: Manifest, output: Path, given: Mapping[str, Any], general: Path | None, places: Recipe | None
) -> Recipe:
    """The bundle's recipe with its quantization, which `places` may say; where its files are is not, as nothing is made of them here.

    Raises `InputError` for what does not go together.
    """
    if manifest.recipe.get("quantization") is not None:
        raise InputError(f"{bundle} is quantized already: take the bundle that it was made of")
    if manifest.hardened is not None:
        raise InputError(f"the weights of {bundle} were hardened, so that only a build measures it: put [quantization] into its recipe")
    recipe = anchored(kept_recipe(manifest.recipe, bundle), bundle)
    fewer = {"prompts": min(QuantizationSettings().prompts, recipe.calibration.prompts)}
    own = places.quantization.model_dump() if places and places.quantization else fewer
    settings = from_options(QuantizationSettings, own, given, _OPTIONS)
    _check_used(settings, {"--ranges": given.get("ranges"), "--general": general, "--pictures": given.get("prompts")})
    name = f"{recipe.name[:80]}-{settings.scheme.replace('_', '-')}"
    try:
        return Recipe.model_validate({**recipe.model_dump(), "name": name, "output": output, "quantization": settings.model_dump()})
    except ValidationError as error:
        raise InputError(f"{bundle} cannot be quantized so: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from error


def _check_used(settings: QuantizationSettings, given: Mapping[str, object]) -> None:
    """Raise `InputError` for an option on ranges that nothing would come of."""
    asked = [name for name, value in given.items() if value is not None]
    if asked and not settings.activations:
        raise InputError(f"{asked[0]} is about ranges of activations, and {settings.scheme} rounds weights alone: leave it out")
    finding = [name for name in asked if name != "--ranges"]
    if finding and settings.ranges is not None:
        raise InputError(f"{finding[0]} is for finding ranges, and those of {settings.ranges} are read: leave out one of the two")


@dataclass(frozen=True)
class _Work:
    """One bundle on its way into another."""

    bundle: Path
    output: Path
    manifest: Manifest
    recipe: Recipe
    known: Path
    """Where the general prompts are now that the bundle was made from."""
    general: Path | None
    progress: Progress

    @property
    def settings(self) -> QuantizationSettings:
        assert self.recipe.quantization is not None
        return self.recipe.quantization

    @cached_property
    def read(self) -> Ranges | None:
        """The ranges of the file that is given."""
        return Ranges.read(self.settings.ranges) if self.settings.activations and self.settings.ranges else None

    @cached_property
    def files(self) -> quantization.Files:
        """The bundle's UNets, and what draws with them."""
        return quantization.Files(
            bundle=self.bundle,
            variants=self.manifest.variants,
            prompts=self._prompts(),
            sampling=self.recipe.sampling,
            threads=self.recipe.engine.threads,
            layers=NeuronSet.load(self.bundle / "neurons.json").layers,
            source=sha256_json([self.manifest.checkpoint, None]),
        )

    @cached_property
    def key(self) -> str:
        """A hash of all that the new bundle is made of."""
        settings = self.settings.model_dump(mode="json", exclude={"ranges"})
        ranges = self.read.model_dump(mode="json") if self.read else None
        return sha256_json(
            [self.manifest.key, self.manifest.files, "quantize", settings, ranges, self.files.prompts, COUNTED_BY, __version__]
        )

    def check(self) -> None:
        """Find what cannot be, before the work."""
        now()
        if self.recipe.engine.backend == "openvino":  # what is only timed beside it is not run here
            check_integers(self.recipe)
        for note in slow_integers(self.recipe):
            self.progress.note(note)
        if self.read is not None and self.settings.ranges is not None:
            quantization.check_ranges(self.read, self.settings.ranges, self.files)
        quantization.check_graph(self.files, self.settings.keep)

    def is_there(self) -> bool:
        """Whether the bundle is there, made from exactly this."""
        try:
            return open_bundle(self.output).key == self.key and verify(self.output).passed
        except BundleError:
            return False

    def run(self, staged: Path) -> Manifest:
        """Fill the folder and put it in place."""
        ranges = self._ranges()
        known = self._copy(staged)
        quantization.quantize_files(self.files, self.settings, ranges, staged, {"version": __version__}, self.progress)
        self._check_read(staged)
        if ranges is not None:
            ranges.write(staged / quantization.RANGES)
        self._compile(staged)
        gate = measured_no_more("its UNet was quantized")
        kept, here = self.settings.model_copy(update={"ranges": None}), machine()  # the bundle has them itself
        changes = {
            "name": self.recipe.name,
            "key": self.key,
            "recipe": portable(self.recipe.model_copy(update={"quantization": kept})).model_dump(mode="json"),
            "recipe_file": "",
            "versions": {**self.manifest.versions, **used_versions(here, self.recipe)},
            "machine": here,
            "gates": (gate,) if self.manifest.random_weights is None else self.manifest.gates,
            "passed": False,
            "created": now(),
        }
        return publish(staged, self.output, self.manifest.model_copy(update=changes), known)

    def _prompts(self) -> tuple[str, ...]:
        """Those whose pictures are drawn. Raises `InputError` where there are too few, or one is memorized."""
        if self.read is not None:
            return self.read.prompts
        if not self.settings.activations or self.manifest.random_weights is not None:
            return (quantization.PROMPT,)
        path, wanted = self.general or self.known, self.settings.drawn(self.recipe.sampling.steps)
        if self.general is None:
            self._check_known()
        found = distinct(read_prompts(path, tell=self.progress.note))
        memorized = [Prompt(text=result.prompt) for result in read_results(self.bundle / "localization.jsonl")]
        check_apart(found, memorized, path, self.bundle)
        if len(found) < wanted:
            raise InputError(
                f"prompts file {path} holds {len(found)} different general prompts, and ranges are found with {wanted}: add prompts, or "
                f"ask for fewer (--pictures {len(found)})"
            )
        return tuple(prompt.text for prompt in found[:wanted])

    def _check_known(self) -> None:
        """Raise `InputError` unless the general prompts that the bundle was made from are there, as they were."""
        path = self.known
        remedy = "pass --general, a list of prompts, or --ranges, or --recipe, the recipe that it was built by"
        if not path.is_file():
            raise InputError(f"{path}, which the bundle was made from, does not exist: {remedy}")
        if sha256_file(path) not in self.manifest.prompts.values():
            raise InputError(f"{path}, which the bundle was made from, has changed since: {remedy}")

    def _ranges(self) -> Ranges | None:
        """Those of the file, or found now, or before by a run that was interrupted or had other settings."""
        if self.read is not None or not self.settings.activations:
            return self.read
        sampling = self.recipe.sampling.model_dump(mode="json")
        key = sha256_json([self.manifest.files, self.files.prompts, sampling, COUNTED_BY, __version__])
        folder = cache_of(self.output) / f"ranges-{key[:12]}"
        path = folder / quantization.RANGES
        with suppress(InputError):  # those that are not there, or not whole, are found anew
            found = Ranges.read(path)
            quantization.check_ranges(found, path, self.files)
            os.utime(folder)  # what is used is not old, and is not pruned
            return found
        folder.mkdir(parents=True, exist_ok=True)
        return quantization.find_ranges(self.files, self.settings.keep, folder, self.progress)

    @cached_property
    def _plans(self) -> dict[str, PlanFile]:
        """The TensorRT engines of the UNets, by their sidecars."""
        return plans_of(self.bundle, self.manifest.files, [f"{place}/model.onnx" for place in UNET_FOLDERS.values()])

    @cached_property
    def _graphs(self) -> set[str]:
        """The files that are quantized: the UNets and their weights."""
        exact = [self.files.path(variant) for variant in self.manifest.variants]
        return {path.relative_to(self.bundle).as_posix() for model in exact for path in (model, *open_graph(model).external_files())}

    def _copy(self, staged: Path) -> dict[str, str]:
        """Copy what stays as it is; return the hashes. Raises `BundleError` where the bundle is changed meanwhile."""
        plans = {name for sidecar, plan in self._plans.items() for name in (sidecar, plan.plan)}
        known: dict[str, str] = {}
        for name, digest in self.manifest.files.items():
            if name in plans | self._graphs or Path(name).parts[0] in _OF_THE_EXACT_ONE:
                continue
            (staged / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(self.bundle / name, staged / name)
            known[name] = sha256_file(staged / name)
            if known[name] != digest:
                raise self._changed(name)
        return known

    def _check_read(self, staged: Path) -> None:
        """Raise `BundleError` unless the UNets that were read are the manifest's still, and what is staged is baked with its neurons."""
        other = next((name for name in sorted(self._graphs) if _hash(self.bundle / name) != self.manifest.files.get(name)), None)
        if other is not None:
            raise self._changed(other)
        place, neurons = UNET_FOLDERS["baked"], NeuronSet.load(staged / "neurons.json")
        if "baked" in self.manifest.variants and not _silences(staged / place / "model.onnx", neurons):
            raise BundleError(f"{self.bundle}: {place}/model.onnx is not baked with the neurons of neurons.json: build the bundle again")

    def _changed(self, name: str) -> BundleError:
        return BundleError(f"{self.bundle} is being changed by another command ({name}): wait for it; nothing was written")

    def _compile(self, staged: Path) -> None:
        """Compile the UNets' TensorRT engines anew, where they can be made here; say so where they cannot."""
        flavours: dict[Flavour, list[str]] = {}
        for plan in self._plans.values():
            flavours.setdefault(plan.backend, []).append(Path(plan.model).parent.name)
        for flavour, places in flavours.items():
            settings = getattr(self.recipe, FLAVOURS[flavour].table)
            try:
                if settings is None:
                    raise MissingDependency("the bundle's recipe says nothing of them any more")
                check(flavour, settings)
                own = settings.model_copy(update={"components": tuple(places)})
                plan_stage(staged, [OnnxFile(f"{place}/model.onnx", "fp32") for place in places], own, flavour, staged, self.progress)
            except MissingDependency as error:
                self.progress.note(f"{flavour} engines of {', '.join(places)} are left out: {error}")

    def told(self, made: Manifest, started: float, *, skipped: bool) -> QuantizedBundle:
        """What came of it."""
        record = Quantized.read(self.output)
        assert record is not None
        plans = [plan.plan for plan in self._plans.values()]
        return QuantizedBundle(
            bundle=str(self.output),
            source=str(self.bundle),
            skipped=skipped,
            scheme=self.settings.scheme,
            modules=len(record.modules),
            kept=record.kept,
            errors=record.errors,
            integers=record.integers,
            ranges="read" if self.read else "found" if self.settings.activations else "none",
            sizes_bytes=record.sizes_bytes,
            engines=tuple(plan for plan in plans if plan in made.files),
            removed=tuple(plan for plan in plans if plan not in made.files),
            seconds=time.perf_counter() - started,
        )


def _hash(path: Path) -> str | None:
    return sha256_file(path) if path.is_file() else None


def _silences(model: Path, neurons: NeuronSet) -> bool:
    """Whether the rows of a set are zero in a graph; those that are not a layer's alone are not looked for."""
    try:
        weights = open_value_weights(open_graph(model), neurons.layers)
    except InputError:
        return True
    return not any(rows.any() for rows in rows_of(weights.values, neurons).values())

"""A new neuron set into a finished bundle, without an export: the baked UNet's value weights change in a copy of their file.

What was measured was measured with the former set. It is taken out of the bundle, which must not be shipped before it is
measured again. Knows files and weights; torch is imported only to measure, or for rows that are in the checkpoint alone.
"""

from __future__ import annotations

__all__ = ["Rebaked", "rebake"]

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from nemo_edge.backends.tensorrt.backend import compile_engine
from nemo_edge.backends.tensorrt.flavours import FLAVOURS, check
from nemo_edge.backends.tensorrt.plans import PlanFile, plans_of
from nemo_edge.bundle.manifest import GateResult, Manifest, amend, holding, measured_no_more, open_verified
from nemo_edge.bundle.policies import POLICIES, Policies
from nemo_edge.export.quantization.half import for_tensorrt, is_quantized
from nemo_edge.graph.onnxfile import open_graph
from nemo_edge.graph.valueweights import (
    SILENCED_ROWS,
    Rows,
    ValueWeights,
    load_rows,
    open_value_weights,
    rows_of,
    save_rows,
    silenced_values,
)
from nemo_edge.model.neurons import NeuronSet, read_neurons
from nemo_edge.recipe.components import UNET_FOLDERS
from nemo_edge.recipe.recipe import Recipe, kept_recipe
from nemo_edge.recipe.targets import PlanSettings
from nemo_edge.release._preflight import check_runs
from nemo_edge.system.clock import now
from nemo_edge.system.errors import BundleError, InputError, MissingDependency
from nemo_edge.system.files import explain, sha256_json
from nemo_edge.system.progress import Progress

_NEURONS = "neurons.json"
_OF_THE_FORMER_SET = ("report", "measurement.json")
"""What a bundle holds that says something of its neurons. Times do not depend on which neurons are silenced, and stay."""


class Rebaked(BaseModel):
    """A bundle with another neuron set."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    bundle: str
    changed: bool
    """Whether the set is another than the bundle had."""
    neurons: int
    """Neurons that are silenced now."""
    silenced: int
    """Of these, how many were not before."""
    restored: int
    """Neurons that have their weights back."""
    per_layer: dict[str, tuple[int, int, int]]
    """Of each value layer that changed: neurons before, and now, and how many of them are new."""
    removed: tuple[str, ...]
    """TensorRT engines of the former set that could be neither refitted nor compiled again here; they are gone."""
    measured: bool
    """Whether the bundle holds what was measured with these neurons."""
    gates: tuple[GateResult, ...]
    seconds: float
    """What the change took, without measuring."""

    @property
    def passed(self) -> bool:
        """Whether every gate passed, so that the bundle may be shipped."""
        return all(gate.passed for gate in self.gates)


def rebake(
    bundle: Path,
    neurons: Path,
    *,
    measure: bool = False,
    checkpoint: str | None = None,
    places: Recipe | None = None,
    progress: Progress | None = None,
) -> Rebaked:
    """Put a set, `neurons.json` or the official `.csv`, in the place of a bundle's own; with `measure`, examine the bundle with it.

    Every file is compared with its hash in the manifest first. Where the bundle does not keep the rows that come back, they are
    `checkpoint`'s. `places`, the recipe it was built by, says where what it was made from is now, where that is not where it was from
    the bundle. Raises `InputError` for a set of other layers and while another command writes to the bundle, `BundleError` for one that
    was changed.
    """
    with holding(bundle):
        checkpoint = checkpoint or (places.checkpoint.path if places else None)
        return _rebaked(bundle, neurons, checkpoint, places, progress or Progress(), measure=measure)


def _rebaked(bundle: Path, neurons: Path, checkpoint: str | None, places: Recipe | None, progress: Progress, *, measure: bool) -> Rebaked:
    started, manifest = time.perf_counter(), open_verified(bundle)
    if manifest.hardened is not None:
        raise InputError(f"the weights of {bundle} were hardened with its neurons silenced, so that none come back: build it again")
    before = NeuronSet.load(bundle / _NEURONS)
    after = read_neurons(neurons, before.layers)
    after.check_layers(before.layers, str(neurons))
    sources = None
    if measure:
        from nemo_edge.release._remeasure import measure_again, open_sources

        sources = open_sources(bundle, manifest, checkpoint, places)  # what is not there is found before the bundle is changed
        check_runs(sources.recipe)
    removed: tuple[str, ...] = ()
    if after != before:
        manifest, removed = _Change(bundle, manifest, before, after, checkpoint, places, progress).run()
    seconds = time.perf_counter() - started
    if sources is not None and not (after == before and manifest.measured):
        manifest = measure_again(bundle, sources, progress)
    return Rebaked(
        bundle=str(bundle),
        changed=after != before,
        neurons=len(after),
        silenced=len(after - before),
        restored=len(before - after),
        per_layer=_per_layer(before, after),
        removed=removed,
        measured=manifest.measured,
        gates=manifest.gates,
        seconds=seconds,
    )


def _per_layer(before: NeuronSet, after: NeuronSet) -> dict[str, tuple[int, int, int]]:
    rows = zip(before.layers, before.indices, after.indices, strict=True)
    return {layer.name: (len(was), len(now), len({*now} - {*was})) for layer, was, now in rows if was != now}


@dataclass(frozen=True)
class _Change:
    """One set in the place of another, in one bundle."""

    bundle: Path
    manifest: Manifest
    before: NeuronSet
    after: NeuronSet
    checkpoint: str | None
    places: Recipe | None
    progress: Progress

    def run(self) -> tuple[Manifest, tuple[str, ...]]:
        """Return the new manifest, and the engines that are gone."""
        baked = self._baked() if "baked" in self.manifest.variants else None
        removed: list[str] = []
        recipe = kept_recipe(self.manifest.recipe, self.bundle)
        policies = self._policies()

        def write(staged: Path) -> dict[str, str]:
            for name in _OF_THE_FORMER_SET:
                _remove(staged / name)
            self.after.save(staged / _NEURONS)
            if policies is not None:
                policies.save(staged / POLICIES)
            hashes = {}
            if baked is not None:
                hashes = self._write(baked, staged)
                plans = plans_of(self.bundle, self.manifest.files, [f"{UNET_FOLDERS['baked']}/model.onnx"])
                removed.extend(plan.plan for path, plan in plans.items() if not self._recompile(staged, path, plan, recipe))
            return hashes

        try:
            return amend(self.bundle, self._judged(), write), tuple(removed)
        except OSError as error:
            raise explain(error, Path(error.filename or self.bundle)) from error

    def _policies(self) -> Policies | None:
        """The bundle's policies with the new set; None where it has none, as those of older versions."""
        if POLICIES not in self.manifest.files:
            return None
        return Policies.load(self.bundle / POLICIES).of_neurons(self.after)

    def _judged(self) -> Manifest:
        """The manifest until the bundle is measured again."""
        gate = measured_no_more("the neurons were changed")
        changes = {
            "key": sha256_json([self.manifest.key, "rebake", self.after.content_hash()]),
            "neurons_hash": self.after.content_hash(),
            "gates": (gate,) if self.manifest.random_weights is None else self.manifest.gates,
            "passed": False,
            "created": now(),
        }
        return self.manifest.model_copy(update=changes)

    def _baked(self) -> tuple[ValueWeights, Rows, Rows | None]:
        """The baked graph's weights, those that it gets, and what is baked out then, as far as it is known."""
        weights = self._open("baked")
        self._check_room(weights)
        known = rows_of(weights.values, self.before)
        if any(rows.any() for rows in known.values()):
            raise BundleError(f"{self.bundle}: unet/model.onnx is not baked with the neurons of neurons.json: build the bundle again")
        originals = self._originals()
        whole = {key: np.array(rows) for key, rows in weights.values.items()}
        for key, rows in _chosen(whole, self.before) if originals is not None else ():
            own = originals.get(key) if originals is not None else None
            if own is None or own.dtype != whole[key].dtype or own.shape != known[key].shape:
                raise BundleError(f"{self.bundle}: the rows that are kept of {key} are not those of neurons.json: build the bundle again")
            whole[key][rows] = own
        kept = rows_of(whole, self.after) if originals is not None else None
        return weights, silenced_values(whole, self.after), kept

    def _write(self, baked: tuple[ValueWeights, Rows, Rows | None], staged: Path) -> dict[str, str]:
        """Write the baked graph and what is baked out of it; return the hashes of the large files.

        Raises `BundleError` for one that was changed since it was read.
        """
        (weights, values, kept), folder = baked, UNET_FOLDERS["baked"]
        hashes = weights.write(values, staged / folder, {"nemo_edge.neurons": self.after.content_hash()})
        for name, (former, _) in hashes.items():
            if former != self.manifest.files.get(f"{folder}/{name}"):
                raise BundleError(f"{self.bundle} was changed since it was built ({folder}/{name}): build it again; nothing was written")
        if kept is not None and SILENCED_ROWS in self.manifest.files:
            save_rows(staged / SILENCED_ROWS, kept)
        return {f"{folder}/{name}": new for name, (_, new) in hashes.items()}

    def _open(self, variant: str) -> ValueWeights:
        """The value weights of a variant's graph."""
        return open_value_weights(open_graph(self.bundle / UNET_FOLDERS[variant] / "model.onnx"), self.before.layers)

    def _originals(self) -> Rows | None:
        """The rows of the former set as they were: what the bundle keeps, else those of its masked graph, else the checkpoint's.

        None where nobody has them and none of them comes back.
        """
        if SILENCED_ROWS in self.manifest.files:
            return load_rows(self.bundle / SILENCED_ROWS)
        missing = len(self.before - self.after)
        if "masked" in self.manifest.variants and missing:
            return rows_of(self._open("masked").values, self.before)
        if not missing:
            return None
        if self.checkpoint is None:
            raise InputError(f"{self.bundle} does not keep the weights of the {missing} neurons that come back: pass --checkpoint")
        from nemo_edge.release._remeasure import original_rows

        return original_rows(self.bundle, self.manifest, self.before, self.checkpoint, self.places)

    def _check_room(self, weights: ValueWeights) -> None:
        needed = sum((self.bundle / UNET_FOLDERS["baked"] / name).stat().st_size for name in weights.data)
        free = shutil.disk_usage(self.bundle.parent).free
        if free < needed:
            raise InputError(
                f"a copy of the UNet's weights needs {needed / 1e9:.1f} GB beside {self.bundle}, where {free / 1e9:.1f} GB are free"
            )

    def _recompile(self, staged: Path, sidecar: str, plan: PlanFile, recipe: Recipe) -> bool:
        """Put an engine of the new weights in the place of one of the former; where it cannot be made here, say so and take that out."""
        settings: PlanSettings | None = getattr(recipe, FLAVOURS[plan.backend].table)
        try:
            if settings is None:
                raise MissingDependency("the recipe says nothing of it any more")
            check(plan.backend, settings)
            graph = open_graph(staged / plan.model)
            if plan.backend == "tensorrt" and not is_quantized(graph) and self._refit(staged, plan):
                return True
            with for_tensorrt(graph, plan.dtype, staged) as (source, dtype):
                wanted = (plan.component, plan.model, plan.backend, settings, plan.profiles, dtype, self.progress)
                made = compile_engine(staged, *wanted, source=source)
            if made.plan == plan.plan:
                return True
            raise MissingDependency(f"it is for other GPUs than what is compiled here, {made.plan}")
        except MissingDependency as error:
            self.progress.note(f"{plan.plan} is of the former neurons, and is taken out: {error}")
            for name in (sidecar, plan.plan):
                (staged / name).unlink()
            return False

    def _refit(self, staged: Path, plan: PlanFile) -> bool:
        from nemo_edge.backends.tensorrt.refit import refit

        return refit(staged, self.bundle, plan, self.after.layers, self.progress)


def _chosen(values: Rows, neurons: NeuronSet) -> list[tuple[str, list[int]]]:
    """The tensors of a set's layers, and which of their rows are the set's."""
    pairs = [(f"{layer.name}.{kind}", list(rows)) for layer, rows in neurons.items() if rows for kind in ("weight", "bias")]
    return [(key, rows) for key, rows in pairs if key in values]


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)

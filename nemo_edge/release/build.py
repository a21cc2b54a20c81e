"""From a recipe to a bundle: the stages in order, each skipped when what it is made from has not changed.

Stages leave their results in `.<bundle>.build/<stage>-<key>/` beside the bundle; the key is a hash of all that went in. A
localization that was interrupted goes on where it stopped, any other stage begins again; a bundle appears whole, by one rename.
"""

from __future__ import annotations

__all__ = ["BuildResult", "Plan", "build", "lock", "plan", "weights_folder"]

import fcntl
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from nemo_edge import __version__
from nemo_edge.bundle.manifest import GateResult, Manifest, check_output, copy_tree, open_bundle, publish, staging, verify
from nemo_edge.export.production import OnnxFile, compile_stage, export_stage, is_large, neurons_stage, plan_stage
from nemo_edge.model.architectures import configurations
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.recipe.recipe import Recipe, portable
from nemo_edge.recipe.targets import FLAVOUR_OF
from nemo_edge.release._inputs import Ingredients, bundle_key, ingredients, stage_keys, used_versions
from nemo_edge.release._preflight import check_unmade, preflight
from nemo_edge.system.errors import BundleError, InputError
from nemo_edge.system.files import explain, sha256_file, sha256_json, write_atomically
from nemo_edge.system.processes import rest, run_apart
from nemo_edge.system.progress import Progress


class Plan(BaseModel):
    """What a build would do: the key of each stage, and whether its result is there already."""

    model_config = ConfigDict(frozen=True)

    name: str
    output: str
    key: str
    up_to_date: bool
    """The bundle is there, made from exactly this, with every file as it was."""
    stages: dict[str, str]
    done: tuple[str, ...]


class BuildResult(BaseModel):
    """The bundle that is there now."""

    model_config = ConfigDict(frozen=True)

    bundle: str
    skipped: bool
    """No work was done: the bundle was up to date."""
    manifest: Manifest

    @property
    def passed(self) -> bool:
        """Whether every gate passed; one of random weights has none to pass."""
        return self.manifest.passed or self.manifest.random_weights is not None


def plan(recipe: Recipe) -> Plan:
    """Read the inputs, hash them, and say what would run. Raises `InputError` for what cannot be used."""
    check_output(recipe.output)
    if recipe.random_weights is not None and not weights_folder(recipe).is_dir():
        check_unmade(recipe, Progress())
        return Plan(name=recipe.name, output=str(recipe.output), key="", up_to_date=False, stages={"random weights": ""}, done=())
    recipe = _with_weights(recipe, Progress())
    inputs = ingredients(recipe)
    preflight(recipe, inputs)
    keys = stage_keys(recipe, inputs)
    key = bundle_key(recipe, keys)
    done = tuple(stage for stage, key in keys.items() if (_folder(recipe, stage, key) / "stage.json").is_file())
    return Plan(
        name=recipe.name,
        output=str(recipe.output),
        key=key,
        up_to_date=_up_to_date(recipe, key),
        stages=keys,
        done=done,
    )


def build(recipe: Recipe, progress: Progress | None = None) -> BuildResult:
    """Build the bundle, or find it up to date. A failed gate does not stop the bundle, it marks it.

    Raises `InputError` for inputs that cannot be used and for too little memory, `MissingDependency` for a provider or a compiler
    that is not here, `ExportError` for a graph that does not agree with eager.
    """
    check_output(recipe.output)
    progress = progress or Progress()
    try:
        with lock(recipe.output):
            recipe = _with_weights(recipe, progress)
            inputs = ingredients(recipe)
            keys = stage_keys(recipe, inputs)
            if _up_to_date(recipe, bundle_key(recipe, keys)):
                return BuildResult(bundle=str(recipe.output), skipped=True, manifest=open_bundle(recipe.output))
            preflight(recipe, inputs)
            manifest = _Build(recipe, inputs, keys, progress).run()
    except OSError as error:
        raise explain(error, Path(error.filename or recipe.output)) from error
    return BuildResult(bundle=str(recipe.output), skipped=False, manifest=manifest)


def weights_folder(recipe: Recipe) -> Path:
    """Return where the random weights of a recipe are made, and found again."""
    assert recipe.random_weights is not None
    name, seed = recipe.random_weights.architecture, recipe.random_weights.seed
    key = sha256_json([name, configurations(name), seed])
    return recipe.output.parent / f".{recipe.output.name}.build" / f"weights-{key[:12]}"


def _with_weights(recipe: Recipe, progress: Progress) -> Recipe:
    """The recipe with its random weights as its checkpoint, where it wants some; they are made unless they are there."""
    if recipe.random_weights is None:
        return recipe
    wanted, folder = recipe.random_weights, weights_folder(recipe)
    if not folder.is_dir():
        check_unmade(recipe, progress)
    run_apart(
        "make random weights", progress, "nemo_edge.release.random_weights.write_random", wanted.architecture, folder, "fp16", wanted.seed
    )
    return recipe.model_copy(update={"checkpoint": recipe.checkpoint.model_copy(update={"path": str(folder)})})


@contextmanager
def lock(output: Path) -> Iterator[None]:
    """Hold the build's cache for this process. Raises `InputError` while another build of the same bundle runs."""
    folder = output.parent / f".{output.name}.build"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"another build of {output} is running: wait for it, or give another output") from error
        yield


def _folder(recipe: Recipe, stage: str, key: str) -> Path:
    return recipe.output.parent / f".{recipe.output.name}.build" / f"{stage}-{key[:12]}"


def _up_to_date(recipe: Recipe, key: str) -> bool:
    try:
        return open_bundle(recipe.output).key == key and verify(recipe.output).passed
    except BundleError:
        return False


class _Build:
    """One run of the stages that are not done; the checkpoint is opened by the first that needs it."""

    def __init__(self, recipe: Recipe, inputs: Ingredients, keys: dict[str, str], progress: Progress) -> None:
        self.recipe, self.inputs, self.keys, self.progress = recipe, inputs, keys, progress
        self._checkpoint: Any = None
        self._hashes: dict[str, str] = {}
        """Of files that were taken from a stage into the bundle as they are."""

    def run(self) -> Manifest:
        random = self.recipe.random_weights is not None
        calibrated = [] if random else [self._stage("calibrate", self._calibrate)]
        localized = self._stage("localize", self._draw_neurons if random else partial(self._localize, *calibrated))
        policies = [self._stage("policies", partial(self._make_policies, localized))] if "policies" in self.keys else []
        neurons = NeuronSet.load(localized / "neurons.json")
        exported = self._stage("export", partial(self._export, neurons))
        with staging(self.recipe.output) as staged:
            for stage in (exported, *calibrated, localized, *policies):
                self._take(stage, staged, leave=("exported.json",))
            files = [OnnxFile(file["model"], file["dtype"]) for file in json.loads((exported / "exported.json").read_text())]
            self._check_compiled(files)
            for table in (t for t in FLAVOUR_OF if t in self.keys):
                self._take(self._stage(table, partial(self._compile, table, staged, files)), staged)
            compile_stage(staged, self.recipe.engine, files)
            manifest = self._timed(staged, neurons.content_hash()) if random else self._judged(staged, neurons.content_hash(), *calibrated)
            return publish(staged, self.recipe.output, manifest, self._hashes)

    def _judged(self, staged: Path, neurons: str, calibrated: Path) -> Manifest:
        """Measure the engines, judge them, and write the report of a bundle that is being made."""
        from nemo_edge.bundle.policies import policies_in
        from nemo_edge.localization.calibration import Calibration
        from nemo_edge.localization.groups import groups_in
        from nemo_edge.localization.localizer import read_results
        from nemo_edge.measure.gates import judge
        from nemo_edge.report.evidence import Evidence
        from nemo_edge.report.folder import write_report

        by_prompt = {result.prompt: result for result in read_results(staged / "localization.jsonl")}
        localizations = [by_prompt[prompt.text] for prompt in self.inputs.memorized]
        groups = groups_in(staged)
        measurement = self._measure(staged, localizations, Calibration.load(calibrated / "calibration.safetensors"))
        latency = self._time(staged) if self.recipe.latency is not None else None
        gates = judge(measurement, localizations, self.recipe, latency, groups)
        manifest = self._manifest(staged, neurons, measurement.threshold, gates)
        write_report(staged / "report", Evidence.of(manifest, measurement, localizations, latency, groups, policies_in(staged)))
        return manifest

    def _timed(self, staged: Path, neurons: str) -> Manifest:
        """Time the engines of a bundle of random weights where the recipe says so; nothing else can be measured on them."""
        if self.recipe.latency is not None:
            self._time(staged)
        assert self.recipe.random_weights is not None
        detail = f"{self.recipe.random_weights.name} with random weights: for measuring, not for shipping"
        gate = GateResult(name="random_weights", limit=0, value=1, passed=False, detail=detail)
        return self._manifest(staged, neurons, None, [gate])

    @property
    def checkpoint(self) -> Any:
        """The checkpoint in float32, opened by the first stage that needs it."""
        if self._checkpoint is None:
            from nemo_edge.model.checkpoint import open_checkpoint
            from nemo_edge.sampling.loop import check_size

            source = self.recipe.checkpoint
            self._checkpoint = open_checkpoint(source.path, allow_pickle=source.allow_pickle, device=source.device)
            free = [name for name in ("height", "width") if not getattr(self.recipe.export, name)]
            check_size(self._checkpoint.config, self.recipe.sampling, free)
        return self._checkpoint

    def _stage(self, name: str, work: Callable[[Path], object]) -> Path:
        """Return the folder of a stage's results, made now unless they are there with the hashes they were left with."""
        folder = _folder(self.recipe, name, self.keys[name])
        record = folder / "stage.json"
        if record.is_file() and _intact(folder, json.loads(record.read_text())):
            self.progress.note(f"{name}: nothing has changed")
            return folder
        if record.is_file():
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        work(folder)
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        write_atomically(record, json.dumps({p.relative_to(folder).as_posix(): sha256_file(p) for p in files}, indent=1) + "\n")
        return folder

    def _take(self, stage: Path, staged: Path, leave: Sequence[str] = ()) -> None:
        """Copy the results of a stage into a bundle that is being made."""
        left = ("stage.json", *leave)
        copy_tree(stage, staged, leave=left)
        hashes = json.loads((stage / "stage.json").read_text())
        self._hashes |= {name: digest for name, digest in hashes.items() if Path(name).parts[0] not in left}

    def _calibrate(self, folder: Path) -> None:
        from nemo_edge.localization import stages

        stages.calibrate_stage(self.checkpoint, self.recipe, self.inputs.general, folder, self.progress)

    def _localize(self, calibrated: Path, folder: Path) -> None:
        from nemo_edge.localization import stages
        from nemo_edge.localization.calibration import Calibration

        found = Calibration.load(calibrated / "calibration.safetensors")
        stages.localize_stage(self.checkpoint, found, self.recipe, self.inputs.memorized, folder, self.progress)

    def _make_policies(self, localized: Path, folder: Path) -> None:
        from nemo_edge.release.bundlepolicies import policies_stage

        general = [prompt.text for prompt in self.inputs.general]
        policies_stage(self.checkpoint, self.inputs.memorized, general, localized, folder, self.progress)

    def _draw_neurons(self, folder: Path) -> None:
        assert self.recipe.random_weights is not None
        neurons_stage(self.recipe.checkpoint, self.recipe.random_weights, self.recipe.localization.layers, folder, self.progress)

    def _export(self, neurons: NeuronSet, folder: Path) -> None:
        if is_large(self.recipe.checkpoint):
            self._checkpoint = None  # its memory is for the processes that export
        shutil.rmtree(folder)
        folder.mkdir()
        provenance = {"version": __version__, "checkpoint": sha256_json(self.inputs.checkpoint)}
        exported = export_stage(self.recipe.checkpoint, self.recipe.export, neurons, folder, provenance, self.progress)
        write_atomically(folder / "exported.json", json.dumps([e.model_dump(mode="json") for e in exported], indent=1) + "\n")

    def _check_compiled(self, files: Sequence[OnnxFile]) -> None:
        try:
            self.recipe.check_compiled([file.place for file in files])
        except ValueError as error:
            raise InputError(str(error)) from error

    def _compile(self, table: str, staged: Path, files: Sequence[OnnxFile], folder: Path) -> None:
        rest()  # the compiler needs the memory, and none of the libraries
        shutil.rmtree(folder)
        folder.mkdir()
        plan_stage(staged, files, getattr(self.recipe, table), FLAVOUR_OF[table], folder, self.progress)

    def _measure(self, staged: Path, localizations: Any, calibration: Any) -> Any:
        """Examine the engines of a bundle that is being made; its measurement and the pictures of its report are put into it."""
        from nemo_edge.measure.examination import Subject, examine
        from nemo_edge.measure.mitigation import Measurement
        from nemo_edge.report.thumbnails import store_pictures, worst_first

        recipe, inputs = self.recipe, self.inputs

        def work(folder: Path) -> None:
            neurons = NeuronSet.load(staged / "neurons.json")
            subject = Subject(self.checkpoint, staged, recipe, inputs.memorized, inputs.held_out, localizations, calibration, neurons)
            examine(subject, folder, self.progress)

        measured = self._stage("measure", work)
        self._take(measured, staged, leave=("pictures",))
        measurement = Measurement.read(staged)
        store_pictures(measured / "pictures", staged / "report" / "pictures", worst_first(measurement))
        return measurement

    def _time(self, staged: Path) -> Any:
        """Time the engines of a bundle that is being made; the times are put into it."""
        from nemo_edge.measure.bench import bench, runnables
        from nemo_edge.measure.latency import Latency

        recipe, settings = self.recipe, self.recipe.latency
        assert settings is not None

        def work(folder: Path) -> None:
            self._checkpoint = None  # its memory is for the processes that are timed
            found = bench(runnables(staged, recipe, settings, recipe.checkpoint.path), recipe.sampling, settings, self.progress)
            write_atomically(folder / "latency.json", found.model_dump_json(indent=1) + "\n")

        self._take(self._stage("latency", work), staged)
        return Latency.model_validate_json((staged / "latency.json").read_bytes())

    def _manifest(self, staged: Path, neurons: str, threshold: float | None, gates: Sequence[GateResult]) -> Manifest:
        inputs, recipe = self.inputs, self.recipe
        return Manifest(
            name=recipe.name,
            family=json.loads((staged / "model_index.json").read_text())["_class_name"],
            key=bundle_key(recipe, self.keys),
            variants=recipe.export.variants,
            checkpoint=inputs.checkpoint,
            random_weights=recipe.random_weights.name if recipe.random_weights else None,
            prompts=inputs.prompts,
            recipe=portable(recipe).model_dump(mode="json"),
            versions=used_versions(inputs.machine, recipe),
            machine=inputs.machine,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            neurons_hash=neurons,
            threshold=threshold,
            gates=tuple(gates),
            passed=all(gate.passed for gate in gates),
            files={},
        )


def _intact(folder: Path, files: dict[str, str]) -> bool:
    return all((folder / name).is_file() and sha256_file(folder / name) == digest for name, digest in files.items())

"""From a recipe to a bundle: the stages in order, each skipped when what it is made from has not changed.

Stages leave their results in `.<bundle>.build/<stage>-<key>/` beside the bundle; the key is a hash of all that went in. A
localization that was interrupted goes on where it stopped, any other stage begins again; a bundle appears whole, by one rename.
"""

from __future__ import annotations

__all__ = ["BuildResult", "Plan", "build", "plan"]

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from nemo_edge import __version__
from nemo_edge.bundle import Manifest, check_output, copy_tree, open_bundle, publish, staging, verify
from nemo_edge.environment import USED, Machine, machine
from nemo_edge.errors import BundleError, InputError
from nemo_edge.files import checkpoint_hashes, explain, sha256_file, sha256_json, write_atomically
from nemo_edge.progress import Progress
from nemo_edge.prompts import Prompt, read_prompts
from nemo_edge.recipe import Recipe


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
        """Whether every gate passed."""
        return self.manifest.passed


@dataclass(frozen=True)
class _Inputs:
    """The recipe's files, read and hashed."""

    memorized: list[Prompt]
    general: list[Prompt]
    held_out: list[Prompt]
    checkpoint: dict[str, str]
    prompts: dict[str, str]
    """Path, relative to the folder of the memorized prompts, and sha256 of every file that the recipe names."""
    statistics: str | None
    machine: Machine


def plan(recipe: Recipe) -> Plan:
    """Read the inputs, hash them, and say what would run. Raises `InputError` for what cannot be used."""
    check_output(recipe.output)
    inputs = _inputs(recipe)
    _preflight(recipe, inputs)
    keys = _keys(recipe, inputs)
    key = _bundle_key(recipe, keys)
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

    Raises `InputError` for inputs that cannot be used, `MissingDependency` for a provider that is not here, `ExportError`
    for a graph that does not agree with eager.
    """
    check_output(recipe.output)
    inputs = _inputs(recipe)
    keys = _keys(recipe, inputs)
    if _up_to_date(recipe, _bundle_key(recipe, keys)):
        return BuildResult(bundle=str(recipe.output), skipped=True, manifest=open_bundle(recipe.output))
    _preflight(recipe, inputs)
    try:
        with _lock(recipe):
            manifest = _Build(recipe, inputs, keys, progress or Progress()).run()
    except OSError as error:
        raise explain(error, Path(error.filename or recipe.output)) from error
    return BuildResult(bundle=str(recipe.output), skipped=False, manifest=manifest)


def _preflight(recipe: Recipe, inputs: _Inputs) -> None:
    """Find out now, not after hours of work, what the last stages would stumble over."""
    from nemo_edge.backends.onnxruntime import probe_provider
    from nemo_edge.bench import check_compiler
    from nemo_edge.checkpoint import check_files
    from nemo_edge.replication import load_picture, load_sscd

    probe_provider(recipe.engine.provider)
    if recipe.latency is not None:
        check_compiler(recipe.latency)
    check_files(recipe.checkpoint.path, allow_pickle=recipe.checkpoint.allow_pickle)
    for prompt in inputs.memorized:
        if prompt.image:
            load_picture(prompt.image, (8, 8))
    if recipe.fidelity.sscd:
        load_sscd(recipe.fidelity.sscd)


@contextmanager
def _lock(recipe: Recipe) -> Iterator[None]:
    """Hold the build's cache for this process. Raises `InputError` while another build of the same bundle runs."""
    folder = recipe.output.parent / f".{recipe.output.name}.build"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"another build of {recipe.output} is running: wait for it, or give another output") from error
        yield


def _inputs(recipe: Recipe) -> _Inputs:
    memorized = read_prompts(recipe.prompts.memorized, recipe.prompts.limit)
    general = read_prompts(recipe.prompts.general)
    wanted = recipe.calibration.prompts + recipe.fidelity.general_prompts
    if len(general) < 3:
        raise InputError(f"prompts file {recipe.prompts.general} holds {len(general)} general prompts, at least 3 are needed")
    held_out = general[-min(recipe.fidelity.general_prompts, max(1, len(general) - 2)) :]
    used = general[: len(general) - len(held_out)] if len(general) < wanted else general[: recipe.calibration.prompts]
    files = [recipe.prompts.memorized, recipe.prompts.general]
    files += [p for p in (recipe.calibration.statistics, recipe.fidelity.sscd) if p is not None]
    missing = next((p for p in files if not p.is_file()), None)
    if missing:
        raise InputError(f"{missing}, which the recipe names, does not exist")
    files += [p.image for p in memorized if p.image]
    base = recipe.prompts.memorized.parent
    hashes = {Path(os.path.relpath(p, base)).as_posix(): sha256_file(p) for p in files}
    statistics = sha256_file(recipe.calibration.statistics) if recipe.calibration.statistics else None
    return _Inputs(memorized, used, held_out, _checkpoint_hashes(recipe.checkpoint.path), hashes, statistics, machine())


def _checkpoint_hashes(path: str) -> dict[str, str]:
    hashes = checkpoint_hashes(path)
    if not hashes:
        raise InputError(f"checkpoint {path} holds no files of a model: give a diffusers folder, a .safetensors file or a hub id")
    return hashes


def _versions(here: Machine) -> dict[str, str]:
    """The versions that a build's results depend on, and not those of backends it does not use."""
    return {name: version for name, version in here.versions.items() if name in USED}


def _keys(recipe: Recipe, inputs: _Inputs) -> dict[str, str]:
    """A hash for each stage of everything its result depends on, the stages before it included."""
    general, memorized = [p.text for p in inputs.general], [p.text for p in inputs.memorized]
    r = recipe.model_dump(mode="json")
    calibrate = sha256_json([_versions(inputs.machine), inputs.checkpoint, general, r["calibration"], inputs.statistics, r["localization"]])
    localize = sha256_json([calibrate, memorized, [p.url for p in inputs.memorized]])
    export = sha256_json([localize, r["export"]])
    held_out = [p.text for p in inputs.held_out]
    measure = sha256_json([export, r["engine"], inputs.prompts, held_out, r["sampling"], r["fidelity"]])
    keys = {"calibrate": calibrate, "localize": localize, "export": export, "measure": measure}
    if recipe.latency is not None:
        state: Any = {"gpus": {"__all__": {"clock_mhz", "temperature_c", "throttled_by"}}, "versions": True}
        here = inputs.machine.model_dump(mode="json", exclude=state)
        keys["latency"] = sha256_json([export, r["engine"], r["sampling"], r["latency"], here])
    return keys


def _bundle_key(recipe: Recipe, keys: dict[str, str]) -> str:
    """A hash of all that the bundle depends on: those of its last stages, its name, and the gates, which cost no work to judge."""
    return sha256_json([keys["measure"], keys.get("latency"), recipe.name, recipe.gates.model_dump(mode="json")])


def _folder(recipe: Recipe, stage: str, key: str) -> Path:
    return recipe.output.parent / f".{recipe.output.name}.build" / f"{stage}-{key[:12]}"


def _up_to_date(recipe: Recipe, key: str) -> bool:
    try:
        return open_bundle(recipe.output).key == key and verify(recipe.output).passed
    except BundleError:
        return False


class _Build:
    """One run of the stages that are not done; the checkpoint is opened by the first that needs it."""

    def __init__(self, recipe: Recipe, inputs: _Inputs, keys: dict[str, str], progress: Progress) -> None:
        self.recipe, self.inputs, self.keys, self.progress = recipe, inputs, keys, progress
        self._checkpoint: Any = None

    def run(self) -> Manifest:
        from nemo_edge import stages
        from nemo_edge.calibration import Calibration
        from nemo_edge.export import Exported
        from nemo_edge.localization import read_results
        from nemo_edge.neurons import NeuronSet

        recipe, inputs = self.recipe, self.inputs
        calibrated = self._stage(
            "calibrate", lambda folder: stages.calibrate_stage(self.checkpoint, recipe, inputs.general, folder, self.progress)
        )
        calibration = Calibration.load(calibrated / "calibration.safetensors")
        assert calibration.threshold is not None
        threshold = calibration.threshold.value
        localized = self._stage(
            "localize",
            lambda folder: stages.localize_stage(
                self.checkpoint, calibration.statistics, threshold, recipe, inputs.memorized, folder, self.progress
            ),
        )
        localizations = self._of_prompts(read_results(localized / "localization.jsonl"))
        neurons = NeuronSet.load(localized / "neurons.json")
        exported = self._stage("export", lambda folder: self._export(neurons, folder))
        records = [Exported.model_validate(e) for e in json.loads((exported / "exported.json").read_text())]
        with staging(recipe.output) as staged:
            for source in (exported, calibrated, localized):
                copy_tree(source, staged, leave=("stage.json", "exported.json"))
            stages.compile_stage(staged, recipe, records)

            measurement = self._measure(staged, localizations, calibration)
            latency = self._time(staged) if recipe.latency is not None else None
            return self._assemble(staged, neurons, localizations, measurement, latency)

    @property
    def checkpoint(self) -> Any:
        if self._checkpoint is None:
            from nemo_edge.checkpoint import open_checkpoint
            from nemo_edge.sampling import check_size

            self._checkpoint = open_checkpoint(self.recipe.checkpoint.path, allow_pickle=self.recipe.checkpoint.allow_pickle)
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

    def _of_prompts(self, results: Sequence[Any]) -> list[Any]:
        by_prompt = {r.prompt: r for r in results}
        return [by_prompt[p.text] for p in self.inputs.memorized]

    def _export(self, neurons: Any, folder: Path) -> None:
        from nemo_edge import stages

        shutil.rmtree(folder)
        folder.mkdir()
        provenance = {"version": __version__, "checkpoint": sha256_json(self.inputs.checkpoint)}
        exported = stages.export_stage(self.checkpoint, self.recipe.export, neurons, folder, provenance, self.progress)
        write_atomically(folder / "exported.json", json.dumps([e.model_dump(mode="json") for e in exported], indent=1) + "\n")

    def _measure(self, staged: Path, localizations: Any, calibration: Any) -> Any:
        """Examine the engines of a bundle that is being made; its measurement and the pictures of its report are put into it."""
        from nemo_edge.examination import Subject, examine
        from nemo_edge.mitigation import Measurement
        from nemo_edge.report import store_pictures, worst_first

        recipe, inputs = self.recipe, self.inputs

        def work(folder: Path) -> None:
            subject = Subject(self.checkpoint, staged, recipe, inputs.memorized, inputs.held_out, localizations, calibration)
            examine(subject, folder, self.progress)

        measured = self._stage("measure", work)
        copy_tree(measured, staged, leave=("stage.json", "pictures"))
        measurement = Measurement.read(staged)
        store_pictures(measured / "pictures", staged / "report" / "pictures", worst_first(measurement))
        return measurement

    def _time(self, staged: Path) -> Any:
        """Time the engines of a bundle that is being made; the times are put into it."""
        from nemo_edge.bench import bench, runnables
        from nemo_edge.latency import Latency

        recipe, settings = self.recipe, self.recipe.latency
        assert settings is not None

        def work(folder: Path) -> None:
            self._checkpoint = None  # its memory is for the processes that are timed
            found = bench(runnables(staged, recipe, settings, recipe.checkpoint.path), recipe.sampling, settings, self.progress)
            write_atomically(folder / "latency.json", found.model_dump_json(indent=1) + "\n")

        copy_tree(self._stage("latency", work), staged, leave=("stage.json",))
        return Latency.model_validate_json((staged / "latency.json").read_bytes())

    def _assemble(self, staged: Path, neurons: Any, localizations: Any, measurement: Any, latency: Any) -> Manifest:
        from nemo_edge.gates import judge
        from nemo_edge.report import Evidence, write_report

        inputs, recipe = self.inputs, self.recipe
        gates = judge(measurement, localizations, recipe, latency)
        manifest = Manifest(
            name=recipe.name,
            family=json.loads((staged / "model_index.json").read_text())["_class_name"],
            key=_bundle_key(recipe, self.keys),
            variants=recipe.export.variants,
            checkpoint=inputs.checkpoint,
            prompts=inputs.prompts,
            recipe=recipe.model_dump(mode="json"),
            versions=_versions(inputs.machine),
            machine=inputs.machine,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            neurons_hash=neurons.content_hash(),
            threshold=measurement.threshold,
            gates=gates,
            passed=all(gate.passed for gate in gates),
            files={},
        )
        write_report(staged / "report", Evidence.of(manifest, measurement, localizations, latency))
        return publish(staged, recipe.output, manifest)


def _intact(folder: Path, files: dict[str, str]) -> bool:
    return all((folder / name).is_file() and sha256_file(folder / name) == digest for name, digest in files.items())

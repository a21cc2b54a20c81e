"""A finished bundle once more: timed, judged by other gates, its report written again. Nothing is measured twice.

What changes in a bundle changes all at once; every change ends with its gates judged and its report written anew.
"""

from __future__ import annotations

__all__ = ["Timed", "Verdict", "check_outputs", "judge_again", "report_again", "summarize", "time_again"]

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from nemo_edge.bundle.manifest import GateResult, Manifest, amend, holding, open_verified
from nemo_edge.measure.bench import bench, runnables
from nemo_edge.measure.latency import FEWEST_ROUNDS, Latency
from nemo_edge.recipe.recipe import Recipe, anchored, kept_recipe
from nemo_edge.recipe.settings import CheckpointSettings, GateSettings, LatencySettings
from nemo_edge.release._judgement import judged, write_evidence
from nemo_edge.report.evidence import Evidence
from nemo_edge.report.junit import junit_xml
from nemo_edge.report.summary import summary_markdown
from nemo_edge.system.errors import InputError
from nemo_edge.system.files import append, check_file, checkpoint_hashes, sha256_json, write_atomically
from nemo_edge.system.memory import check_drawing
from nemo_edge.system.progress import Progress


class Verdict(BaseModel):
    """A bundle under some gates."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    bundle: str
    gates: tuple[GateResult, ...]
    written: bool
    """Whether the bundle holds this verdict now."""

    @property
    def passed(self) -> bool:
        """Whether every gate passed."""
        return all(gate.passed for gate in self.gates)


class Timed(BaseModel):
    """Times that were taken, and the bundle's verdict with them; no gates where the bundle was left alone."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    bundle: str
    latency: Latency
    gates: tuple[GateResult, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every gate passed."""
        return all(gate.passed for gate in self.gates)


def judge_again(bundle: Path, gates: GateSettings, *, write: bool, junit: Path | None = None, summary: Path | None = None) -> Verdict:
    """Judge a bundle by other gates, from what was measured on it; with `write` the bundle holds the new verdict.

    Raises `BundleError` for a bundle that was changed, or holds no measurement, `InputError` for gates on times it has not.
    """
    check_outputs(bundle, junit, summary)
    with holding(bundle) if write else nullcontext():
        return _judged_again(bundle, gates, write=write, junit=junit, summary=summary)


def _judged_again(bundle: Path, gates: GateSettings, *, write: bool, junit: Path | None, summary: Path | None) -> Verdict:
    manifest = open_verified(bundle)
    evidence = Evidence.read(bundle)
    taken = evidence.latency.settings.model_dump() if evidence.latency else None
    try:
        recipe = Recipe.model_validate({**manifest.recipe, "latency": manifest.recipe["latency"] or taken, "gates": gates.model_dump()})
    except ValidationError as error:
        why = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise InputError(f"{bundle} cannot be judged so: {why}; `nemo-edge bench` takes a bundle's times") from error
    manifest, evidence = _judged(manifest, recipe, evidence)
    if write:
        _put(bundle, manifest, evidence)
    if junit is not None:
        write_atomically(junit, junit_xml(manifest.name, manifest.gates))
    if summary is not None:
        append(summary, summary_markdown(evidence))
    return Verdict(bundle=str(bundle), gates=manifest.gates, written=write)


def time_again(
    bundle: Path, settings: LatencySettings | None, checkpoint: str | None = None, out: Path | None = None, progress: Progress | None = None
) -> Timed:
    """Time a bundle's engines, and eager where its checkpoint is here; the bundle then holds the times, unless `out` does.

    `settings` are the recipe's, or the defaults, where they are not given. Raises `InputError` for a checkpoint the bundle is
    not made from, for settings its graphs do not take, and for times a bundle cannot be judged by; one of random weights is
    not judged.
    """
    check_outputs(bundle, out)
    with holding(bundle) if out is None else nullcontext():
        return _timed(bundle, settings, checkpoint, out, progress)


def _timed(bundle: Path, settings: LatencySettings | None, checkpoint: str | None, out: Path | None, progress: Progress | None) -> Timed:
    manifest = open_verified(bundle)
    recipe = kept_recipe(manifest.recipe, bundle)
    wanted = settings or recipe.latency or LatencySettings()
    try:
        Recipe.model_validate({**manifest.recipe, "latency": wanted.model_dump()})
    except ValidationError as error:
        raise InputError(f"{bundle} cannot be timed so: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from error
    for height, width in wanted.sizes:
        check_drawing(height, width, max(wanted.batches))
    judged = out is None and manifest.random_weights is None
    if judged and ("unet" not in wanted.targets or wanted.runs < FEWEST_ROUNDS):
        raise InputError(f"a bundle is judged by {FEWEST_ROUNDS} rounds of its UNet or more: pass --out to keep these times elsewhere")
    evidence = Evidence.read(bundle) if judged else None  # a bundle that holds none is refused before the work
    source = anchored(recipe, bundle).checkpoint.model_copy(update={"path": checkpoint} if checkpoint else {})
    weights = _weights(manifest, source) if wanted.eager or wanted.compiled else None
    found = bench(runnables(bundle, recipe.model_copy(update={"checkpoint": source}), wanted, weights), recipe.sampling, wanted, progress)
    content = found.model_dump_json(indent=1) + "\n"
    if out is not None:
        write_atomically(out, content)
    elif evidence is None:
        amend(bundle, manifest, lambda folder: write_atomically(folder / "latency.json", content))
    if evidence is None:
        return Timed(bundle=str(bundle), latency=found)
    manifest, evidence = _judged(manifest, recipe, replace(evidence, latency=found))
    _put(bundle, manifest, evidence, {"latency.json": content})
    return Timed(bundle=str(bundle), latency=found, gates=manifest.gates)


def report_again(bundle: Path, summary: Path | None = None) -> Path:
    """Write a bundle's report again, as this version of nemo-edge does; return the path of its page.

    `summary` gets the report in short at its end, as Markdown for a job summary of GitHub Actions.
    """
    check_outputs(bundle, summary)
    with holding(bundle):
        manifest = open_verified(bundle)
        evidence = Evidence.read(bundle)
        _put(bundle, manifest, evidence)
    if summary is not None:
        append(summary, summary_markdown(evidence))
    return bundle / "report" / "index.html"


def summarize(bundle: Path, summary: Path) -> None:
    """Add a bundle's report in short to a file. Raises `InputError` when it cannot be written."""
    check_outputs(bundle, summary)
    append(summary, summary_markdown(Evidence.read(bundle)))


def check_outputs(bundle: Path, *paths: Path | None) -> None:
    """Raise `InputError` for an output that cannot be written, or that would change the bundle."""
    for path in paths:
        if path is None:
            continue
        check_file(path)
        if path.resolve().is_relative_to(bundle.resolve()):
            raise InputError(f"the output {path} lies in the bundle, whose files are all in its manifest: give another path")


def _weights(manifest: Manifest, source: CheckpointSettings) -> str:
    """Where the weights are, if the bundle was made from them and from its LoRAs."""
    path = source.path
    try:
        found = checkpoint_hashes(path, source.fused, source.clip_skip)
    except InputError as error:
        raise InputError(f"{error}; pass --checkpoint, or --no-eager to time the engines alone") from error
    if found != manifest.checkpoint:
        raise InputError(f"{path} is not the checkpoint that this bundle was made from: its files have other hashes; pass --checkpoint")
    return path


def _judged(manifest: Manifest, recipe: Recipe, evidence: Evidence) -> tuple[Manifest, Evidence]:
    """The manifest and the evidence with a new verdict; the key is another where the gates are, so that a build judges by its own again."""
    other = recipe.gates.model_dump(mode="json") != manifest.recipe["gates"]
    key = sha256_json([manifest.key, recipe.gates.model_dump(mode="json")]) if other else manifest.key
    return judged(manifest.model_copy(update={"key": key, "recipe": recipe.model_dump(mode="json")}), recipe, evidence)


def _put(bundle: Path, manifest: Manifest, evidence: Evidence, files: Mapping[str, str] | None = None) -> None:
    """Put a verdict into a bundle, with its report and other files."""

    def change(folder: Path) -> None:
        for name, content in (files or {}).items():
            write_atomically(folder / name, content)
        write_evidence(folder, evidence)

    amend(bundle, manifest, change)

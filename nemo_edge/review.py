"""A finished bundle once more: timed, judged by other gates, its report written again. Nothing is measured twice.

What changes in a bundle changes all at once; every change ends with its gates judged and its report written anew.
"""

from __future__ import annotations

__all__ = ["Verdict", "judge_again", "report_again", "time_again"]

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from nemo_edge.bench import bench, runnables
from nemo_edge.bundle import GateResult, Manifest, amend, check_file, open_verified
from nemo_edge.errors import InputError
from nemo_edge.files import checkpoint_hashes, write_atomically
from nemo_edge.gates import judge
from nemo_edge.latency import Latency
from nemo_edge.progress import Progress
from nemo_edge.recipe import GateSettings, LatencySettings, Recipe
from nemo_edge.report import Evidence, summary_markdown, write_report
from nemo_edge.report.junit import junit_xml


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


def judge_again(bundle: Path, gates: GateSettings, *, write: bool, junit: Path | None = None, summary: Path | None = None) -> Verdict:
    """Judge a bundle by other gates, from what was measured on it; with `write` the bundle holds the new verdict.

    Raises `BundleError` for a bundle that was changed, or holds no measurement.
    """
    for path in (junit, summary):
        if path is not None:
            check_file(path)
    manifest = open_verified(bundle)
    recipe = Recipe.model_validate(manifest.recipe).model_copy(update={"gates": gates})
    evidence = Evidence.read(bundle)
    judged = judge(evidence.measurement, evidence.localizations, recipe, evidence.latency)
    again = _judged(manifest, recipe, judged)
    if write:
        _put(bundle, again, evidence.latency, lambda folder: None)
    if junit is not None:
        write_atomically(junit, junit_xml(manifest.name, judged))
    if summary is not None:
        write_atomically(summary, summary_markdown(Evidence.of(again, evidence.measurement, evidence.localizations, evidence.latency)))
    return Verdict(bundle=str(bundle), gates=judged, written=write)


def time_again(
    bundle: Path, settings: LatencySettings | None, checkpoint: str | None = None, out: Path | None = None, progress: Progress | None = None
) -> Latency:
    """Time a bundle's engines, and eager where its checkpoint is here; the bundle then holds the times, unless `out` does.

    `settings` are the recipe's, or the defaults, where they are not given. Raises `InputError` for a checkpoint the bundle is
    not made from.
    """
    manifest = open_verified(bundle)
    if out is not None:
        check_file(out)
    recipe = Recipe.model_validate(manifest.recipe)
    wanted = settings or recipe.latency or LatencySettings()
    weights = _weights(manifest, recipe, checkpoint) if wanted.eager or wanted.compiled else None
    found = bench(runnables(bundle, recipe, wanted, weights), recipe.sampling, wanted, progress)
    content = found.model_dump_json(indent=1) + "\n"
    if out is not None:
        write_atomically(out, content)
        return found
    evidence = Evidence.read(bundle)
    again = _judged(manifest, recipe, judge(evidence.measurement, evidence.localizations, recipe, found))
    _put(bundle, again, found, lambda folder: write_atomically(folder / "latency.json", content))
    return found


def report_again(bundle: Path, summary: Path | None = None) -> Path:
    """Write a bundle's report again, as this version of nemo-edge does; return the path of its page.

    `summary` gets the report in short, as Markdown for a job summary of GitHub Actions.
    """
    if summary is not None:
        check_file(summary)
    manifest = open_verified(bundle)
    evidence = Evidence.read(bundle)
    _put(bundle, manifest, evidence.latency, lambda folder: None)
    if summary is not None:
        write_atomically(summary, summary_markdown(evidence))
    return bundle / "report" / "index.html"


def _weights(manifest: Manifest, recipe: Recipe, checkpoint: str | None) -> str:
    """Where the weights are that the bundle was made from."""
    path = checkpoint or recipe.checkpoint.path
    try:
        found = checkpoint_hashes(path)
    except InputError as error:
        raise InputError(f"{error}; pass --checkpoint, or --no-eager to time the engines alone") from error
    if found != manifest.checkpoint:
        raise InputError(f"{path} is not the checkpoint that this bundle was made from: its files have other hashes; pass --checkpoint")
    return path


def _judged(manifest: Manifest, recipe: Recipe, gates: tuple[GateResult, ...]) -> Manifest:
    changes = {"gates": gates, "passed": all(g.passed for g in gates), "recipe": recipe.model_dump(mode="json")}
    return manifest.model_copy(update={**changes, "created": datetime.now(UTC).isoformat(timespec="seconds")})


def _put(bundle: Path, manifest: Manifest, latency: Latency | None, write: Callable[[Path], None]) -> None:
    """Put a verdict into a bundle, with its report and what else `write` adds."""
    evidence = Evidence.read(bundle)

    def change(folder: Path) -> None:
        write(folder)
        write_report(folder / "report", Evidence.of(manifest, evidence.measurement, evidence.localizations, latency))

    amend(bundle, manifest, change)

"""The verdict on a bundle: its gates, its manifest and its report, from what lies in it.

A build, a bundle that is measured again and one that is judged by other gates come to it the same way.
"""

from __future__ import annotations

__all__ = ["conclude", "judged", "write_evidence"]

from collections.abc import Mapping
from pathlib import Path

from nemo_edge.bundle.manifest import GateResult, Manifest, named
from nemo_edge.measure.gates import judge
from nemo_edge.measure.mitigation import Measurement
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.recipe.recipe import Recipe, portable
from nemo_edge.release._inputs import used_versions
from nemo_edge.release._stages import Work
from nemo_edge.report.evidence import Evidence
from nemo_edge.report.folder import write_report
from nemo_edge.report.thumbnails import store_pictures, worst_first
from nemo_edge.system.clock import now
from nemo_edge.system.files import checkpoint_hashes
from nemo_edge.system.reading import read_json


def conclude(work: Work, key: str, hashes: Mapping[str, str]) -> Manifest:
    """Judge a bundle whose stages are done, and write its report into it; of random weights there is nothing to judge or report.

    `hashes` are those of its files that are known. The manifest has all of them, but for the report, which says which model it is.
    """
    manifest, random = named(work.bundle, _manifest(work, key), hashes), work.recipe.random_weights
    if random is not None:
        detail = f"{random.name} with random weights: for measuring, not for shipping"
        gate = GateResult(name="random_weights", limit=0, value=1, passed=False, detail=detail)
        return manifest.model_copy(update={"gates": (gate,)})
    measurement = Measurement.read(work.bundle)
    manifest = manifest.model_copy(update={"threshold": measurement.threshold})
    manifest, evidence = judged(manifest, work.recipe, Evidence.gather(work.bundle, manifest, measurement))
    write_evidence(work.bundle, evidence, work.results["measure"] / "pictures")
    return manifest


def judged(manifest: Manifest, recipe: Recipe, evidence: Evidence) -> tuple[Manifest, Evidence]:
    """Return a bundle's manifest and its evidence with the verdict that the recipe's gates come to now."""
    gates = judge(evidence.measurement, evidence.localizations, recipe, evidence.latency, evidence.groups, evidence.attack)
    changes = {"gates": tuple(gates), "passed": all(gate.passed for gate in gates), "created": now()}
    manifest = manifest.model_copy(update=changes)
    return manifest, evidence.under(manifest)


def write_evidence(bundle: Path, evidence: Evidence, pictures: Path | None = None) -> None:
    """Write a bundle's report, which shows those of the examination's `pictures` that show most; without them those it has."""
    if pictures is not None:
        store_pictures(pictures, bundle / "report" / "pictures", worst_first(evidence.measurement))
    write_report(bundle / "report", evidence)


def _manifest(work: Work, key: str) -> Manifest:
    """The manifest of a bundle of which nothing is judged yet."""
    inputs, recipe = work.inputs, work.recipe
    return Manifest(
        name=recipe.name,
        family=read_json(work.bundle / "model_index.json")["_class_name"],
        key=key,
        variants=recipe.export.variants,
        checkpoint=inputs.checkpoint,
        hardened=checkpoint_hashes(work.shipped.source.path) if work.shipped is not work.checkpoint else None,
        random_weights=recipe.random_weights.name if recipe.random_weights else None,
        prompts=inputs.prompts,
        recipe=portable(recipe).model_dump(mode="json"),
        recipe_file=work.file,
        versions=used_versions(inputs.machine, recipe),
        machine=inputs.machine,
        created=now(),
        neurons_hash=NeuronSet.load(work.bundle / "neurons.json").content_hash(),
        threshold=None,
        gates=(),
        passed=False,
        files={},
    )

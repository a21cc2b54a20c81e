"""Evidence is read whole or refused in one line. The factory of the report's tests is here too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nemo_edge.bundle.manifest import GateResult, Manifest, publish
from nemo_edge.bundle.policies import Policies, masked_policies
from nemo_edge.bundle.triggers import calibrate_trigger
from nemo_edge.localization.localizer import Localization
from nemo_edge.measure.fidelity import Agreement, StepError
from nemo_edge.measure.latency import Case, Contender, Latency, Timing, Visit, ratio_of, timing_of
from nemo_edge.measure.mitigation import (
    CurvePoint,
    FoundNeuron,
    GeneralDrift,
    Measurement,
    Nearest,
    PromptMitigation,
    Shown,
    VariantMeasurement,
)
from nemo_edge.model.neurons import NeuronSet, ValueLayer
from nemo_edge.recipe.recipe import Recipe
from nemo_edge.recipe.settings import CheckpointSettings, LatencySettings, PromptSettings
from nemo_edge.report.evidence import Evidence, facts_of
from nemo_edge.system.environment import Machine
from nemo_edge.system.errors import BundleError

LAYERS = tuple(
    ValueLayer(name=f"{block}.attentions.0.transformer_blocks.0.attn2.to_v", width=8) for block in ("down_blocks.0", "mid_block")
)
MACHINE = Machine(system="Linux", python="3.11", cpu="a processor", cores=2, memory_gib=8, versions={"torch": "2.10"})


def localization(place: int = 0, prompt: str = "a prompt", memorized: bool = True) -> Localization:
    found = NeuronSet.from_lists(LAYERS, [[place % 8], [1]] if memorized else [[], []])
    values = {"inputs": "i", "threshold": 0.4, "score": 0.9 if memorized else 0.3, "seeds": (0,) if memorized else ()}
    scores = {
        "initial_score": 0.3,
        "refined_score": 0.3,
        "theta": 5.0,
        "k": 0,
        "evaluations": 1,
        "samples": 10,
        "closest": 0.1,
        "exact": 0,
        "seconds": 0.1,
    }
    return Localization(prompt=prompt, memorized=memorized, initial=found, refined=found, floor=False, **values, **scores)  # type: ignore[arg-type]


def shown(copies: int | None = 0, **changes: Any) -> Shown:
    known = {} if copies is None else {"copies": copies, "others": 0, "distance": 0.5 - 0.05 * copies}
    return Shown.model_validate({"diversity": 0.5, **known, **changes})


def mitigation(prompt: str = "a prompt", training: bool = True, neurons: int = 2, **changes: Any) -> PromptMitigation:
    views = {w: shown(n if training else None) for w, n in (("before", 4), ("after", 0), ("random", 4))} if neurons else {}
    views = views or {w: shown(0 if training else None) for w in ("before", "after", "random")}
    values = {"prompt": prompt, "kind": "VM", "neurons": neurons, "seeds": 4, "score_before": 0.9 if neurons else 0.3}
    return PromptMitigation.model_validate(
        {**values, **views, "score_after": 0.2, "score_after_eager": 0.2, "distance_error": 1e-6, **changes}
    )


def near(measured: Measurement, before: Sequence[float] = (0.1,) * 4, after: Sequence[float] = (0.5,) * 4) -> Measurement:
    """The measurement with what each picture is nearest to: its own training picture before, after the mitigation the first of the list."""

    known = [place for place, judged in enumerate(measured.variants[0].mitigations) if judged.before.copies is not None]

    def told(place: int, judged: PromptMitigation) -> PromptMitigation:
        places = known.index(place) if place in known else 0, 0
        own, first = ([Nearest(k, d) for d in found] for k, found in zip(places, (before, after), strict=True))
        views = {"before": own, "random": own, "after": first}
        return judged.model_copy(update={w: getattr(judged, w).model_copy(update={"nearest": tuple(n)}) for w, n in views.items()})

    variants = (v.model_copy(update={"mitigations": tuple(told(i, m) for i, m in enumerate(v.mitigations))}) for v in measured.variants)
    return measured.model_copy(update={"variants": tuple(variants)})


def agreement(error: float = 1e-6) -> Agreement:
    steps = tuple(StepError(time=900.0 - 100 * i, forced=error / 2, output=error * (i + 1), latents=error) for i in range(4))
    return Agreement(steps=steps, picture_levels=1, ssim=0.9999, psnr=60.0)


def measurement(
    prompts: Sequence[str] = ("first", "second", "third"),
    variants: Sequence[str] = ("baked", "masked"),
    training: bool = True,
    memorized: bool = True,
    **changes: Any,
) -> Measurement:
    judged = tuple(mitigation(p, training, neurons=2 if memorized else 0) for p in prompts)
    general = GeneralDrift(mean=0.02, largest=0.05, per_prompt=(0.01, 0.03), latents=0.1, diversity_before=0.5, diversity_after=0.49)
    neurons = tuple((FoundNeuron(layer=0, neuron=i % 8, z=5.5), FoundNeuron(layer=1, neuron=1, z=-3.0)) for i in range(len(prompts)))
    curve = [CurvePoint(neurons=n, chosen="found", drift=n / 100, latents=n / 50, diversity=0.5) for n in (1, 2, 4)]
    curve += [CurvePoint(neurons=8, chosen="random", drift=0.1, latents=0.2, diversity=0.48)]
    return Measurement.model_validate(
        {
            "threshold": 0.4,
            "copy_threshold": 0.2 if training else None,
            "general_scores": (0.1, 0.2, 0.3, 0.35),
            "layers": tuple(layer.name for layer in LAYERS),
            "neurons": 4 if memorized else 0,
            "random_neurons": 4 if memorized else 0,
            "found": neurons if memorized else tuple(() for _ in prompts),
            "general_prompts": ("a house", "a tree"),
            "variants": tuple(VariantMeasurement(variant=v, trajectory=agreement(), mitigations=judged, general=general) for v in variants),
            "untouched": agreement(0.0) if "masked" in variants else None,
            "mask_of_ones": 0.0 if "masked" in variants else None,
            "curve": tuple(curve) if memorized else (),
            **changes,
        }
    )


def timing(contender: str, middle: float, spread: float = 0.02, visits: int = 5) -> Timing:
    rng = np.random.default_rng(len(contender))
    rounds = [Visit(tuple((middle * (1 + spread * rng.standard_normal(6))).tolist()), middle * 6) for _ in range(visits)]
    return timing_of(contender, rounds, 1, (12, spread < 0.1), LatencySettings())


def latency(contenders: Sequence[str] = ("eager", "unmitigated", "baked", "masked")) -> Latency:
    cases: list[Case] = []
    for target, middle in (("text_encoder", 3.0), ("unet", 120.0), ("vae_decoder", 60.0), ("pipeline", 2600.0)):
        spreads = {"masked": 0.3} if target == "text_encoder" else {}
        timings = [timing(c, middle * (1 if c == "eager" else 0.8), spreads.get(c, 0.02)) for c in contenders]
        ratios = [ratio_of(t, r) for t in timings for r in timings if r.contender in ("eager", "unmitigated") and r is not t]
        steps = 10 if target == "pipeline" else None
        place = {"target": target, "batch": 1, "height": 64, "width": 64, "steps": steps}
        cases.append(Case.model_validate({**place, "timings": tuple(timings), "ratios": tuple(ratios)}))
    described = {
        "backend": "onnxruntime",
        "provider": "cpu",
        "threads": 2,
        "dtype": "fp32",
        "idle_memory_mib": 210.0,
        "peak_memory_mib": 480.0,
    }
    named = tuple(Contender.model_validate({"name": c, **described}) for c in contenders)
    return Latency(
        machine=MACHINE,
        date="2026-01-02T03:04:05Z",
        seconds=60.0,
        settings=LatencySettings(),
        contenders=named,
        cases=tuple(cases),
    )


def recipe(checkpoint: str = "c", **tables: Any) -> Recipe:
    prompts = PromptSettings(memorized=Path("m"), general=Path("g"))
    return Recipe(name="toy", output=Path("o"), checkpoint=CheckpointSettings(path=checkpoint), prompts=prompts, **tables)


def evidence(prompts: Sequence[str] = ("first", "second", "third"), memorized: bool = True, **changes: Any) -> Evidence:
    measured = {name: changes.pop(name) for name in ("variants", "training") if name in changes}
    gates = (
        GateResult(name="memorization_score.baked", limit=0.4, value=0.2, passed=True, detail=prompts[0]),
        replication(len(prompts), measured.get("training", True)),
        GateResult(name="slow_down.baked", limit=1.05, value=None, passed=True, detail="no times were taken: `nemo-edge bench`"),
    )
    made = Evidence(
        name="toy",
        family="StableDiffusionPipeline",
        passed=True,
        gates=gates,
        measurement=measurement(prompts, memorized=memorized, **measured),
        localizations=tuple(localization(i, p, memorized) for i, p in enumerate(prompts)),
        recipe=recipe(),
        latency=latency(),
        facts={"Build key": "0123", "Version · torch": "2.10"},
        machine=MACHINE,
        date="2026-01-02",
    )
    return replace(made, **changes)


def replication(prompts: int, known: bool = True) -> GateResult:
    if known:
        return GateResult(name="replication.baked", limit=0, value=0, passed=True, detail=f"of {prompts} prompts")
    gap = f"{prompts} of {prompts} examined prompts have no known training picture"
    return GateResult(name="replication.baked", limit=0, value=None, passed=True, detail="no training picture is known", gap=gap)


def policies() -> Policies:
    """Of two clusters, with a trigger that knows three prompts of the first and one of the second."""
    clusters = {"first": NeuronSet.from_lists(LAYERS, [[0, 1], [1]]), "second": NeuronSet.from_lists(LAYERS, [[2], []])}
    axes = np.eye(5, dtype=np.float32)
    trigger = calibrate_trigger({"first": axes[:3], "second": axes[3:4]}, {"first": axes[:2]}, -axes, known=True)
    return masked_policies(clusters["first"] | clusters["second"], clusters=clusters, trigger=trigger)


def save_pictures(
    folder: Path,
    prompts: int = 3,
    seeds: int = 4,
    edge: int = 16,
    which: Sequence[str] = ("before", "baked", "masked", "random"),
    general: int = 2,
) -> None:
    """Noise, which compresses worst, in the layout of the measurement."""
    rng = np.random.default_rng(0)
    names = [f"{p:03d}/{w}-{s:02d}" for p in range(prompts) for w in which for s in range(seeds)]
    names += [f"{p:03d}/training" for p in range(prompts)]
    names += [f"general/{p:03d}-{w}-{s:02d}" for p in range(general) for w in which if w != "random" for s in range(2)]
    for name in names:
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (edge, edge, 3), np.uint8)).save(path, compress_level=0)


def manifest(made: Evidence) -> Manifest:
    return Manifest(
        name=made.name,
        family=made.family,
        key="0123",
        variants=("baked",),
        checkpoint={"unet/weights": "ab"},
        prompts={"m.csv": "cd"},
        recipe=made.recipe.model_dump(mode="json"),
        versions={"torch": "2.10"},
        machine=MACHINE,
        created="2026-01-02",
        neurons_hash="ef",
        threshold=0.4,
        gates=made.gates,
        passed=made.passed,
        files={},
    )


def bundle(folder: Path, made: Evidence) -> Path:
    staged = folder / "staged"
    staged.mkdir(parents=True)
    (staged / "measurement.json").write_text(made.measurement.model_dump_json())
    (staged / "localization.jsonl").write_text("".join(f"{found.model_dump_json()}\n" for found in made.localizations))
    if made.latency:
        (staged / "latency.json").write_text(made.latency.model_dump_json())
    if made.policies:
        made.policies.save(staged / "policies.json")
    publish(staged, folder / "bundle", manifest(made))
    return folder / "bundle"


@pytest.mark.parametrize("timed", [True, False])
def test_evidence_comes_back_from_a_bundle(tmp_path: Path, timed: bool) -> None:
    made = evidence(latency=latency() if timed else None, policies=policies() if timed else None)
    read = Evidence.read(bundle(tmp_path, made))
    assert read.policies == made.policies
    assert (read.name, read.gates, read.measurement, read.localizations) == (made.name, made.gates, made.measurement, made.localizations)
    assert read.latency == made.latency
    assert read.recipe == made.recipe
    assert (read.machine, read.date) == (MACHINE, "2026-01-02")


def test_facts_hold_every_hash_and_version() -> None:
    facts = facts_of(manifest(evidence()))
    assert {"0123", "ef", "ab", "cd", "2.10"} <= set(facts.values())


@pytest.mark.parametrize("name", ["measurement.json", "localization.jsonl", "latency.json", "policies.json", "manifest.json"])
def test_a_file_of_another_version_is_refused_with_the_remedy(tmp_path: Path, name: str) -> None:
    folder = bundle(tmp_path, evidence())
    (folder / name).write_text('{"schema_version": 99}\n')
    with pytest.raises(BundleError, match="build the bundle again") as refused:
        Evidence.read(folder)
    assert "\n" not in str(refused.value)


def test_a_bundle_without_its_measurement_is_refused(tmp_path: Path) -> None:
    folder = bundle(tmp_path, evidence())
    (folder / "measurement.json").unlink()
    with pytest.raises(BundleError, match="build the bundle again"):
        Evidence.read(folder)
    with pytest.raises(BundleError, match="nemo-edge build"):
        Evidence.read(tmp_path / "nowhere")


def test_files_of_different_prompts_are_refused(tmp_path: Path) -> None:
    folder = bundle(tmp_path, evidence())
    (folder / "localization.jsonl").write_text(localization().model_dump_json() + "\n")
    with pytest.raises(BundleError, match="different prompts"):
        Evidence.read(folder)

"""How results look: nothing is cut at 80 columns, nothing of a prompt is taken for markup, gates say what they are."""

from __future__ import annotations

import time
from math import inf, nan
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from report.test_evidence import measurement, mitigation
from report.test_evidence import shown as counted
from rich.text import Text

from nemo_edge.bundle.manifest import GateResult, Verification, open_bundle
from nemo_edge.cli import console
from nemo_edge.measure.comparison import Comparison
from nemo_edge.measure.divergence import Divergence
from nemo_edge.measure.fidelity import Agreement, StepError
from nemo_edge.measure.latency import Case, Contender, Latency, Visit, ratio_of, timing_of
from nemo_edge.recipe.settings import LatencySettings
from nemo_edge.release.build import BuildResult
from nemo_edge.release.review import Timed, Verdict
from nemo_edge.system.environment import Machine

ASKED = GateResult(name="replication.baked", limit=0, value=0, passed=True)
GATES = (
    GateResult(name="good", limit=1, value=0.5, passed=True),
    GateResult(name="bad", limit=1, value=2, passed=False),
    GateResult(name="none", limit=1, value=None, passed=True, detail="no training picture is known"),
)


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def shown(capsys: pytest.CaptureFixture[str], show: Any, *values: Any) -> str:
    show(*values)
    out = capsys.readouterr().out
    assert all(len(line) <= 80 for line in out.splitlines())
    return str(out)


def test_a_changed_bundle_names_its_files(capsys: pytest.CaptureFixture[str]) -> None:
    out = shown(capsys, console.show_verification, Verification(bundle="b", files=3, problems=("unet/model.onnx was changed",)))
    assert out.splitlines() == ["unet/model.onnx was changed", "b: not the bundle that was built: build it again"]


def test_bars_are_silent_for_short_work_where_nobody_looks(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with console.Bars().task("localize", 2) as advance:
        advance(2)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(console, "_WORTH_A_LINE_S", -1)
    with console.Bars().task("localize", 2) as advance:
        advance(2)
    assert capsys.readouterr().err == "localize: 2 in 0 s\n"


def test_long_work_says_how_far_it_is_where_nobody_sees_its_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "_SILENT_S", -1)
    with console.Bars().task("localize", 3) as advance:
        advance(1)
        advance(2)
    assert capsys.readouterr().err == "localize: 1 of 3 after 0 s\nlocalize: 3 of 3 after 0 s\n"


def test_what_cannot_be_counted_is_named_where_somebody_looks(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with console.Bars().waiting("looking at [it]"):
        pass
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("FORCE_COLOR", "1")
    with console.Bars().waiting("looking at [it]"):
        pass
    assert "looking at [it]" in Text.from_ansi(capsys.readouterr().err).plain


def test_a_task_takes_the_place_of_what_is_waited_for_and_gives_it_back(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")

    def told() -> str:
        time.sleep(0.3)  # what moves is drawn a few times in it
        return Text.from_ansi(capsys.readouterr().err).plain

    bars = console.Bars()
    with bars.waiting("stage 3 of 7, export"):
        assert "stage 3 of 7, export" in told()
        with bars.task("export", 2) as advance:
            told()
            bars.note("one line")
            meanwhile = told()
            assert "0/2" in meanwhile  # drawn again by itself: the time runs though nothing is done
            assert "one line" in meanwhile
            assert "stage 3 of 7" not in meanwhile
            advance(2)
        assert "stage 3 of 7, export" in told()
    told()
    assert told() == ""


def test_a_bar_names_the_phase_beside_it(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    bars = console.Bars()
    with bars.task("unet_masked sm86+sm89", 100) as advance:
        bars.phase("Timing [kernels] of a name without end")
        advance(50)
    bars.phase("nobody looks any more")
    lines = Text.from_ansi(capsys.readouterr().err).plain.splitlines()
    assert all(len(line) <= 80 for line in lines)
    shown = [line for line in lines if "Timing [kernels] of …" in line]
    assert shown
    assert "━" in shown[-1]
    assert "50/100" in shown[-1]


def comparison(error: float, **changes: Any) -> Comparison:
    steps = (StepError(time=981, forced=0, output=0, latents=0), StepError(time=1, forced=error, output=error, latents=error))
    agreement = Agreement(steps=steps, picture_levels=3, ssim=0.99, psnr=inf if error == 0 else 42.5)
    values = {"reference": "sd:mitigated", "candidate": "out:baked", "prompts": ("a pig",), "steps": 2, "tolerance": 1e-4}
    return Comparison.model_validate({**values, "agreement": agreement, "drift_start": None if error == 0 else 1, **changes})


def test_a_comparison_that_agrees_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    out = shown(capsys, console.show_comparison, comparison(0))
    assert "out:baked against sd:mitigated" in out
    assert "they agree: largest error 0.0e+00, tolerance 1e-04" in out
    assert "drift" not in out
    assert "bad tensor" not in out


def test_a_comparison_that_differs_says_where(capsys: pytest.CaptureFixture[str]) -> None:
    values = {"component": "unet", "tensor": "linear_[7]", "operator": "MatMul", "module": "mid.attn2.to_v", "place": 1, "candidates": 9}
    where = Divergence.model_validate({**values, "probes": 4, "finite": True, "error": 0.25})
    console.show_comparison(comparison(0.5, divergence=where))
    out = capsys.readouterr().out
    assert "the latents drift from step 1 on" in out
    assert "first bad tensor: linear_[7] (unet, MatMul of mid.attn2.to_v) is off by 2.5e-01" in out
    assert "they differ: largest error 5.0e-01" in out
    lost = where.model_copy(update={"finite": False, "error": None, "module": ""})
    console.show_comparison(comparison(nan, divergence=lost))
    out = capsys.readouterr().out
    assert "(unet, MatMul of the component itself) holds an Inf or a NaN" in out
    assert "they differ: largest error nan" in out


def test_times_stand_side_by_side_and_noise_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    def timed(name: str, *samples: float) -> Any:
        return timing_of(name, [Visit(samples, sum(samples))] * 5, 1, (6, True), LatencySettings())

    timings = (timed("eager", 200.0, 200.0), timed("unmitigated", 10.0, 30.0), timed("baked", 100.0, 100.0))
    ratios = (ratio_of(timings[2], timings[0]), ratio_of(timings[2], timings[1]))
    place = {"target": "pipeline", "batch": 1, "height": 64, "width": 32, "steps": 10}
    here = Machine(system="Linux", python="3.11", cpu="a processor", cores=2, memory_gib=8, versions={})
    described = {"backend": "b", "provider": "cpu", "threads": 2, "dtype": "fp32", "idle_memory_mib": 1, "peak_memory_mib": 512.4}
    contenders = tuple(Contender.model_validate({"name": t.contender, **described}) for t in timings)
    case = Case.model_validate({**place, "timings": timings, "ratios": ratios})
    found = Latency(machine=here, date="d", seconds=61.2, settings=LatencySettings(), contenders=contenders, cases=(case,))
    console.show_times(Timed(bundle="b", latency=found, gates=GATES), Path("index.html"))
    out = " ".join(capsys.readouterr().out.split())
    assert "b: a gate failed: this bundle must not be shipped index.html" in out
    assert "pipeline: batch 1, 64 × 32, 10 steps" in out
    assert "0.500" in out
    assert "beside eager: baked 2× as fast beside unmitigated: baked 5× as long" in out
    assert "in brackets the 95 % interval" in out
    assert "512" in out
    assert "noisy, do not trust these alone: pipeline: unmitigated" in out
    for name in ("eager", "unmitigated", "baked"):
        assert name in out


def test_a_verdict_says_whether_it_is_in_the_bundle(capsys: pytest.CaptureFixture[str]) -> None:
    out = shown(capsys, console.show_verdict, Verdict(bundle="b", gates=GATES, written=False))
    assert "b: a gate failed: this bundle must not be shipped; the bundle was left as it is" in out
    out = shown(capsys, console.show_verdict, Verdict(bundle="b", gates=(GATES[0], ASKED), written=True))
    assert "b: every gate passed\n" in out


def test_a_gate_that_was_not_measured_has_not_passed(capsys: pytest.CaptureFixture[str]) -> None:
    noisy = GateResult(name="slow_down.baked", limit=1.05, value=None, passed=True, detail="the times vary too much")
    out = shown(capsys, console.show_verdict, Verdict(bundle="b", gates=(GATES[0], ASKED, noisy), written=True))
    assert "b: no gate failed, 1 not measured\n" in out


@pytest.mark.parametrize(
    ("gate", "why"),
    [
        (ASKED.model_copy(update={"gap": "4 of 16 examined prompts have no known training picture"}), "measured: 4 of 16 examined prompts"),
        (ASKED.model_copy(update={"value": None, "detail": "no training picture is known"}), "measured: no training picture is known"),
        (GATES[0], "judged: the gate replication is off"),
    ],
)
def test_what_was_not_measured_is_no_pass(capsys: pytest.CaptureFixture[str], gate: GateResult, why: str) -> None:
    console.show_verdict(Verdict(bundle="b", gates=(gate,), written=True))
    out = capsys.readouterr().out
    assert out.count(f"Copies were not {why}") == 1
    assert out.count("; no gate failed\n") == 1
    assert "every gate passed" not in out


def test_the_counts_of_a_build_carry_their_bound(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rows = (
        mitigation("first"),
        mitigation("second", after=counted(1, others=1)),
        mitigation("third", training=False, after=counted(None, others=1)),
        mitigation("fourth", training=False),
    )
    made = measurement(variants=("baked",))
    variants = (made.variants[0].model_copy(update={"mitigations": rows}),)
    (tmp_path / "measurement.json").write_text(made.model_copy(update={"variants": variants}).model_dump_json())
    manifest = SimpleNamespace(random_weights=None, gates=GATES, passed=False)
    console.show_build(SimpleNamespace(bundle=str(tmp_path), skipped=False, manifest=manifest, identity="abc"))
    title, table = capsys.readouterr().out.split("Prompt")
    assert " ".join(title.split()) == "baked: before → after, 4 pictures a prompt; ≤ %: copies at the most (95 %)"
    lines = {line.split()[0]: line.split()[5:] for line in table.splitlines()[1:5]}
    assert lines["first"] == ["4", "→", "0", "0", "53", "4"]
    assert lines["second"] == ["4", "→", "1", "1", "91", "4"]
    assert lines["third"] == ["–", "1", "76", "–"]
    assert lines["fourth"] == ["–", "–", "–", "–"]


def test_a_build_shows_what_became_of_every_memory(capsys: pytest.CaptureFixture[str], tiny_bundle: Any) -> None:
    console.show_build(BuildResult(bundle=str(tiny_bundle), skipped=False, manifest=open_bundle(tiny_bundle), identity="0123abc"))
    out = capsys.readouterr().out
    for text in (
        "baked: before → after",
        "masked: before → after",
        "a red pig",
        "<script>alert(1)</script> owl",
        "mitigation_agreement.baked",
    ):
        assert text in out
    assert f"report: {tiny_bundle}/report/index.html" in out
    assert out.endswith("identity: 0123abc\n")

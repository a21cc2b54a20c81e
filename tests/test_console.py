"""How results look: nothing is cut at 80 columns, nothing of a prompt is taken for markup, gates say what they are."""

from __future__ import annotations

from typing import Any

import pytest

from nemo_edge import console
from nemo_edge.bundle import GateResult, Verification, open_bundle


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def shown(capsys: pytest.CaptureFixture[str], show: Any, *values: Any) -> str:
    show(*values)
    out = capsys.readouterr().out
    assert all(len(line) <= 80 for line in out.splitlines())
    return str(out)


def test_gates_show_their_verdict(capsys: pytest.CaptureFixture[str], tiny_bundle: Any) -> None:
    gates = (
        GateResult(name="good", limit=1, value=0.5, passed=True),
        GateResult(name="bad", limit=1, value=2, passed=False),
        GateResult(name="none", limit=1, value=None, passed=True, detail="no training picture is known"),
    )
    out = shown(capsys, console.show_manifest, open_bundle(tiny_bundle).model_copy(update={"gates": gates}))
    rows = {line.split()[0]: line for line in out.splitlines() if line.split()}
    assert "passed" in rows["good"]
    assert "failed" in rows["bad"]
    assert "not measured: no training picture is known" in " ".join(rows["none"].split())


def test_markup_in_a_prompt_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": "a [bold]pig[/bold]", "score": 0.9, "memorized": True, "seeds": [0]}]
    assert "a [bold]pig[/bold]" in shown(capsys, console.show_detection, {"threshold": 0.4, "prompts": rows})


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

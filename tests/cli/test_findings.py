"""Findings fit a terminal of 80 columns, and markup in a prompt is text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from measure.attacks.test_base import attacked

from nemo_edge.cli.findings import show_attack, show_detection, show_localizations
from nemo_edge.localization.detection import Detection
from nemo_edge.localization.detectors import PAPER
from nemo_edge.localization.groups import Group, Member, Variant
from nemo_edge.localization.localizer import Localization
from nemo_edge.localization.roc import Roc, roc
from nemo_edge.localization.stages import Detected
from nemo_edge.measure.attacks.base import levels, rates
from nemo_edge.measure.attacks.campaign import Campaign
from nemo_edge.measure.attacks.switches import Switch
from nemo_edge.model.neurons import NeuronSet, ValueLayer
from nemo_edge.recipe.settings import AttackSettings

NEURONS = NeuronSet.from_lists([ValueLayer(name="a.to_v", width=8)], [[1, 3]])


def shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, show: Any, *values: Any) -> str:
    monkeypatch.setenv("COLUMNS", "80")
    show(*values)
    out = capsys.readouterr().out
    assert all(len(line) <= 80 for line in out.splitlines())
    return str(out)


def detected(count: int, rocs: tuple[Roc, ...] = ()) -> Detected:
    made = [
        Detection(inputs="i", prompt=f"a [bold]pig[/] {n}", score=n / 100, memorized=n > 50, seeds=(), norms=(1,)) for n in range(count)
    ]
    memorized = sum(each.memorized for each in made)
    return Detected(threshold=0.5, prompts=tuple(made), memorized=memorized, rocs=rocs, rows=1, seconds=1, unet_share=0.9)


def test_few_prompts_are_shown_in_their_order(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    out = shown(capsys, monkeypatch, show_detection, detected(3), None)
    assert [line.split(" 0.")[0].strip() for line in out.splitlines()[1:4]] == [f"a [bold]pig[/] {n}" for n in range(3)]
    assert "0 of 3 prompts memorized (τ = 0.500)" in out
    assert "AUROC" not in out


def test_of_many_the_highest_are_shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    curves = tuple(
        roc(name, np.array([3.0, 2]), np.array([2.0, 1]), 10) for name in (*PAPER, "norm of the guidance difference, 10 latents")
    )
    out = shown(capsys, monkeypatch, show_detection, detected(90, curves), Path("there"))
    assert "a [bold]pig[/] 89" in out
    assert "a [bold]pig[/] 49" not in out
    assert "39 of 90 prompts memorized (τ = 0.500); above, the 40 highest" in out
    assert "0.875" in out
    assert "0.98" in out
    assert out.rstrip().endswith("written to there")


def test_groups_follow_the_prompts(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"inputs": "i", "threshold": 0.5, "initial_score": 0.1, "theta": 5, "k": 0, "evaluations": 1, "samples": 9, "seconds": 1}
    own = {
        "score": 0.9,
        "seeds": (0,),
        "initial": NEURONS,
        "refined": NEURONS,
        "refined_score": 0.2,
        "floor": True,
        "closest": None,
        "exact": 0,
    }
    found = Localization.model_validate({"prompt": "a pig", "memorized": True, **facts, **own})
    member = Member(prompt="a pig", variant=False, neurons=2, limit=0.5, score=0.2, overlap=1)
    variant = Variant(prompt="a pig", text="pig", kind="drop", score=0.9, before=0.8, after=0.1)
    made: dict[str, Any] = {"inputs": "i", "name": "[b]pigs", "threshold": 0.5, "members": (member,), "neurons": NEURONS}
    group = Group(**made, variants=(variant,), same=0, samples=7, seconds=1)
    out = shown(capsys, monkeypatch, show_localizations, [found], [group], Path("there"))
    assert "0.200 floor" in out
    assert out.splitlines()[3].split() == ["[b]pigs", "1", "2", "1", "1", "0", "7", "1.0"]
    assert "Group" not in shown(capsys, monkeypatch, show_localizations, [found], [], Path("there"))


def test_an_attack_is_shown_by_group_start_and_steps(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    results = [attacked(group, {10: [False] * 10, 1000: [True] * 10}, str(i)) for group in ("unmitigated", "memories") for i in range(100)]
    results.append(attacked("never seen", {10: [False], 1000: [False]}, ""))
    facts: dict[str, Any] = {
        "source": "demo",
        "checkpoint": {},
        "neurons": 16,
        "engine": "onnxruntime, baked",
        "versions": {},
        "sampling": {},
    }
    found = Campaign(
        **facts,
        inputs="",
        settings=AttackSettings(),
        copy_threshold=0.343,
        threshold_pairs=512,
        rates=rates(results),
        neurons_hash="",
        levels=levels(results),
        switches=(Switch(name="the policy [off]", who="whoever may send a served pipeline its policy"),),
        attacked=tuple(results),
    )
    out = shown(capsys, monkeypatch, show_attack, found, Path("attack.json"))
    rows = [line.split() for line in out.splitlines()[1:7]]
    assert rows[3] == ["memories", "unrelated", "1000", "100/100", "(at", "least", "97", "%)", "1000/1000", "0.100"]
    assert rows[4][:2] == ["never", "seen"]
    assert "the policy [off] brings every memory back: whoever may send" in " ".join(out.split())
    assert "512 unrelated pairs" in out
    assert "brings back 100 of 100 attacked memories" in " ".join(out.split())

"""Whole lists from a checkpoint's place: what is taken, what is refused before the checkpoint is opened, what is left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from nemo_edge import demo
from nemo_edge.localization.calibration import Calibration, Provenance
from nemo_edge.localization.localizer import Localizer, read_results
from nemo_edge.localization.promptlists import DetectionOptions, LocalizationOptions, detect, localize
from nemo_edge.model.checkpoint import Checkpoint
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.recipe.recipe import SettingError
from nemo_edge.recipe.settings import LocalizationSettings
from nemo_edge.system.errors import InputError
from nemo_edge.system.progress import Progress

TEXTS = ["saxophone falafel jubilee", "a red pig"]
"""One that the demo has memorized, and one that it has not."""
FEW: dict[str, Any] = {"threshold": 0.7, "samples": 4}


@pytest.fixture(scope="module")
def statistics(demo_localizer: Localizer, demo_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("statistics") / "demo.safetensors"
    found = demo_localizer.statistics
    made = Provenance(checkpoint="demo", checkpoint_hash=demo_checkpoint.content_hash(), prompts=5, prompts_hash="")
    Calibration(found, None, (), made).save(path)
    return path


class Notes(Progress):
    """Keeps what was told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def same(found: Any) -> Any:
    """What was found, without the times."""
    return [each.model_copy(update={"seconds": 0.0}) for each in found]


def test_a_path_and_texts_give_the_same(statistics: Path, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("\n".join(TEXTS))
    texts = localize(demo.CHECKPOINT, [f" {text}\n" for text in TEXTS], statistics, mode="fast", **FEW)
    listed = localize(str(demo.CHECKPOINT), str(tmp_path / "p.txt"), str(statistics), str(tmp_path / "out"), mode="fast", **FEW)
    assert same(texts.results) == same(listed.results)
    lines = read_results(tmp_path / "out" / "localization.jsonl")  # in the order in which they were found
    assert same(sorted(lines, key=lambda result: TEXTS.index(result.prompt))) == same(texts.results)
    assert [(result.prompt, result.memorized) for result in texts.results] == [(TEXTS[0], True), (TEXTS[1], False)]
    assert (texts.out, listed.out) == (None, str(tmp_path / "out"))
    assert texts.neurons == listed.neurons == NeuronSet.load(tmp_path / "out" / "neurons.json")
    assert len(texts.neurons) > 0
    found = detect(demo.CHECKPOINT, TEXTS, statistics, **FEW)
    assert found.prompts == detect(str(demo.CHECKPOINT), tmp_path / "p.txt", str(statistics), **FEW).prompts
    assert [each.memorized for each in found.prompts] == [True, False]


def test_the_search_is_that_of_the_localizer_with_these_settings(
    statistics: Path, demo_localizer: Localizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = localize(demo.CHECKPOINT, TEXTS, statistics, group_by="list", **FEW)
    assert same(found.results) == same(demo_localizer.localize_all(TEXTS))
    assert [member.prompt for member in found.groups[0].members] == TEXTS[:1]
    assert found.neurons == found.groups[0].neurons
    assert list(tmp_path.iterdir()) == []  # without a folder nothing is written


def test_detectors_are_compared_with_texts(statistics: Path, tmp_path: Path) -> None:
    found = detect(demo.CHECKPOINT, TEXTS[:1], statistics, tmp_path / "out", general=TEXTS[1:], **FEW)
    assert [(each.memorized, each.general) for each in found.rocs] == [(1, 1)] * 3
    assert len(json.loads((tmp_path / "out" / "roc.json").read_text())) == 3
    assert len((tmp_path / "out" / "detection.jsonl").read_text().splitlines()) == 2
    again = detect(demo.CHECKPOINT, TEXTS[:1], statistics, tmp_path / "out", general=TEXTS[1:], **FEW)
    assert (again.rows, again.prompts) == (0, found.prompts)


@pytest.mark.parametrize("function", [detect, localize])
def test_what_is_not_fatal_is_told(function: Any, statistics: Path) -> None:
    progress = Notes()
    function(demo.CHECKPOINT, ["pig " * 100], statistics, progress=progress, **FEW)
    [note] = progress.notes
    assert "pig" in note


@pytest.mark.parametrize("function", [detect, localize])
@pytest.mark.parametrize(
    ("prompts", "out", "options", "reason"),
    [
        ("none.txt", "file", {"threshold": 2, "samples": 1}, "prompts file none.txt does not exist"),
        ([], "file", {"threshold": 2, "samples": 1}, "no prompt is given: give the path of a list, or texts"),
        (["a", " "], "file", {"threshold": 2, "samples": 1}, "prompt 2 of those given is not a text but ' '"),
        (TEXTS, "file", {"threshold": 2, "samples": 1}, "the output file is a file: give the path of a folder"),
        (TEXTS, "new", {"threshold": 2, "samples": 1}, "samples = 1: input should be greater than or equal to 2"),
        (TEXTS, "new", {"threshold": 2}, r"threshold: τ = 2, expected a finite number above 0 and below 1: leave it out"),
        (TEXTS, "new", {}, "checkpoint ./none does not exist"),
    ],
)
def test_what_is_given_is_checked_in_order_and_before_the_checkpoint(
    function: Any, prompts: Any, out: str, options: dict[str, Any], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=reason):
        function("./none", prompts, "none.safetensors", out, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_prompt_in_both_lists_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a red pig\n")
    for prompts, named in ((TEXTS, "the texts given"), (tmp_path / "p.txt", "p.txt")):
        with pytest.raises(InputError, match=rf"1 of the general prompts in the texts given stand among .*{named} too \('A red pig'\)"):
            detect("./none", prompts, "none.safetensors", general=["A red pig"])


def test_a_setting_is_named_as_it_was_given() -> None:
    with pytest.raises(SettingError, match=r"dtype = 'fp8': input should be 'fp32', 'fp16' or 'bf16'") as refused:
        localize("./none", TEXTS, "none.safetensors", dtype="fp8")  # type: ignore[arg-type]
    assert str(refused.value.of_option()) == "--dtype fp8: input should be 'fp32', 'fp16' or 'bf16'"
    with pytest.raises(TypeError, match=r"localize\(\) got an unexpected keyword argument 'colour'"):
        localize("./none", TEXTS, "none.safetensors", colour="red")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"detect\(\) got an unexpected keyword argument 'mode'"):
        detect("./none", TEXTS, "none.safetensors", mode="fast")  # type: ignore[call-arg]


def test_the_options_are_the_settings_of_a_recipe() -> None:
    settings = {name: hint for name, hint in get_type_hints(LocalizationSettings).items() if name in LocalizationSettings.model_fields}
    assert settings.pop("prompts") is int
    assert get_type_hints(LocalizationOptions) == settings
    assert get_type_hints(DetectionOptions).items() <= settings.items()

"""Both controls are attacked beside the memories, an interrupted attack goes on to the same file, and what may be said is said."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from measure.attacks.test_base import attacked
from nemo_edge.bundle.manifest import open_bundle
from nemo_edge.measure.attacks.base import rates
from nemo_edge.measure.attacks.campaign import Campaign, attack, journal_of, verdict
from nemo_edge.measure.attacks.subject import Place
from nemo_edge.model.checkpoint import Checkpoint, value_layers
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.recipe.settings import AttackSettings, CheckpointSettings, SamplingSettings
from nemo_edge.system.errors import InputError
from nemo_edge.system.progress import Advance, Progress

SETTINGS = AttackSettings(steps=2, seeds=2)
PLACE_SAMPLING = SamplingSettings(steps=1, guidance=1.0)


class Steps(Progress):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[int] = []

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Advance]:
        yield self.told.append


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two dark training pictures, one of them not square, and a light control."""
    made = tmp_path_factory.mktemp("known")
    (made / "controls").mkdir()
    for seed, (name, lowest, shape) in enumerate((("a", 0, (32, 32)), ("b", 20, (32, 40)), ("controls/c", 220, (32, 32)))):
        pixels = np.random.default_rng(seed).integers(lowest, lowest + 30, (*shape, 3), np.uint8)
        Image.fromarray(pixels).save(made / f"{name}.png")
    (made / "list.csv").write_text("Caption;image\na red pig;a.png\nan owl;b.png\n")
    return made


@pytest.fixture(scope="module")
def place(toy: Checkpoint, toy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    path = tmp_path_factory.mktemp("neurons") / "n.json"
    layers = value_layers(toy.unet)
    NeuronSet.from_lists(layers, [range(layer.width) for layer in layers]).save(path)
    return Place(CheckpointSettings(path=str(toy_folder)), path, PLACE_SAMPLING)


@pytest.fixture(scope="module")
def whole(place: Place, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of an attack that was not interrupted."""
    output = tmp_path_factory.mktemp("whole") / "attack.json"
    attack(place, folder / "list.csv", folder / "controls", SETTINGS, output)
    return output


def test_every_group_is_attacked_and_reads_back(whole: Path) -> None:
    found = Campaign.model_validate_json(whole.read_bytes())
    assert [(each.group, each.prompt, each.start) for each in found.attacked] == [
        ("unmitigated", "a red pig", "unrelated"),
        ("unmitigated", "an owl", "unrelated"),
        ("memories", "a red pig", "prompt"),
        ("memories", "an owl", "prompt"),
        ("never seen", "", "unrelated"),
    ]
    assert all([(a.steps, a.seed) for a in each.attempts] == [(2, 0), (2, 1)] for each in found.attacked)
    assert all(a.copied == (a.distance <= found.copy_threshold) for each in found.attacked for a in each.attempts)
    assert found.rates == rates(found.attacked)
    assert found.threshold_pairs == 32
    assert found.neurons > 0


def test_an_interrupted_attack_goes_on_to_the_same_file(place: Place, folder: Path, whole: Path, tmp_path: Path) -> None:
    output, steps = tmp_path / "attack.json", Steps()
    lines = journal_of(whole).read_text().splitlines(keepends=True)
    journal_of(output).write_text("".join(lines[:3]) + lines[3][:40])
    attack(place, folder / "list.csv", folder / "controls", SETTINGS, output, steps)
    assert steps.told == [2, 2, 2, 1, 1, 1, 1]
    assert output.read_bytes() == whole.read_bytes()
    assert journal_of(output).read_bytes() == journal_of(whole).read_bytes()


def test_a_journal_of_other_settings_is_refused(place: Place, folder: Path, whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "attack.json"
    journal_of(output).write_bytes(journal_of(whole).read_bytes())
    with pytest.raises(InputError, match=r"attack\.jsonl was made of another model, or with other settings"):
        attack(place, folder / "list.csv", folder / "controls", SETTINGS.model_copy(update={"seed": 1}), output)
    assert not output.exists()


def test_of_a_checkpoint_with_nothing_silenced_the_positive_control_is_the_attack(folder: Path, toy_folder: Path, tmp_path: Path) -> None:
    plain, steps = Place(CheckpointSettings(path=str(toy_folder)), None, PLACE_SAMPLING), Steps()
    settings = SETTINGS.model_copy(update={"starts": ("unrelated",), "steps": 1})
    found = attack(plain, folder / "list.csv", folder / "controls", settings, tmp_path / "a.json", steps)
    control, memories = ([(e.prompt, e.attempts) for e in found.attacked if e.group == group] for group in ("unmitigated", "memories"))
    assert control == memories
    assert sum(steps.told) == 3, "two memories and a control"


def test_a_bundle_is_attacked_in_its_checkpoint_and_drawn_by_its_engine(folder: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    settings, here = SETTINGS.model_copy(update={"steps": 1}), Place(CheckpointSettings(path=str(tiny_bundle)))
    found = attack(here, folder / "list.csv", folder / "controls", settings, tmp_path / "a.json")
    assert (found.source, found.engine, found.sampling["steps"]) == ("out", "onnxruntime, baked", 3)
    assert found.checkpoint == open_bundle(tiny_bundle).checkpoint
    assert found.neurons == len(NeuronSet.load(tiny_bundle / "neurons.json")) > 0
    assert {each.group for each in found.attacked} == {"unmitigated", "memories", "never seen"}


def test_an_unrelated_prompt_that_is_a_memorized_one_is_refused(place: Place, folder: Path, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"unrelated": "A red  pig!"})
    with pytest.raises(InputError, match="the unrelated prompt 'A red  pig!' stands in"):
        attack(place, folder / "list.csv", folder / "controls", settings, tmp_path / "a.json")


def test_the_journal_lies_beside_the_output() -> None:
    assert journal_of(Path("x/attack.json")) == Path("x/attack.jsonl")
    assert journal_of(Path("x/attack.jsonl")) == Path("x/attack.jsonl.jsonl")
    assert journal_of(Path("x/attack")) == Path("x/attack.jsonl")


@pytest.mark.parametrize(
    ("control", "memories", "expected"),
    [
        ([True, True], [True, True], "brings back 2 of 2 memories (at least 22 %, 95 % confidence), and 0 of 1 pictures"),
        ([True, True], [False, False], "brings back 0 of 2 memories (at most 78 %, 95 % confidence), and 0 of 1 pictures"),
        ([True, False], [False, False], "attack too weak: on the model with nothing silenced it brings back 1 of 2 memories"),
    ],
)
def test_the_verdict_says_what_may_be_said(control: list[bool], memories: list[bool], expected: str) -> None:
    results = [attacked("unmitigated", {10: [back]}, str(i)) for i, back in enumerate(control)]
    results += [attacked("memories", {10: [back]}, str(i)) for i, back in enumerate(memories)]
    assert expected in verdict(rates([*results, attacked("never seen", {10: [False]}, "")]))

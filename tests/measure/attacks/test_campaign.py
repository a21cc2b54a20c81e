"""Both controls are attacked beside the memories, an interrupted attack goes on to the same file, and what may be said is said."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nemo_edge.bundle.manifest import open_bundle
from nemo_edge.measure.attacks.base import levels, rates
from nemo_edge.measure.attacks.campaign import ATTACK, Campaign, attack, journal_of
from nemo_edge.measure.attacks.subject import Place
from nemo_edge.model.checkpoint import Checkpoint, value_layers
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.recipe.settings import AttackSettings, CheckpointSettings, SamplingSettings
from nemo_edge.system.errors import BundleError, InputError
from nemo_edge.system.progress import Advance, Progress

SETTINGS = AttackSettings(steps=2, seeds=2, batches=8, candidates=3, words=2, variants=2)
EMBEDDING = SETTINGS.model_copy(update={"text": ()})
PLACE_SAMPLING = SamplingSettings(steps=1, guidance=1.0)


class Steps(Progress):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[int] = []

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Advance]:
        yield self.told.append


def within(folder: Path, settings: AttackSettings) -> AttackSettings:
    return settings.model_copy(update={"controls": folder / "controls"})


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
    attack(place, folder / "list.csv", within(folder, SETTINGS), output)
    return output


def test_every_group_is_attacked_and_reads_back(whole: Path) -> None:
    found = Campaign.model_validate_json(whole.read_bytes())
    both = ["a red pig", "an owl"]
    assert [(each.group, each.prompt, each.way) for each in found.attacked] == [
        *(("unmitigated", prompt, "greedy search") for prompt in both),
        *(("memories", prompt, way) for way in SETTINGS.text for prompt in both),
        *(("never seen", "", way) for way in SETTINGS.searches),
        *(("unmitigated", prompt, "unrelated") for prompt in both),
        *(("memories", prompt, "prompt") for prompt in both),
        ("never seen", "", "unrelated"),
    ]
    embeddings = [each for each in found.attacked if each.attack == "embedding"]
    assert all([(a.steps, a.seed) for a in each.attempts] == [(2, 0), (2, 1)] for each in embeddings)
    texts = [a for each in found.attacked if each.attack == "text" for a in each.attempts]
    assert all(a.text and a.steps <= SETTINGS.batches for a in texts)
    assert found.levels == levels(found.attacked)
    assert all(a.distance <= found.copy_threshold or not a.copied for each in found.attacked for a in each.attempts)
    assert found.rates == rates(found.attacked)
    assert found.threshold_pairs == 32
    assert found.neurons > 0


def test_an_interrupted_attack_goes_on_to_the_same_file(place: Place, folder: Path, whole: Path, tmp_path: Path) -> None:
    output, steps = tmp_path / "attack.json", Steps()
    lines = journal_of(whole).read_text().splitlines(keepends=True)
    journal_of(output).write_text("".join(lines[:3]) + lines[3][:40])
    attack(place, folder / "list.csv", within(folder, SETTINGS), output, steps)
    searches, changed, embeddings = 2 + 2 * 2 + 2, 2 * 2, 5
    assert sum(steps.told) == searches * SETTINGS.batches + changed * SETTINGS.variants + embeddings * SETTINGS.steps
    assert output.read_bytes() == whole.read_bytes()
    assert journal_of(output).read_bytes() == journal_of(whole).read_bytes()


def test_a_journal_of_other_settings_is_refused(place: Place, folder: Path, whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "attack.json"
    journal_of(output).write_bytes(journal_of(whole).read_bytes())
    with pytest.raises(InputError, match=r"attack\.jsonl was made of another model, or with other settings"):
        attack(place, folder / "list.csv", within(folder, SETTINGS.model_copy(update={"seed": 1})), output)
    assert not output.exists()


def test_of_a_checkpoint_with_nothing_silenced_the_positive_control_is_the_attack(folder: Path, toy_folder: Path, tmp_path: Path) -> None:
    plain, steps = Place(CheckpointSettings(path=str(toy_folder)), None, PLACE_SAMPLING), Steps()
    settings = EMBEDDING.model_copy(update={"starts": ("unrelated",), "steps": 1})
    found = attack(plain, folder / "list.csv", within(folder, settings), tmp_path / "a.json", steps)
    control, memories = ([(e.prompt, e.attempts) for e in found.attacked if e.group == group] for group in ("unmitigated", "memories"))
    assert control == memories
    assert steps.told == [1, 0, 1, 0, 1, 1, 1, 0], "each that is done tells of its step, and one that is not, of all at once"


def test_a_bundle_is_attacked_in_its_checkpoint_and_drawn_by_its_engine(folder: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    settings, here = EMBEDDING.model_copy(update={"steps": 1}), Place(CheckpointSettings(path=str(tiny_bundle)))
    found = attack(here, folder / "list.csv", within(folder, settings), tmp_path / "a.json")
    assert (found.source, found.engine, found.sampling["steps"]) == ("out", "onnxruntime, baked", 3)
    assert found.checkpoint == open_bundle(tiny_bundle).checkpoint
    assert found.neurons == len(NeuronSet.load(tiny_bundle / "neurons.json")) > 0
    assert {each.group for each in found.attacked} == {"unmitigated", "memories", "never seen"}


def test_an_unrelated_prompt_that_is_a_memorized_one_is_refused(place: Place, folder: Path, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"unrelated": "A red  pig!"})
    with pytest.raises(InputError, match="the unrelated prompt 'A red  pig!' stands in"):
        attack(place, folder / "list.csv", within(folder, settings), tmp_path / "a.json")


def test_the_journal_lies_beside_the_output() -> None:
    assert journal_of(Path("x/attack.json")) == Path("x/attack.jsonl")
    assert journal_of(Path("x/attack.jsonl")) == Path("x/attack.jsonl.jsonl")
    assert journal_of(Path("x/attack")) == Path("x/attack.jsonl")


def test_what_a_bundle_was_attacked_with_reads_back_or_is_refused(whole: Path, tmp_path: Path) -> None:
    assert Campaign.read(tmp_path) is None
    (tmp_path / ATTACK).write_bytes(whole.read_bytes())
    found = Campaign.read(tmp_path)
    assert found is not None
    assert found.level("text") == found.levels[0]
    (tmp_path / ATTACK).write_text("{}")
    with pytest.raises(BundleError, match="build the bundle again"):
        Campaign.read(tmp_path)


def test_prompts_without_pictures_are_attacked_with_text_that_needs_none(place: Place, folder: Path, tmp_path: Path) -> None:
    """What comes back is then told by pictures of different seeds that are alike, and no control says how strong the attack is."""
    (folder / "unknown.csv").write_text("Caption\na red pig\n")
    settings = SETTINGS.model_copy(update={"starts": ()})
    found = attack(place, folder / "unknown.csv", settings, tmp_path / "a.json")
    assert [(each.group, each.way, each.picture) for each in found.attacked] == [
        ("memories", way, "") for way in ("paraphrases", "random tokens")
    ]
    assert all(
        len({a.distance for a in each.attempts if a.text == text}) == 1
        for each in found.attacked
        for text in {a.text for a in each.attempts}
    )
    assert found.threshold_pairs == 16 * 15 // 2
    assert [level.strong for level in found.levels] == [False]

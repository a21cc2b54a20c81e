"""What is asked in which order, what holds for a whole audit, and what a pipeline that is none is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pytest
from painters import MEMORY, SIDE, noise, put_pictures

from nemo_edge.recipe.prompts import Prompt, read_prompts
from nemo_edge.serving.audit.asking import UNRELATED, Asking, Question, Result
from nemo_edge.serving.audit.base import PAIRS, Asked, AuditSettings, Begun
from nemo_edge.serving.audit.words import read_vocabulary
from nemo_edge.serving.remotes.base import Identity, Refusal
from nemo_edge.system.errors import InputError
from nemo_edge.system.progress import Progress

SETTINGS = AuditSettings(variants=2, seeds=2)


class Drawing:
    """A remote pipeline in this process that keeps what it was sent."""

    def __init__(self, draw: Callable[[str, int], np.ndarray], version: str) -> None:
        self.identity = Identity(kind="command", address="a drawing", version=version)
        self.draw, self.sent = draw, list[tuple[str, int]]()

    def __call__(self, prompt: str, seed: int) -> np.ndarray:
        self.sent.append((prompt, seed))
        return self.draw(prompt, seed)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


def noisy(prompt: str, seed: int) -> np.ndarray:
    """The training picture for the memory, noise for all else."""
    return np.asarray(noise("training pig" if prompt == MEMORY else f"{prompt} {seed}"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    put_pictures(tmp_path)
    (tmp_path / "unknown.csv").write_text(f"Caption\n{MEMORY}\nan owl by night\n")
    return tmp_path


def asking(
    folder: Path,
    draw: Any = noisy,
    settings: AuditSettings = SETTINGS,
    general: bool = False,
    prompts: str = "list.csv",
    version: str = "1",
) -> Asking:
    listed = tuple(read_prompts(folder / prompts))
    others = tuple(read_prompts(folder / "general.txt")) if general else ()
    return Asking(Drawing(draw, version), listed, others, read_vocabulary(None, others), settings, folder / "a.jsonl", Progress())


def sent(made: Asking) -> list[tuple[str, int]]:
    assert isinstance(made.remote, Drawing)
    return made.remote.sent


def test_every_prompt_comes_before_what_is_changed(folder: Path) -> None:
    made = asking(folder, general=True)
    begun, found = made.results()
    assert [(each.group, each.way) for each in found] == [
        *[("memories", "prompt")] * 2,
        *[("never seen", "prompt")] * 4,
        *[("memories", "paraphrases")] * 4,
        *[("memories", "random tokens")] * 4,
    ]
    assert [each.text for each in found[2:6]] == [f"general prompt number {number}" for number in (1, 3, 5, 7)]
    assert sent(made)[:4] == [(f"general prompt number {number}", 0) for number in (0, 2, 4, 6)]
    assert [seed for _, seed in sent(made)[:UNRELATED]] == [0] * UNRELATED, "the others are words alone"
    assert sent(made)[UNRELATED : UNRELATED + 3] == [(f"general prompt number {number}", 1) for number in (0, 2, 4)]
    assert all(each.text != each.prompt for each in found[6:])
    assert begun.size == (SIDE, SIDE)
    assert (begun.copy_pairs, begun.alike_threshold) == (UNRELATED * 2, None)
    assert [[a.copied for a in each.attempts] for each in found[:2]] == [[True, True], [False, False]]


def test_without_general_prompts_texts_of_words_alone_say_what_is_near(folder: Path) -> None:
    made = asking(folder, settings=SETTINGS.model_copy(update={"text": ()}))
    begun, _ = made.results()
    texts = [text for text, _ in sent(made)[:UNRELATED]]
    assert len(set(texts)) == UNRELATED
    assert {word for text in texts for word in text.split()} <= {word.text for word in made.vocabulary.words}
    assert begun.copy_pairs == UNRELATED * 2


def test_a_long_list_is_drawn_as_far_as_a_threshold_needs_it(folder: Path) -> None:
    """A thousand pairs, where they can be had: of every second prompt, and at most 128."""
    (folder / "general.txt").write_text("".join(f"general prompt number {number}\n" for number in range(400)))
    plain = SETTINGS.model_copy(update={"text": ()})
    begun, found = asking(folder, settings=plain, general=True).results()
    assert begun.copy_pairs == 128 * 2
    assert sum(each.group == "never seen" for each in found) == UNRELATED
    many = ["Caption;image", *(f"prompt {number};{number}.png" for number in range(20))]
    for number in range(20):
        noise(f"picture {number}").save(folder / f"{number}.png")
    (folder / "many.csv").write_text("\n".join(many))
    (folder / "a.jsonl").unlink()
    begun, _ = asking(folder, settings=plain, general=True, prompts="many.csv").results()
    assert begun.copy_pairs == PAIRS
    (folder / "a.jsonl").unlink()
    begun, _ = asking(folder, settings=plain, general=True, prompts="unknown.csv").results()
    assert begun.alike_pairs is not None
    assert PAIRS <= begun.alike_pairs < PAIRS + 46


def test_prompts_without_pictures_have_a_threshold_of_their_own(folder: Path) -> None:
    begun, found = asking(folder, prompts="unknown.csv", settings=SETTINGS.model_copy(update={"text": ()})).results()
    assert (begun.copy_threshold, begun.alike_pairs) == (None, UNRELATED * (UNRELATED - 1) // 2)
    assert [[a.copied for a in each.attempts] for each in found] == [[True, True], [False, False]]


def test_a_threshold_that_is_given_costs_six_pictures(folder: Path) -> None:
    made = asking(folder, settings=SETTINGS.model_copy(update={"text": (), "threshold": 0.25}))
    begun, _ = made.results()
    assert (begun.copy_threshold, begun.copy_pairs) == (0.25, None)
    assert len(sent(made)) == 6 + 2 * 2


def blocked(prompt: str, seed: int) -> np.ndarray:
    """As a filter answers two of the general prompts."""
    return np.zeros((SIDE, SIDE, 3), np.uint8) if prompt[-1] in "02" else noisy(prompt, seed)


def notice(prompt: str, seed: int) -> np.ndarray:
    return np.asarray(noise("this was blocked")) if prompt[-1] in "02" else noisy(prompt, seed)


def memorizing(prompt: str, seed: int) -> np.ndarray:
    """One general prompt gives a listed training picture back."""
    return noisy(MEMORY if prompt.endswith("number 0") else prompt, seed)


@pytest.mark.parametrize("prompts", ["list.csv", "unknown.csv"])
@pytest.mark.parametrize("draw", [blocked, notice, memorizing])
def test_what_tells_nothing_takes_no_part_in_the_thresholds(folder: Path, draw: Any, prompts: str) -> None:
    settings = SETTINGS.model_copy(update={"text": ()})
    begun, found = asking(folder, draw, settings=settings, general=True, prompts=prompts).results()
    threshold = begun.alike_threshold if prompts == "unknown.csv" else begun.copy_threshold
    assert threshold is not None
    assert threshold > 0.3
    assert begun.seeded
    assert begun.memorized == (("general prompt number 0",) if (draw, prompts) == (memorizing, "list.csv") else ())
    assert [[a.copied for a in each.attempts] for each in found[:2]] == [[True, True], [False, False]]


def flickering(prompt: str, seed: int) -> np.ndarray:
    """Ignores the seed, but for one pixel."""
    picture = per_prompt(prompt, seed).copy()
    picture[0, 0] = picture[0, 0] // 2 + 16 * seed
    return picture


def test_a_pixel_is_no_other_picture(folder: Path) -> None:
    begun, _ = asking(folder, flickering, settings=SETTINGS.model_copy(update={"text": ()})).results()
    assert not begun.seeded
    (folder / "a.jsonl").unlink()
    with pytest.raises(InputError, match="and the server draws alike pictures whatever the seed"):
        asking(folder, flickering, prompts="unknown.csv").results()
    assert not (folder / "a.jsonl").exists()


def test_a_server_that_tells_no_version_is_known_again_by_a_picture(folder: Path) -> None:
    first = SETTINGS.model_copy(update={"text": (), "limit": 1})
    asking(folder, settings=first, version="").results()
    same = asking(folder, version="")
    same.results()
    assert sent(same)[0][1] == 0
    (folder / "a.jsonl").unlink()
    asking(folder, settings=first, version="").results()
    with pytest.raises(InputError, match=r"a drawing draws another picture of '.*' than when .* began, so that it is another model now"):
        asking(folder, lambda prompt, seed: 255 - noisy(prompt, seed), version="").results()


def test_a_server_that_draws_each_time_anew_cannot_be_known_again(folder: Path) -> None:
    calls: list[str] = []

    def anew(prompt: str, seed: int) -> np.ndarray:
        calls.append(prompt)
        return noisy(prompt if prompt == MEMORY else f"{prompt} {len(calls)}", seed)

    begun, _ = asking(folder, anew, settings=SETTINGS.model_copy(update={"text": (), "limit": 1}), version="").results()
    assert begun.witness is None
    asking(folder, anew, version="").results()


def test_a_journal_of_another_rule_of_copies_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asking(folder, settings=SETTINGS.model_copy(update={"text": ()})).results()
    monkeypatch.setattr("nemo_edge.serving.audit.asking.COUNTED", "another rule")
    with pytest.raises(InputError, match="is of another audit"):
        asking(folder).results()


def test_a_text_that_is_refused_is_kept_and_the_next_is_asked(folder: Path) -> None:
    def strict(prompt: str, seed: int) -> np.ndarray:
        if prompt == MEMORY:
            raise Refusal("answered 400: not this")
        return noisy(prompt, seed)

    _, found = asking(folder, strict, settings=SETTINGS.model_copy(update={"text": ()})).results()
    assert [(each.refusal, len(each.attempts)) for each in found] == [("answered 400: not this", 0), ("", 2)]


def test_pictures_of_the_seeds_that_are_not_refused_count(folder: Path) -> None:
    def at_times(prompt: str, seed: int) -> np.ndarray:
        if prompt == MEMORY and seed in (0, 3):
            raise Refusal(f"answered 400: not {seed}")
        return noisy(prompt, seed)

    settings = SETTINGS.model_copy(update={"text": (), "seeds": 4})
    for prompts in ("list.csv", "unknown.csv"):
        (folder / "a.jsonl").unlink(missing_ok=True)
        _, (found, _) = asking(folder, at_times, settings=settings, prompts=prompts).results()
        assert [(a.seed, a.copied) for a in found.attempts] == [(1, True), (2, True)]
        assert (found.refused_seeds, found.refusal) == ((0, 3), "answered 400: not 3")


def test_one_picture_says_nothing_of_being_alike(folder: Path) -> None:
    def once(prompt: str, seed: int) -> np.ndarray:
        if prompt == MEMORY and seed:
            raise Refusal("answered 400: no more")
        return noisy(prompt, seed)

    _, (found, _) = asking(folder, once, settings=SETTINGS.model_copy(update={"text": ()}), prompts="unknown.csv").results()
    assert (found.attempts, found.refused_seeds) == ((), (1,))


def test_a_prompt_without_a_picture_that_comes_later_needs_seeds_too(folder: Path) -> None:
    (folder / "mixed.csv").write_text(f"Caption;image\n{MEMORY};pig.png\nsomething unknown;\n")
    settings = SETTINGS.model_copy(update={"text": (), "seeds": 1})
    asking(folder, settings=settings.model_copy(update={"limit": 1}), prompts="mixed.csv").results()
    with pytest.raises(InputError, match="no training picture is known for 'something unknown', with --seeds 1"):
        asking(folder, settings=settings, prompts="mixed.csv").results()


def test_what_the_journal_holds_is_not_asked_again(folder: Path) -> None:
    first = asking(folder)
    whole = first.results()
    lines = first.journal.read_text().splitlines(keepends=True)
    first.journal.write_text("".join(lines[:4]) + lines[4][:50])
    again = asking(folder)
    assert again.results() == whole
    assert len(sent(again)) == (len(lines) - 4) * SETTINGS.seeds
    assert first.journal.read_text() == "".join(lines)


def test_more_ways_and_prompts_go_on_from_the_same_journal(folder: Path) -> None:
    asking(folder, settings=SETTINGS.model_copy(update={"text": (), "limit": 1})).results()
    more = asking(folder)
    more.results()
    assert (MEMORY, 0) not in sent(more)
    assert ("an owl by night", 0) in sent(more)


@pytest.mark.parametrize("change", [{"seeds": 3}, {"seed": 1}, {"threshold": 0.2}])
def test_a_journal_of_other_settings_is_refused(folder: Path, change: dict[str, Any]) -> None:
    asking(folder, settings=SETTINGS.model_copy(update={"text": ()})).results()
    with pytest.raises(InputError, match=r"a\.jsonl is of another audit \(server, list or settings\): give another --output"):
        asking(folder, settings=SETTINGS.model_copy(update=change)).results()


def always(picture: str) -> Callable[[str, int], np.ndarray]:
    return lambda prompt, seed: np.asarray(noise(picture))


def per_prompt(prompt: str, seed: int) -> np.ndarray:
    return np.asarray(noise(prompt))


def growing(prompt: str, seed: int) -> np.ndarray:
    return noisy(prompt, seed) if prompt != MEMORY else np.zeros((SIDE, 2 * SIDE, 3), np.uint8)


def refusing(prompt: str, seed: int) -> np.ndarray:
    raise Refusal("answered 401: who are you")


@pytest.mark.parametrize(
    ("draw", "prompts", "seeds", "said"),
    [
        (always("x"), "list.csv", 2, "a drawing draws the same picture of different prompts"),
        (
            per_prompt,
            "unknown.csv",
            2,
            f"no training picture is known for '{MEMORY}', and the server draws alike pictures whatever the seed",
        ),
        (noisy, "unknown.csv", 1, "with --seeds 1: what comes back is then told by pictures of different seeds"),
        (growing, "list.csv", 2, f"a picture of {2 * SIDE} × {SIDE} pixels after one of {SIDE} × {SIDE}"),
        (refusing, "list.csv", 2, "answered 401: who are you"),
    ],
)
def test_what_cannot_be_audited_is_refused(folder: Path, draw: Any, prompts: str, seeds: int, said: str) -> None:
    settings = SETTINGS.model_copy(update={"seeds": seeds})
    with pytest.raises(InputError, match=said):
        asking(folder, draw, settings=settings, prompts=prompts).results()


def test_a_server_without_seeds_is_asked_once_for_each_text(folder: Path) -> None:
    begun, found = asking(folder, per_prompt, settings=SETTINGS.model_copy(update={"text": ()})).results()
    assert not begun.seeded
    assert [len(each.attempts) for each in found] == [1, 1]


def test_a_result_is_either_how_it_began_or_an_answer(folder: Path) -> None:
    made = asking(folder, settings=SETTINGS.model_copy(update={"text": ()}))
    made.results()
    kinds = [type(Result.model_validate_json(line).root) for line in made.journal.read_text().splitlines()]
    assert kinds == [Begun, Asked, Asked]


def test_a_question_is_found_again_by_all_that_it_is() -> None:
    question = Question("memories", Prompt(text="a"), "d", "prompt", "a")
    assert question.key == ("memories", "a", "d", "prompt", "a")

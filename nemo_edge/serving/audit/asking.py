"""Every prompt of an audit asked, one text after the other; what came is kept at once, so that an interrupted audit goes on.

Knows a remote pipeline and what it is asked; what the answers come to is for others to say.
"""

from __future__ import annotations

__all__ = ["UNRELATED", "Asking", "Question", "Result"]

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from math import ceil
from pathlib import Path

import numpy as np
from pydantic import RootModel

from nemo_edge.localization.paraphrases import paraphrases
from nemo_edge.measure.attacks.base import COUNTED, Group
from nemo_edge.measure.attacks.controls import Known
from nemo_edge.measure.attacks.text import thrown_in
from nemo_edge.measure.replication import tiled_distances
from nemo_edge.recipe.prompts import Prompt
from nemo_edge.recipe.settings import Way
from nemo_edge.serving.audit.base import PAIRS, Asked, AuditSettings, Begun, Witness
from nemo_edge.serving.audit.calibration import Calibration, calibrate, telling
from nemo_edge.serving.audit.copies import Gallery
from nemo_edge.serving.audit.words import Vocabulary
from nemo_edge.serving.remotes.base import Identity, Refusal, Remote
from nemo_edge.system.errors import InputError
from nemo_edge.system.files import sha256_json
from nemo_edge.system.journal import append, read_lines
from nemo_edge.system.progress import Advance, Progress

UNRELATED = 16
"""Fewest prompts that are not memorized whose pictures the thresholds come from; as many others are the control."""
_MOST_UNRELATED = 128
"""As many of a long list, as far as they are needed for `PAIRS` pairs."""
_PAIRED = 46
"""Pictures that have so many pairs among themselves."""
_TWICE = 3
"""Prompts that are drawn from two seeds, to see whether the seed counts."""
_ALIKE = 2
"""Pictures that can be alike."""
_Key = tuple[str, str, str, str, str]


class Result(RootModel[Begun | Asked]):
    """A line of the journal: how an audit began, and then what each text gave."""


@dataclass(frozen=True)
class Question:
    """A text that is sent, and the prompt and training picture that it is about."""

    group: Group
    prompt: Prompt
    digest: str
    way: Way
    text: str

    @property
    def key(self) -> _Key:
        """By which a result is found again."""
        return self.group, self.prompt.text, self.digest, self.way, self.text


@dataclass(frozen=True)
class Asking:
    """Asks a server."""

    remote: Remote
    listed: tuple[Prompt, ...]
    """All prompts, whose known training pictures every picture is compared with; the first `settings.limit` are sent."""
    general: tuple[Prompt, ...]
    """Prompts that are not memorized; may be empty."""
    vocabulary: Vocabulary
    settings: AuditSettings
    journal: Path
    progress: Progress

    def results(self) -> tuple[Begun, list[Asked]]:
        """Ask what was not asked yet. Raises `InputError` for a journal of another audit, and for what the server does not draw."""
        begun, known = self._kept()
        kept, begun = begun, begun or self._begin()
        self._check_seeds(begun.seeded)
        if kept is None:
            append(self.journal, begun)
        gallery, questions = Gallery(self._gallery(begun.size), begun), list(self._questions())
        if kept and any(question.key not in known for question in questions):
            self._check_same(kept)
        seeds = range(self.settings.seeds if begun.seeded else 1)
        with self.progress.task("audit", len(questions) * len(seeds)) as advance:
            for question in questions:
                if question.key not in known:
                    known[question.key] = self._asked(question, gallery, seeds)
                    append(self.journal, known[question.key])
                advance(len(seeds))
        return begun, [known[question.key] for question in questions]

    @cached_property
    def inputs(self) -> str:
        """Hash of all that the results depend on beside the prompts that are sent and the ways."""
        settings = self.settings.model_dump(mode="json", exclude={"limit", "text", "most"})
        lists = [[prompt.text for prompt in self.listed], [*self._digests.values()], [prompt.text for prompt in self.general]]
        identity: Identity = self.remote.identity
        return sha256_json(["audit", COUNTED, identity.model_dump(mode="json"), settings, lists, self.vocabulary.digest])

    @cached_property
    def _digests(self) -> dict[Path, str]:
        """The sha256 of each known training picture."""
        return {path: Known(path, (0, 0)).digest for path in dict.fromkeys(p.image for p in self.listed) if path is not None}

    def _gallery(self, size: tuple[int, int]) -> tuple[Known, ...]:
        """Each known training picture once."""
        found = {self._digest(p): Known(p.image, size, p.text) for p in reversed(self.listed) if p.image is not None}
        return tuple(reversed(found.values()))

    def _digest(self, prompt: Prompt) -> str:
        return self._digests[prompt.image] if prompt.image is not None else ""

    def _kept(self) -> tuple[Begun | None, dict[_Key, Asked]]:
        """What the journal holds."""
        begun, found = None, dict[_Key, Asked]()
        for line in read_lines(Result, self.journal) if self.journal.is_file() else ():
            each = line.root
            if each.inputs != self.inputs:
                raise InputError(f"{self.journal} is of another audit (server, list or settings): give another --output, or delete it")
            if isinstance(each, Begun):
                begun = each
            else:
                found[each.group, each.prompt, each.picture, each.way, each.text] = each
        return (begun, found) if begun else (None, {})

    def _questions(self) -> Iterator[Question]:
        """Every prompt as it is, then the control, then every prompt changed."""

        def question(prompt: Prompt, way: Way, text: str) -> Question:
            return Question("memories", prompt, self._digest(prompt), way, text)

        sent = self.listed[: self.settings.limit]
        yield from (question(prompt, "prompt", prompt.text) for prompt in sent)
        for prompt in self.general[1 : 2 * UNRELATED : 2]:
            yield Question("never seen", prompt, "", "prompt", prompt.text)
        changed: dict[Way, Callable[[str], Sequence[str]]] = {"paraphrases": self._paraphrases, "random tokens": self._thrown_in}
        for way in self.settings.text:
            yield from (question(prompt, way, text) for prompt in sent for text in changed[way](prompt.text))

    def _paraphrases(self, prompt: str) -> Sequence[str]:
        return [each.text for each in paraphrases(prompt, self.settings.variants, self.settings.seed)]

    def _thrown_in(self, prompt: str) -> Sequence[str]:
        return thrown_in(prompt, self.vocabulary.words, self.settings.changes)

    def _asked(self, question: Question, gallery: Gallery, seeds: Sequence[int]) -> Asked:
        """Of what is refused the server's words; what was drawn from other seeds counts."""
        asked = Asked(
            inputs=self.inputs,
            attack="text",
            way=question.way,
            group=question.group,
            prompt=question.prompt.text,
            picture=question.digest,
            attempts=(),
            text=question.text,
        )
        drawn, refusal = self._unless_refused(question.text, seeds, gallery.begun.size)
        refused = tuple(seed for seed in seeds if seed not in drawn)
        asked = asked.model_copy(update={"refusal": refusal, "refused_seeds": refused})
        if not drawn:
            return asked
        if question.group == "never seen":
            return asked.model_copy(update={"attempts": gallery.control_attempts(drawn, question.text)})
        own = Known(question.prompt.image, gallery.begun.size, question.prompt.text)
        attempts, others = gallery.attempts(own, drawn, question.text)
        judged = own.path is not None or len(drawn) >= _ALIKE or others  # a lone picture is alike to none
        return asked.model_copy(update={"attempts": attempts if judged else (), "others": others})

    def _unless_refused(self, text: str, seeds: Sequence[int], size: tuple[int, ...] | None) -> tuple[dict[int, np.ndarray], str]:
        """The pictures of a text by the seeds that it is drawn from, and the server's last words on the others."""
        drawn, words = dict[int, np.ndarray](), ""
        for seed in seeds:
            try:
                drawn[seed] = self._drawn(text, seed, size)
            except Refusal as refusal:
                words = str(refusal)
        return drawn, words

    def _drawn(self, text: str, seed: int, size: tuple[int, ...] | None) -> np.ndarray:
        picture = self.remote(text, seed)
        found = picture.shape[0], picture.shape[1]
        if size is not None and found != size:
            raise InputError(
                f"{self.remote.identity.address} drew a picture of {found[1]} × {found[0]} pixels after one of {size[1]} × {size[0]}: have "
                "it draw all in one size, since only these are compared"
            )
        return picture

    def _begin(self) -> Begun:
        """Draw pictures of prompts that are not memorized: their size, what counts as near, and whether the seed counts."""
        texts = self._unrelated()
        with self.progress.task("unrelated pictures", len(texts) + _TWICE) as advance:
            drawn = self._unrelated_pictures(texts, advance)
            first = next(iter(drawn.values()))
            size = first.shape[0], first.shape[1]
            found = calibrate(drawn, self._gallery(size), self.settings.threshold, self._alike, self.remote.identity.address)
            seeded = self._counts(found, drawn)
            advance(_TWICE)
        for text in found.memorized:
            self.progress.note(f"{text!r} is said not to be memorized, and draws a listed training picture: no threshold comes from it")
        return Begun(
            inputs=self.inputs,
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            size=size,
            seeded=seeded,
            copy_threshold=found.copies.distance,
            copy_pairs=found.copies.pairs,
            alike_threshold=found.alike.distance,
            alike_pairs=found.alike.pairs,
            memorized=found.memorized,
            witness=self._witness(found.texts[0], drawn),
        )

    @property
    def _alike(self) -> bool:
        """Whether some prompt is judged by its pictures being alike."""
        return any(prompt.image is None for prompt in self.listed)

    def _unrelated(self) -> Sequence[str]:
        """Every second of the general prompts, as many as make enough pairs; where these are few, texts of words alone, too."""
        known = len({*self._digests.values()})
        wanted = max(UNRELATED, min(ceil(PAIRS / known), _MOST_UNRELATED) if known else 0, _PAIRED if self._alike else 0)
        texts = [prompt.text for prompt in self.general[: 2 * wanted : 2]]
        plain = thrown_in("", self.vocabulary.words, self.settings.changes.model_copy(update={"variants": UNRELATED}))
        return [*texts, *(text for text in plain if text not in texts)][: max(UNRELATED, len(texts))]

    def _unrelated_pictures(self, texts: Sequence[str], advance: Advance) -> dict[str, np.ndarray]:
        """A picture of each text that is not refused; where the threshold is given, of as many as show whether the seed counts."""
        drawn, size, words = dict[str, np.ndarray](), None, ""
        for text in texts:
            found, said = self._unless_refused(text, (0,), size)
            words = said or words
            for picture in found.values():
                drawn[text], size = picture, (picture.shape[0], picture.shape[1])
            advance(1)
            if self.settings.threshold is not None and drawn and telling(np.stack([*drawn.values()])).sum() >= _TWICE:
                break
        if not drawn:
            raise InputError(f"{self.remote.identity.address} draws no prompt ({words}): give some that it draws with --general")
        return drawn

    def _counts(self, found: Calibration, drawn: Mapping[str, np.ndarray]) -> bool:
        """Whether another seed gives another picture, of most of some prompts."""
        far = [
            tiled_distances(drawn[text][None], other[None])[0, 0] > found.apart
            for text in found.texts[:_TWICE]
            for other in self._unless_refused(text, (1,), drawn[text].shape[:2])[0].values()
        ]
        return bool(2 * sum(far) > len(far))

    def _witness(self, text: str, drawn: Mapping[str, np.ndarray]) -> Witness | None:
        """A picture by which a server that tells no version is known again, if it draws that again."""
        if self.remote.identity.version:
            return None
        again = self._unless_refused(text, (0,), drawn[text].shape[:2])[0].get(0)
        return Witness(text=text, digest=_digest(again)) if again is not None and np.array_equal(again, drawn[text]) else None

    def _check_same(self, begun: Begun) -> None:
        """Raise `InputError` where a server draws another picture than it did when the audit began."""
        seen = begun.witness
        if seen is not None and _digest(self._drawn(seen.text, 0, begun.size)) != seen.digest:
            raise InputError(
                f"{self.remote.identity.address} draws another picture of {seen.text!r} than when {self.journal} began, so that it is "
                "another model now: give another --output, or delete it"
            )

    def _check_seeds(self, seeded: bool) -> None:
        """Raise `InputError` for a prompt without a known picture where there is nothing that its pictures can be alike to."""
        unknown = [prompt.text for prompt in self.listed[: self.settings.limit] if prompt.image is None]
        if unknown and not (seeded and self.settings.seeds >= _ALIKE):
            reason = f"with --seeds {self.settings.seeds}" if seeded else "and the server draws alike pictures whatever the seed"
            raise InputError(
                f"no training picture is known for {unknown[0]!r}, {reason}: what comes back is then told by pictures of different seeds; "
                "name its picture in a column image"
            )


def _digest(picture: np.ndarray) -> str:
    return hashlib.sha256(picture.tobytes()).hexdigest()

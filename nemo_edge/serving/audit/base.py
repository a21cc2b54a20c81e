"""What an audit is told to do, what it keeps of each prompt, and what it came to.

Knows values alone: no server, no pictures.
"""

from __future__ import annotations

__all__ = ["NO_PROOF", "PAIRS", "Asked", "Audit", "AuditSettings", "Begun", "Giver", "Other", "Part", "Witness", "merged", "part_of"]

from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, field_validator

from nemo_edge.measure.attacks.base import Attacked, Attempt, Count, Rate, levels, rates
from nemo_edge.recipe.limits import Seed
from nemo_edge.recipe.settings import AttackSettings, Settings
from nemo_edge.serving.remotes.base import Identity
from nemo_edge.system.environment import Machine

BlackBox = Literal["paraphrases", "random tokens"]
"""Attacks with text that need no weights."""

NO_PROOF = (
    "nothing found is no proof: searches that need the weights were not run, and no control without them says how much these texts find; "
    "no level of an attacker is claimed"
)
"""What stands under every audit."""
PAIRS = 1000
"""Unrelated pairs from which on a threshold is more than their smallest distance, since one in a thousand lies below it."""
_OTHER = ", their own or another's"


class AuditSettings(Settings):
    """How a server is asked."""

    limit: int | None = Field(default=None, ge=1)
    """Send the first so many of the prompts."""
    text: tuple[BlackBox, ...] = ("paraphrases", "random tokens")
    """What is sent beside each prompt: small changes of its words, and words thrown into it. Empty: nothing."""
    variants: int = Field(default=16, ge=1, le=1000)
    """Texts of each kind for a prompt."""
    words: int = Field(default=4, ge=1, le=32)
    """Most words that are thrown into a prompt."""
    seeds: int = Field(default=4, ge=1, le=1000)
    """Pictures of each text, from the seeds 0 up to this number."""
    seed: Seed = 0
    """Of the choice of texts."""
    threshold: Annotated[float, Field(gt=0, le=1)] | None = None
    """The largest distance of a copy; else it comes from pictures of prompts that are not memorized."""
    most: int | None = Field(default=None, ge=0)
    """Prompts that may give a picture back, as they are or changed; with more the audit is failed. None: it has no verdict."""

    @field_validator("text")
    @classmethod
    def _check_distinct(cls, ways: tuple[BlackBox, ...]) -> tuple[BlackBox, ...]:
        if len(set(ways)) < len(ways):
            raise ValueError("one is named twice")
        return ways

    @property
    def changes(self) -> AttackSettings:
        """What texts are made by."""
        return AttackSettings(starts=(), variants=self.variants, words=self.words, seed=self.seed)


class _Result(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Other(_Result):
    """A copy of a training picture that is another prompt's in the list."""

    seed: int
    prompt: str
    picture: str
    """sha256 of its file."""
    distance: float


class Asked(Attacked):
    """What a server gave for one text. `way` is "prompt" for a prompt as it is; without attempts the text was refused."""

    text: str
    others: tuple[Other, ...] = ()
    """Of pictures that are no copies of its own."""
    refusal: str = ""
    """The server's words, the last ones."""
    refused_seeds: tuple[int, ...] = ()
    """From which it drew nothing; the attempts are of the others."""

    @property
    def counted(self) -> tuple[Attempt, ...]:
        """The attempts, of which one is a copy where it is one of another prompt's training picture, too."""
        seeds = {other.seed for other in self.others}
        return tuple(each.model_copy(update={"copied": each.copied or each.seed in seeds}) for each in self.attempts)


class Witness(_Result):
    """A picture that a server drew from the seed 0."""

    text: str
    digest: str
    """sha256 of its pixels."""


class Begun(_Result):
    """What holds for a whole audit, found before its first prompt."""

    inputs: str
    """Hash of all that the results depend on beside the prompts that were sent and the ways."""
    date: str
    """When it began, UTC."""
    size: tuple[int, int]
    """Height and width of the pictures."""
    seeded: bool
    """Whether another seed gives another picture; else each text is drawn once."""
    copy_threshold: float | None
    """The largest distance of a copy of a training picture; None where none is known."""
    copy_pairs: int | None
    """Unrelated pairs that it comes from; None where it was given."""
    alike_threshold: float | None
    """The largest distance of pictures that are alike; None where each prompt's training picture is known."""
    alike_pairs: int | None
    memorized: tuple[str, ...] = ()
    """Prompts that were said not to be memorized and draw a known training picture; no threshold comes from them."""
    witness: Witness | None = None
    """Of a server that tells no version and draws the same once more: by what it is known again."""


class Part(_Result):
    """Prompts of one kind: how many gave a picture back, their own or another's, as they are and in each way, and by any of them."""

    rates: tuple[Rate, ...]
    total: Count


class Giver(NamedTuple):
    """A prompt that gave a picture back."""

    prompt: str
    own: tuple[int, int]
    """Copies among the pictures of the prompt as it is, of its own training picture or another's."""
    changed: tuple[int, int]
    """Of it changed."""
    nearest: float
    """The least distance of all to its own; where only another's came back, to that."""


class Audit(_Result):
    """What came of asking a server."""

    schema_version: Literal[1] = 1
    begun: Begun
    remote: Identity
    prompts_hash: str
    """sha256 of the list."""
    general_hash: str
    """Of the list of prompts that are not memorized; empty without one."""
    vocabulary: str
    """Where the words that were thrown in come from, and how many there are."""
    settings: AuditSettings
    machine: Machine
    """That asked."""
    known: Part | None
    """Prompts with a known training picture: whether it came back."""
    unknown: Part | None
    """Those without: whether pictures of different seeds are alike, as those of a memory are."""
    control: Rate | None
    """Prompts that are not memorized and were not used for the threshold."""
    others: int
    """Pictures that are copies of another prompt's training picture, and not of their own."""
    refused: int
    """Texts that the server drew nothing of."""
    asked: tuple[Asked, ...]

    @property
    def returned(self) -> int:
        """Prompts that gave a picture back, their own or another's, as they are or changed."""
        return len(self.givers)

    @property
    def unanswered(self) -> tuple[str, ...]:
        """Prompts that nothing was drawn of, neither as they are nor changed."""
        return tuple(own[0].prompt for own in self._prompts if not any(each.attempts for each in own))

    @property
    def givers(self) -> tuple[Giver, ...]:
        """These prompts, in the order of the list."""
        return tuple(_giver(own) for own in self._prompts if any(a.copied for each in own for a in each.counted))

    @property
    def _prompts(self) -> tuple[list[Asked], ...]:
        """What was asked of each prompt of the list."""
        own: dict[tuple[str, str], list[Asked]] = {}
        for each in (a for a in self.asked if a.group == "memories"):
            own.setdefault((each.prompt, each.picture), []).append(each)
        return tuple(own.values())

    @property
    def passed(self) -> bool | None:
        """Whether no more did than may; None where no limit was given, or where a prompt was not answered and the others kept to it."""
        if self.settings.most is None:
            return None
        kept = self.returned <= self.settings.most
        return None if kept and self.unanswered else kept

    @property
    def verdicts(self) -> tuple[str, ...]:
        """What may be said, a sentence each."""
        said = []
        if self.known:
            said += _sentences(self.known, f"give back {'a' if self.others else 'their'} training picture{_OTHER if self.others else ''}")
        if self.unknown:
            other = " or another's training picture" if self.others else ""
            said += _sentences(self.unknown, f"without a known picture draw alike pictures from most seeds, as of a memory{other}")
        if self.others:
            said.append(f"{self.others} pictures are copies of another listed prompt's training picture")
        if self.control:
            count = self.control.count
            said.append(f"of prompts that are not memorized {count.returned} of {count.of} read as copies ({count.bound})")
        said += self._refusals
        if not self.begun.seeded:
            said.append("it draws alike pictures whatever the seed: each text was drawn once")
        said += self._doubts
        return (*said, NO_PROOF)

    @property
    def _doubts(self) -> list[str]:
        """Of what the thresholds come from."""
        named = ", ".join(map(repr, self.begun.memorized))
        drawing = "said not to be memorized, and drawing a listed training picture (no threshold comes from them)"
        said = [f"{drawing}: {named}"] if named else []
        tries = max((sum(len(each.attempts) for each in own) for own in self._prompts), default=0)
        for part, what, pairs in ((self.known, "a copy", self.begun.copy_pairs), (self.unknown, "alike", self.begun.alike_pairs)):
            if part and pairs is not None and pairs < PAIRS:
                said.append(
                    f"what is {what} is told by the nearest of {pairs} unrelated pairs, and a prompt had up to {tries} tries, so that some "
                    "may be chance: give more prompts with --general, or --threshold"
                )
        return said

    @property
    def _refusals(self) -> list[str]:
        """Of texts that were refused whole, and of single pictures."""
        words = next((a.refusal for a in self.asked if a.refusal), "")
        single = sum(len(each.refused_seeds) for each in self.asked if each.attempts)
        said = [f"{self.refused} of {len(self.asked)} texts were refused: {words}"] if self.refused else []
        said += [f"of texts that were drawn {single} pictures were refused: {words}"] if single else []
        if self.unanswered:
            of = f"{len(self.unanswered)} of {len(self._prompts)} prompts"
            said.append(f"of {of} nothing was drawn, so that nothing is known of them")
        return said


def merged(asked: Sequence[Asked]) -> list[Attacked]:
    """Return what became of each prompt in each way, its texts together, in order; of texts that were not refused. An attempt is copied
    where it is a copy of another's training picture, too."""
    found: dict[tuple[str, str, str, str], Attacked] = {}
    for each in (a for a in asked if a.attempts):
        key = each.group, each.prompt, each.picture, each.way
        former = found[key].attempts if key in found else ()
        own = each.model_dump(include=set(Attacked.model_fields) - {"attempts"})
        found[key] = Attacked(**own, attempts=(*former, *each.counted))
    return list(found.values())


def part_of(attacked: Sequence[Attacked]) -> Part | None:
    """Return what prompts of one kind came to; None where none was answered."""
    return Part(rates=rates(attacked), total=levels(attacked)[0].memories) if attacked else None


def _giver(asked: Sequence[Asked]) -> Giver:
    ways = {plain: [a for each in asked if (each.way == "prompt") is plain for a in each.counted] for plain in (True, False)}
    own, changed = ((sum(a.copied for a in ways[plain]), len(ways[plain])) for plain in (True, False))
    copies = [a.distance for each in asked for a in each.attempts if a.copied] or [o.distance for each in asked for o in each.others]
    return Giver(asked[0].prompt, own, changed, min(copies))


def _sentences(part: Part, what: str) -> list[str]:
    """Of prompts as they are, and of all that was sent."""
    own = next((rate.count for rate in part.rates if rate.way == "prompt"), None)
    said = [] if own is None else [f"{own.returned} of {own.of} prompts {what} ({own.bound}, 95 % confidence)"]
    ways = " or ".join(rate.way for rate in part.rates if rate.way != "prompt")
    return [*said, f"with {ways} too it is {part.total.returned} of {part.total.of} ({part.total.bound})"] if ways else said

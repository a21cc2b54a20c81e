"""An audit from a list of prompts to a file: what is given is checked, the server asked, and what came back counted.

The list may name prompts that are not memorized (type N); they, and a list of general prompts, are the negative control, and the
thresholds come from every second of them.
"""

from __future__ import annotations

__all__ = ["audit", "journal_of"]

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from nemo_edge.measure.attacks.base import Rate, rates
from nemo_edge.measure.attacks.campaign import journal_of
from nemo_edge.recipe.prompts import Prompt, check_apart, distinct, read_prompts
from nemo_edge.serving.audit.asking import Asking
from nemo_edge.serving.audit.base import Audit, AuditSettings, merged, part_of
from nemo_edge.serving.audit.words import read_vocabulary
from nemo_edge.serving.remotes.opening import Address, open_remote
from nemo_edge.system.environment import machine
from nemo_edge.system.errors import InputError
from nemo_edge.system.files import check_file, sha256_file, write_atomically
from nemo_edge.system.outputs import lock
from nemo_edge.system.progress import Progress
from nemo_edge.system.reading import read_bytes

_FEWEST_GENERAL = 4
"""Two for the thresholds, and two others as the control."""


def audit(
    address: Address,
    prompts: Path,
    settings: AuditSettings,
    output: Path,
    *,
    general: Path | None = None,
    vocabulary: Path | None = None,
    progress: Progress | None = None,
) -> Audit:
    """Ask the pipeline at an address for pictures of a list and write `output`, and beside it a line for each text as soon as it is done.

    `general` are prompts that are not memorized, `vocabulary` a folder whose tokenizer has the words that are thrown in. Raises
    `InputError` for a list without a prompt, one that is in both, an address as `open_remote`, a server that does not draw, and an output
    of another audit.
    """
    progress = progress or Progress()
    check_file(output)
    listed, others = _lists(prompts, general, progress)
    words = read_vocabulary(vocabulary, others)
    with open_remote(address) as remote, lock(output):
        asking = Asking(remote, listed, others, words, settings, journal_of(output), progress)
        _check_output(output, asking.inputs)
        begun, asked = asking.results()
    attacked = merged(asked)
    memories = [each for each in attacked if each.group == "memories"]
    made = Audit(
        begun=begun,
        remote=remote.identity,
        prompts_hash=sha256_file(prompts),
        general_hash=sha256_file(general) if general else "",
        vocabulary=words.name,
        settings=settings,
        machine=machine(),
        known=part_of([each for each in memories if each.picture]),
        unknown=part_of([each for each in memories if not each.picture]),
        control=_control(rates([each for each in attacked if each.group == "never seen"])),
        others=len({(each.text, other.seed) for each in asked for other in each.others}),
        refused=sum(not each.attempts for each in asked),
        asked=tuple(asked),
    )
    write_atomically(output, made.model_dump_json(indent=1) + "\n")
    return made


def _control(found: Sequence[Rate]) -> Rate | None:
    return found[0] if found else None


def _lists(prompts: Path, general: Path | None, progress: Progress) -> tuple[tuple[Prompt, ...], tuple[Prompt, ...]]:
    """The prompts that may be memorized, each text and picture once, and those that are not."""
    read = read_prompts(prompts, tell=progress.note)
    listed = tuple({(p.text, p.image): p for p in read if p.label is not False}.values())
    if not listed:
        raise InputError(f"prompts file {prompts} holds no prompt that may be memorized: all are of type N, so give them as --general")
    own = [p for p in read if p.label is False]
    others = distinct([*own, *(read_prompts(general, tell=progress.note) if general else ())])
    check_apart(others, listed, general or prompts, prompts)
    if len(others) < _FEWEST_GENERAL and general:
        raise InputError(f"{general} holds {len(others)} different prompts, {_FEWEST_GENERAL} are needed: add some, or leave --general out")
    return listed, tuple(others) if len(others) >= _FEWEST_GENERAL else ()


def _check_output(output: Path, inputs: str) -> None:
    """Raise `InputError` for a file that is there and is not of this audit."""
    if not output.is_file():
        return
    try:
        same = Audit.model_validate_json(read_bytes(output)).begun.inputs == inputs
    except (InputError, ValidationError):
        same = False
    if not same:
        raise InputError(f"{output} exists and is not of this audit (server, list or settings): give another --output, or delete it")

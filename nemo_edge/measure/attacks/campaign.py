"""Every known picture attacked in every way, and both controls; what is done is taken up after an interruption.

The positive control attacks the model with nothing silenced, from nothing that is memorized: an attack that does not bring its memories
back says nothing of another model. The negative control attacks pictures that the model never saw: what comes back of these was painted.
"""

from __future__ import annotations

__all__ = ["ATTACK", "Campaign", "attack", "attack_bundle", "attack_subject", "journal_of"]

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from nemo_edge.measure.attacks._run import Run
from nemo_edge.measure.attacks.base import Attacked, Level, Rate, levels, rates
from nemo_edge.measure.attacks.controls import Known, check_controls, check_inputs, known_prompts
from nemo_edge.measure.attacks.subject import Place, Subject, check_place, open_bundle_subject, open_subject
from nemo_edge.measure.attacks.switches import Switch, switches
from nemo_edge.model.checkpoint import Checkpoint
from nemo_edge.recipe.prompts import Prompt, read_prompts
from nemo_edge.recipe.recipe import Recipe
from nemo_edge.recipe.settings import AttackKind, AttackSettings
from nemo_edge.system.environment import machine
from nemo_edge.system.errors import BundleError, InputError
from nemo_edge.system.files import check_file, write_atomically
from nemo_edge.system.outputs import lock
from nemo_edge.system.progress import Progress
from nemo_edge.system.reading import read_bytes

ATTACK = "attack.json"
"""What a bundle's attack came to, in its folder."""


class Campaign(BaseModel):
    """What came of attacking a model."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    schema_version: Literal[2] = 2
    inputs: str
    """Hash of all that the results depend on beside the pictures."""
    source: str
    """The name of the bundle or the checkpoint."""
    checkpoint: dict[str, str]
    """sha256 of each of its files."""
    neurons: int
    """How many are silenced."""
    neurons_hash: str
    """Which."""
    engine: str
    """What drew the pictures; embeddings and text are found in eager PyTorch, and the unmitigated model draws in it."""
    settings: AttackSettings
    sampling: dict[str, Any]
    versions: dict[str, str]
    copy_threshold: float
    threshold_pairs: int | None
    """Unrelated pairs that it comes from; None where the bundle was measured by it."""
    levels: tuple[Level, ...]
    """What each kind of attacker gets."""
    rates: tuple[Rate, ...]
    switches: tuple[Switch, ...]
    """What brings every memory back without an attack."""
    attacked: tuple[Attacked, ...]

    def level(self, kind: AttackKind) -> Level | None:
        """What an attack of this kind came to; None where there was none."""
        return next((level for level in self.levels if level.attack == kind), None)

    @classmethod
    def read(cls, folder: Path) -> Campaign | None:
        """Read a bundle's; None where it was not attacked. Raises `BundleError` for one of another schema."""
        path = folder / ATTACK
        if not path.is_file():
            return None
        try:
            return cls.model_validate_json(read_bytes(path))
        except (InputError, ValidationError) as error:
            raise BundleError(f"{path} is no result of an attack that this nemo-edge reads: build the bundle again") from error


def journal_of(output: Path) -> Path:
    """Where results are kept as they come: a file beside the output."""
    return output.with_name(f"{output.name}l" if output.suffix == ".json" else f"{output.name}.jsonl")


def attack(place: Place, prompts: Path, settings: AttackSettings, output: Path, progress: Progress | None = None) -> Campaign:
    """Attack a bundle or a checkpoint and write `output`, and beside it a line for each picture and way as soon as it is done.

    Raises `InputError` where a training picture is not known that is needed, where controls are none or training pictures, where the
    unrelated prompt is of the list, and for an interrupted attack on something else; `BundleError` as `check_place`.
    """
    progress = progress or Progress()
    check_file(output)
    listed = read_prompts(prompts, tell=progress.note)
    check_inputs(listed, prompts, settings)
    manifest = check_place(place)
    with lock(output), open_subject(place, manifest) as subject:
        found = attack_subject(subject, listed, prompts, settings, output, progress)
    if manifest is not None:
        found = found.model_copy(update={"switches": switches(Path(place.source.path), manifest.variants)})
    found = found.model_copy(update={"source": Path(place.source.path).resolve().name})
    write_atomically(output, found.model_dump_json(indent=1) + "\n")
    return found


def attack_bundle(
    checkpoint: Checkpoint,
    bundle: Path,
    recipe: Recipe,
    listed: Sequence[Prompt],
    folder: Path,
    progress: Progress,
    hardened: Checkpoint | None = None,
) -> Campaign:
    """Attack a bundle in the making as its recipe says, and write `attack.json` into `folder`. Raises `InputError` as `attack`."""
    assert recipe.attack is not None
    output = folder / ATTACK
    with open_bundle_subject(checkpoint, bundle, recipe, hardened) as subject:
        found = attack_subject(subject, listed, recipe.prompts.memorized, recipe.attack, output, progress)
    found = found.model_copy(update={"source": recipe.name, "switches": switches(bundle, recipe.export.variants)})
    write_atomically(output, found.model_dump_json(indent=1) + "\n")
    return found


def attack_subject(
    subject: Subject, listed: Sequence[Prompt], prompts: Path, settings: AttackSettings, output: Path, progress: Progress
) -> Campaign:
    """Attack what is open, with results kept beside `output` as they come; what is said of its switches and name is for the caller."""
    chosen = known_prompts(listed, prompts, settings)
    memories = tuple(Known(prompt.image, subject.size, prompt.text) for prompt in chosen)
    pictures = [Known(path, subject.size) for path in check_controls(settings, chosen)]
    never = tuple({known.digest: known for known in pictures}.values())
    run = Run(subject, memories, never, settings, journal_of(output), progress)
    attacked = run.results()
    return Campaign(
        inputs=run.inputs,
        source=subject.checkpoint.source,
        checkpoint=subject.checkpoint.files,
        neurons=len(subject.neurons),
        neurons_hash=subject.neurons.content_hash(),
        engine=subject.engine,
        settings=settings.model_copy(update={"controls": None}),
        sampling=subject.sampling.model_dump(mode="json"),
        versions=machine().versions,
        copy_threshold=run.threshold[0],
        threshold_pairs=run.threshold[1],
        levels=levels(attacked),
        rates=rates(attacked),
        switches=(),
        attacked=tuple(attacked),
    )

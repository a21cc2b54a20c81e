"""Adversarial fine-tuning: rounds of an attack on one memory and a step of the weights against it (Finding DoRI, arXiv 2507.16880).

The attack goes on while the weights change, and begins anew from prompt, noise and other prompts. What it has found is taught the answer of
the mitigated model to the memory's prompt; everything else is held by the mitigated model's own answers. Unlike there, no training set is
needed: the pictures are the mitigated model's. An interrupted run goes on. Knows nothing of whether it helped.
"""

from __future__ import annotations

__all__ = ["HARDENING", "Hardened", "check_pictures", "check_source", "harden", "harden_opened", "work_of"]

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from nemo_edge.bundle.manifest import staging
from nemo_edge.hardening._rounds import Round, Run
from nemo_edge.model.checkpoint import Checkpoint, open_source, value_layers
from nemo_edge.model.neurons import NeuronSet, read_neurons
from nemo_edge.recipe.hardening import HardeningSettings
from nemo_edge.recipe.prompts import Prompt, check_apart, distinct, read_prompts
from nemo_edge.recipe.settings import CheckpointSettings, SamplingSettings
from nemo_edge.system.environment import Machine, machine
from nemo_edge.system.errors import InputError
from nemo_edge.system.files import check_folder, checkpoint_folder, leftovers, sha256_file, sha256_json, write_atomically
from nemo_edge.system.outputs import beside, lock, remove
from nemo_edge.system.progress import Progress

HARDENING = "hardening.json"
"""In the folder of the checkpoint: how it was made."""


class Hardened(BaseModel):
    """How a checkpoint was made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    checkpoint: dict[str, str]
    """sha256 of each file of the checkpoint that it was made from."""
    neurons: int
    neurons_hash: str
    silenced: bool = True
    """Whether these neurons are silent in it, or only were in the model that taught it."""
    prompts: int
    changed: int
    """Parameters that were free to change, those of silenced rows among them."""
    settings: HardeningSettings
    sampling: dict[str, Any]
    machine: Machine
    seconds: float
    """Of the last run, where it was interrupted."""
    rounds: tuple[Round, ...]


def harden(
    source: CheckpointSettings,
    neurons: Path,
    prompts: Path,
    general: Path,
    output: Path,
    settings: HardeningSettings,
    sampling: SamplingSettings,
    progress: Progress | None = None,
    marks: Sequence[int] = (),
    *,
    silence: bool = True,
) -> Hardened:
    """Write to the folder `output` the checkpoint with its neurons silenced and its UNet hardened; `sampling` draws what is learned.

    Without `silence` only the model that teaches has its neurons silenced: what is made is a model that hardening alone has changed.
    The checkpoint as it is after so many rounds, `marks`, is written too, to `<output>-<rounds>`.

    `prompts` lists the memorized prompts with their training pictures (a column image), `general` others. Raises `InputError` as
    `check_source` and `check_pictures`, for an output that is there, and for too little memory.
    """
    progress = progress or Progress()
    check_source(source)
    if output.exists():
        if (output / HARDENING).is_file():  # a run that was killed when it was done
            with lock(output):
                remove(work_of(output))
        raise InputError(f"the output {output} is there already: give another folder, or delete it")
    check_folder(output)
    listed = distinct(read_prompts(prompts, tell=progress.note))
    check_pictures(listed, prompts)
    others = distinct(read_prompts(general, tell=progress.note))
    check_apart(others, listed, general, prompts)
    checkpoint = open_source(source)
    chosen = read_neurons(neurons, value_layers(checkpoint.unet))
    texts = [prompt.text for prompt in others]
    with lock(output):
        return harden_opened(checkpoint, chosen, listed, texts, output, settings, sampling, progress, marks, silence=silence)


def harden_opened(
    checkpoint: Checkpoint,
    neurons: NeuronSet,
    listed: Sequence[Prompt],
    general: Sequence[str],
    output: Path,
    settings: HardeningSettings,
    sampling: SamplingSettings,
    progress: Progress,
    marks: Sequence[int] = (),
    *,
    silence: bool = True,
) -> Hardened:
    """Harden an open checkpoint, which is changed by it, and write it to `output`; what was begun there is gone on with."""
    started, listed, kept = time.monotonic(), distinct(listed), general[: settings.general]
    told = [checkpoint.files, neurons.content_hash(), kept, settings.model_dump(mode="json"), sampling.model_dump(mode="json"), silence]
    inputs = sha256_json([*told, {prompt.text: sha256_file(prompt.image) for prompt in listed if prompt.image}])
    run = Run(checkpoint, neurons, listed, kept, settings, sampling, work_of(output), inputs, silence=silence)

    def made(rounds: Sequence[Round]) -> Hardened:
        return Hardened(
            checkpoint=checkpoint.files,
            neurons=len(neurons),
            neurons_hash=neurons.content_hash(),
            silenced=silence,
            prompts=len(listed),
            changed=sum(value.numel() for value in run.student.free.values()),
            settings=settings,
            sampling=sampling.model_dump(mode="json"),
            machine=machine(),
            seconds=time.monotonic() - started,
            rounds=tuple(rounds),
        )

    def mark(rounds: Sequence[Round]) -> None:
        place = output.with_name(f"{output.name}-{len(rounds)}")
        if len(rounds) in marks and not place.exists():
            for left in leftovers(place):
                remove(left)
            _publish(checkpoint, place, made(rounds))

    found = made(run.results(progress, mark))
    _publish(checkpoint, output, found)
    remove(work_of(output))
    return found


def work_of(output: Path) -> Path:
    """Where what was begun for `output` is kept until it is done."""
    return beside(output, "hardening")


def check_source(source: CheckpointSettings) -> Path:
    """Return the folder of a checkpoint that can be hardened. Raises `InputError` for one file, and for LoRAs and skipped layers."""
    folder = checkpoint_folder(source.path)
    if folder.is_dir() and not source.loras and not source.clip_skip:
        return folder
    given = "a LoRA is fused into it" if source.loras else "layers of its text encoder are skipped" if source.clip_skip else "is one file"
    raise InputError(
        f"checkpoint {source.path} ({given}): hardening writes a diffusers folder like the one it is given, so save it as one first "
        "(diffusers' save_pretrained)"
    )


def check_pictures(listed: Sequence[Prompt], prompts: Path) -> None:
    """Raise `InputError` where the training picture of a memorized prompt is not known."""
    unknown = [prompt.text for prompt in listed if prompt.image is None]
    if unknown:
        raise InputError(
            f"prompts file {prompts}: no training picture is known for {len(unknown)} of {len(listed)} prompts ({unknown[0]!r}, …), and "
            "weights are hardened against what brings it back: name it in a column image, or leave these prompts out"
        )


def _publish(checkpoint: Checkpoint, output: Path, found: Hardened) -> None:
    """Write the checkpoint's folder with the new UNet, whole or not at all."""
    with staging(output) as staged:
        shutil.copytree(checkpoint_folder(checkpoint.source), staged, ignore=shutil.ignore_patterns("unet"), dirs_exist_ok=True)
        checkpoint.unet.save_pretrained(staged / "unet")  # type: ignore[operator]
        write_atomically(staged / HARDENING, found.model_dump_json(indent=1) + "\n")
        staged.replace(output)

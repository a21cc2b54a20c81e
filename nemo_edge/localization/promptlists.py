"""A whole list of prompts, from a checkpoint's place to what was found: which are memorized, and which neurons hold them.

What the command line calls, and what `nemo_edge.detect` and `nemo_edge.localize` are. What is given is checked first, and PyTorch
imported and the checkpoint opened only then.
"""

from __future__ import annotations

__all__ = ["DetectionOptions", "LocalizationOptions", "detect", "localize"]

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict, Unpack

from nemo_edge.recipe.prompts import Given, as_prompts, read_labelled
from nemo_edge.recipe.recipe import from_keywords
from nemo_edge.recipe.settings import LocalizationSettings, LoraSettings, check_threshold
from nemo_edge.system.files import check_file, check_folder
from nemo_edge.system.outputs import lock
from nemo_edge.system.progress import Progress

if TYPE_CHECKING:
    from nemo_edge.localization.stages import Detected, Localized
    from nemo_edge.model.checkpoint import Checkpoint


class DetectionOptions(TypedDict, total=False):
    """The settings of a recipe's `[localization]` that a prompt's score depends on, and `rows`."""

    layers: Literal["paper", "all"]
    seed: int
    samples: int
    steps: int
    guidance: float
    rows: int | None


class LocalizationOptions(DetectionOptions, total=False):
    """The settings of a recipe's `[localization]`, but for `prompts`, how many are searched together: it is the list's name here."""

    mode: Literal["paper", "fast"]
    initial_theta: float
    theta_step: float
    min_theta: float
    initial_k: int
    dtype: Literal["fp32", "fp16", "bf16"]
    channels_last: bool
    compiled: bool
    group_by: Literal["prompt", "cluster", "list"]
    paraphrases: int


def detect(
    checkpoint: str | PathLike[str],
    prompts: Given,
    statistics: str | PathLike[str],
    out: str | PathLike[str] | None = None,
    *,
    general: Given | None = None,
    threshold: float | None = None,
    device: str = "cpu",
    allow_pickle: bool = False,
    loras: Sequence[LoraSettings] = (),
    clip_skip: int = 0,
    progress: Progress | None = None,
    **settings: Unpack[DetectionOptions],
) -> Detected:
    """Say which prompts a checkpoint has memorized.

    Args:
        checkpoint: A diffusers folder, a `.safetensors` file or a hub id.
        prompts: The path of a list, or the texts.
        statistics: What `nemo-edge calibrate` wrote, or the official `.pt`.
        out: A folder for what the command line leaves, from which an interrupted run goes on; else nothing is written.
        general: Prompts known not to be memorized: with them, or where the list has labels, detectors are compared.
        threshold: τ; else the one in `statistics`.
        device: What PyTorch runs on: "cpu", "cuda", "cuda:1".
        allow_pickle: Whether pickle weights are opened, which can run any code.
        loras: What is fused into the weights.
        clip_skip: How many of the text encoders' last layers a prompt is read without.
        progress: Who is told how far it is, as `nemo_edge.cli.console.Bars()`; else nobody.
        **settings: Of a recipe's `[localization]`, with its names and defaults: layers, seed, samples, steps, guidance, rows.

    Returns:
        Score and verdict of each prompt, in order, and the detectors' curves where they were compared.

    Raises:
        InputError: For what cannot be used, and for a prompt that is in both lists.
        MissingDependency: For a GPU that is not here.

    Example:
        >>> found = nemo_edge.detect("demo", ["saxophone falafel jubilee", "a red pig"], "statistics.safetensors", threshold=0.7)
        >>> [each.memorized for each in found.prompts]
        [True, False]
    """
    progress = progress or Progress()
    listed, folder = read_labelled(prompts, general, progress.note), _folder(out)
    chosen, tau = _settings("detect", DetectionOptions, settings), _threshold(threshold)
    from nemo_edge.localization.stages import detect_all, open_detector

    opened = _opened(checkpoint, allow_pickle, device, loras, clip_skip, progress)
    detector = open_detector(opened, Path(statistics), tau, chosen)
    with lock(folder / "detection.jsonl") if folder else nullcontext():
        return detect_all(detector, listed, folder, progress)


def localize(
    checkpoint: str | PathLike[str],
    prompts: Given,
    statistics: str | PathLike[str],
    out: str | PathLike[str] | None = None,
    *,
    threshold: float | None = None,
    device: str = "cpu",
    allow_pickle: bool = False,
    loras: Sequence[LoraSettings] = (),
    clip_skip: int = 0,
    progress: Progress | None = None,
    **settings: Unpack[LocalizationOptions],
) -> Localized:
    """Find the value neurons that hold each prompt's memory; a prompt that is not memorized has none.

    Args:
        checkpoint: A diffusers folder, a `.safetensors` file or a hub id.
        prompts: The path of a list, or the texts.
        statistics: What `nemo-edge calibrate` wrote, or the official `.pt`.
        out: A folder for what the command line leaves, from which an interrupted run goes on; else nothing is written.
        threshold: τ; else the one in `statistics`.
        device: What PyTorch runs on: "cpu", "cuda", "cuda:1".
        allow_pickle: Whether pickle weights are opened, which can run any code.
        loras: What is fused into the weights.
        clip_skip: How many of the text encoders' last layers a prompt is read without.
        progress: Who is told how far it is, as `nemo_edge.cli.console.Bars()`; else nobody.
        **settings: Of a recipe's `[localization]`, with its names and defaults, as `mode="fast"`.

    Returns:
        What was found of each prompt, in order, of groups of prompts where the settings want them, and all `neurons` together.

    Raises:
        InputError: For what cannot be used.
        MissingDependency: For a GPU or a compiler that is not here.

    Example:
        >>> found = nemo_edge.localize("demo", ["saxophone falafel jubilee"], "statistics.safetensors", threshold=0.7, mode="fast")
        >>> found.neurons.indices[0]  # of the first value layer
        (57,)
    """
    progress = progress or Progress()
    listed, folder = as_prompts(prompts, progress.note), _folder(out)
    chosen, tau = _settings("localize", LocalizationOptions, settings), _threshold(threshold)
    from nemo_edge.localization.localizer import open_localizer
    from nemo_edge.localization.stages import find_neurons

    opened = _opened(checkpoint, allow_pickle, device, loras, clip_skip, progress)
    localizer = open_localizer(opened, Path(statistics), tau, chosen)
    with lock(folder / "localization.jsonl") if folder else nullcontext():
        return find_neurons(localizer, listed, folder, progress)


def _opened(
    checkpoint: str | PathLike[str], allow_pickle: bool, device: str, loras: Sequence[LoraSettings], clip_skip: int, progress: Progress
) -> Checkpoint:
    """The checkpoint, open; what was assumed of it is told."""
    from nemo_edge.model.checkpoint import open_checkpoint

    opened = open_checkpoint(fspath(checkpoint), allow_pickle=allow_pickle, device=device, loras=loras, clip_skip=clip_skip)
    for note in opened.notes:
        progress.note(note)
    return opened


def _folder(out: str | PathLike[str] | None) -> Path | None:
    """The folder for the results, into which they can be written."""
    if out is None:
        return None
    check_folder(Path(out))
    check_file(Path(out) / "neurons.json")  # a bundle and a checkpoint have files of their own
    return Path(out)


def _settings(function: str, options: type, given: Mapping[str, object]) -> LocalizationSettings:
    """The settings given, of those that the function takes."""
    unknown = next((name for name in given if name not in options.__annotations__), None)
    if unknown is not None:
        raise TypeError(f"{function}() got an unexpected keyword argument {unknown!r}")
    return from_keywords(LocalizationSettings, given)


def _threshold(tau: float | None) -> float | None:
    return None if tau is None else check_threshold(tau, "threshold", "leave it out, and the one in the statistics is taken")

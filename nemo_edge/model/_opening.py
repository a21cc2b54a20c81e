"""Opens a diffusers folder part by part, each by its own class: no code of the folder is run, and no other part is looked for.

A safety checker, a feature extractor and an image encoder are left out: nothing that is built uses them.
"""

from __future__ import annotations

__all__ = ["pipeline_from_folder", "quiet", "without_weights"]

import warnings
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from nemo_edge.model.configuration import PIPELINES, fit_tokenizer, kin
from nemo_edge.system.errors import InputError, first_line
from nemo_edge.system.reading import read_json
from nemo_edge.system.weights import WEIGHTED_PARTS, Weights, part_entry, weights_of


def pipeline_from_folder(path: Path, dtype: torch.dtype, leave: Sequence[str]) -> Any:
    """Open a folder that `check_folder` took as the pipeline of diffusers that it is, or is kin to; parts of `leave` without weights.

    Its weights are of `dtype`, or of the type of half the size that all of them are stored in. Raises `InputError` for files that
    cannot be read.
    """
    try:
        with quiet():
            index = read_json(path / "model_index.json", "checkpoint file")
            name = kin(index["_class_name"])
            weights = {part: found for part in WEIGHTED_PARTS if part_entry(index, part) and (found := weights_of(path / part))}
            stored = _stored_dtype([found for part, found in weights.items() if part not in leave]) or dtype
            parts = {
                part: without_weights(path, part) if part in leave else _with_weights(path, part, found, stored)
                for part, found in weights.items()
                if part != "text_encoder_2" or PIPELINES[name] == "sdxl"
            }
            return _pipeline(path, index, name, parts)
    except InputError:
        raise
    except Exception as error:  # diffusers, transformers and safetensors raise classes of all kinds
        raise InputError(f"checkpoint {path} cannot be opened: {first_line(error)}") from error


def quiet() -> ExitStack:
    """diffusers' and transformers' progress bars and advice off while a pipeline is opened."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    stack = ExitStack()
    stack.enter_context(warnings.catch_warnings())
    warnings.filterwarnings("ignore", message="`torch_dtype` is deprecated")  # its new name is too new
    warnings.filterwarnings("ignore", category=FutureWarning, module="diffusers")  # of old configurations, which diffusers corrects
    for library in (diffusers_logging, transformers_logging):
        stack.callback(library.set_verbosity, library.get_verbosity())
        if library.is_progress_bar_enabled():
            stack.callback(library.enable_progress_bar)
        library.set_verbosity_error()
        library.disable_progress_bar()
    return stack


def _pipeline(path: Path, index: dict[str, Any], name: str, parts: dict[str, Any]) -> Any:
    """diffusers' pipeline of parts that are open, which corrects old configurations as ever."""
    import diffusers
    from transformers import CLIPTokenizer

    encoders = [part for part in parts if part.startswith("text_encoder")]
    for encoder in encoders:
        place = encoder.replace("text_encoder", "tokenizer")
        parts[place] = fit_tokenizer(CLIPTokenizer.from_pretrained(str(path / place)), parts[encoder].config.to_dict())
    parts["scheduler"] = getattr(diffusers, index["scheduler"][1]).from_pretrained(str(path / "scheduler"))
    if PIPELINES[name] == "sd":
        return getattr(diffusers, name)(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    zeros = index.get("force_zeros_for_empty_prompt", True)
    return diffusers.StableDiffusionXLPipeline(**parts, force_zeros_for_empty_prompt=zeros, add_watermarker=False)


def _class_of(folder: Path, part: str) -> Any:
    import diffusers
    import transformers

    library, name = read_json(folder / "model_index.json", "checkpoint file")[part]
    return getattr({"diffusers": diffusers, "transformers": transformers}[library], name)


def _with_weights(folder: Path, part: str, weights: Weights, dtype: torch.dtype) -> Any:
    options = {"variant": weights.variant or None, "use_safetensors": not weights.pickled, "torch_dtype": dtype}
    return _class_of(folder, part).from_pretrained(str(folder / part), **options)


def without_weights(folder: Path, part: str) -> Any:
    """A part of a checkpoint made from its configuration alone."""
    cls, config = _class_of(folder, part), folder / part
    with torch.device("meta"):
        if hasattr(cls, "load_config"):
            return cls.from_config(cls.load_config(str(config)))
        return cls(cls.config_class.from_pretrained(str(config)))


def _stored_dtype(parts: Iterable[Weights]) -> torch.dtype | None:
    """The type of half the size that all weights are stored in, if they are: read so and cast afterwards, they take less memory."""
    found = set()
    for file in (file for weights in parts if not weights.pickled for file in weights.files):
        with safe_open(file, "pt") as opened:
            found |= {opened.get_slice(key).get_dtype() for key in opened.keys()}  # noqa: SIM118  not a dict
    return {"F16": torch.float16, "BF16": torch.bfloat16}.get(found.pop()) if len(found) == 1 else None

"""A whole model in one file, as it is handed around: opened without a network, with the shipped configurations and CLIP's vocabulary.

diffusers converts the tensors; here is told which architecture they are of, and that each of them is there. What the UNet predicts is
no tensor: it is told by the file's own marks (`v_pred`, `ztsnr`), by who saved it (`modelspec.prediction_type`), or by the original
configuration beside it (the file's name with .yaml), and assumed where nothing tells.
"""

from __future__ import annotations

__all__ = ["Layout", "laid_out", "pipeline_from_file"]

import json
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml

from nemo_edge.model._filekinds import UNET, Contents, check_model, read_contents
from nemo_edge.model._opening import quiet, without_weights
from nemo_edge.model._sizes import SECOND, architecture_of, sized
from nemo_edge.model._tensors import flat, unfit_tensors
from nemo_edge.model.architectures import Configurations, write_vocabulary
from nemo_edge.system.errors import InputError, first_line
from nemo_edge.system.reading import read_json, read_text

_PREDICTIONS = {"v": "v_prediction", "v_prediction": "v_prediction", "epsilon": "epsilon", "eps": "epsilon"}
_SMALL = 64
"""Height and width of the latents of Stable Diffusion 2.x that predicts ε."""


@dataclass(frozen=True)
class Layout:
    """A single file as a diffusers folder would have it, without the weights."""

    folder: Path
    contents: Contents
    notes: tuple[str, ...]
    """What was assumed: a line each."""


@contextmanager
def laid_out(path: Path) -> Iterator[Layout]:
    """A folder of the configurations and tokenizers of a file, which is removed in the end; no tensor is read.

    Raises `InputError`, which says what the file is, for what is no whole model of Stable Diffusion.
    """
    contents = read_contents(path)
    check_model(path, contents)
    name = architecture_of(path, contents)
    files = sized(path, contents, name)
    notes = _set_prediction(path, contents, files, name)
    with TemporaryDirectory(prefix="nemo-edge-") as temporary:
        folder = Path(temporary)
        for place, config in files.items():
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            (folder / place).write_text(json.dumps(config, indent=1), encoding="utf-8")
        for tokenizer in {place.split("/")[0] for place in files if place.startswith("tokenizer")}:
            write_vocabulary(folder / tokenizer)
        yield Layout(folder, contents, notes)


def pipeline_from_file(path: Path, dtype: torch.dtype, leave: Collection[str]) -> tuple[Any, tuple[str, ...]]:
    """Open a file as diffusers' pipeline, the parts to `leave` with their shape alone; return it and what was assumed.

    Raises `InputError` for a file that lacks tensors, or has some that the pipeline would leave out without a word.
    """
    from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline

    with laid_out(path) as layout, quiet():
        try:
            parts = [part for part in _parts(layout.folder) if (layout.folder / part / "config.json").is_file()]
            empty = {part: without_weights(layout.folder, part) for part in parts}
            _check_tensors(path, layout, empty)
            left = {part: module for part, module in empty.items() if part in leave}
            if len(left) == len(empty):
                return DiffusionPipeline.from_pretrained(str(layout.folder), **left), layout.notes
            if "text_encoder_2" in empty and "text_encoder_2" not in left:
                left["text_encoder_2"] = _second_encoder(path, layout, dtype)
            cls = StableDiffusionXLPipeline if "text_encoder_2" in parts else StableDiffusionPipeline
            options = {"config": str(layout.folder), "local_files_only": True, "torch_dtype": dtype}
            pipeline = cls.from_single_file(str(path), **options, **left)
            for part in set(parts) - set(leave):
                _align_(getattr(pipeline, part))
            return pipeline, layout.notes
        except InputError:
            raise
        except Exception as error:  # as of `pipeline_from_folder`
            raise InputError(f"{path} cannot be opened as a Stable Diffusion file: {first_line(error)}") from error


def _second_encoder(path: Path, layout: Layout, dtype: torch.dtype) -> Any:
    """XL's second text encoder from its own tensors alone: diffusers takes the first one's where both are of the same width."""
    from diffusers.loaders.single_file_utils import create_diffusers_clip_model_from_ldm, load_single_file_checkpoint
    from transformers import CLIPTextModelWithProjection

    found = load_single_file_checkpoint(str(path))
    own = {name: value for name, value in found.items() if name.startswith(SECOND)}
    places = {"subfolder": "text_encoder_2", "config": str(layout.folder), "local_files_only": True}
    return create_diffusers_clip_model_from_ldm(CLIPTextModelWithProjection, own, torch_dtype=dtype, **places)


def _align_(module: Any) -> None:
    """Give each tensor memory of its own: as it lies in a file, kernels round it in another order than elsewhere."""
    for parameter in module.parameters():
        parameter.data = parameter.data.clone()


def _parts(folder: Path) -> list[str]:
    return sorted(read_json(folder / "model_index.json"))


def _check_tensors(path: Path, layout: Layout, modules: dict[str, Any]) -> None:
    """Convert the file's tensors without their values: each that a part has must be there, in its shape, and none of the UNet left over."""
    tensors = {name: torch.empty(shape, device="meta") for name, shape in layout.contents.shapes.items()}
    for part, module in modules.items():
        converted = _converted(part, module, tensors)
        wanted = {flat(name): value.shape for name, value in module.state_dict().items() if not name.endswith("position_ids")}
        reason = unfit_tensors(wanted, {name: value.shape for name, value in converted.items()})
        if reason:
            state = "not whole" if reason.startswith("lacks") else "of an architecture that is not known"
            raise InputError(f"{path} is {state}: its {part} {reason}, as diffusers calls it")
        if part == "unet":
            used = {id(value) for value in converted.values()}
            rest = [name for name, value in tensors.items() if name.startswith(UNET) and id(value) not in used]
            if rest or len(converted) > len(wanted):
                more = rest[0] if rest else next(name for name in converted if name not in wanted)
                raise InputError(f"{path} is of an architecture that is not known: its UNet also has {more}; give a diffusers folder")


def _converted(part: str, module: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    from diffusers.loaders import single_file_utils as convert

    if part == "unet":
        found = convert.convert_ldm_unet_checkpoint(tensors, module.config)
    elif part == "vae":
        found = convert.convert_ldm_vae_checkpoint(tensors, module.config)
    elif part == "text_encoder_2":
        found = convert.convert_open_clip_checkpoint(module, tensors, prefix=SECOND)
    elif any(name.startswith("cond_stage_model.model.") for name in tensors):
        found = convert.convert_open_clip_checkpoint(module, tensors)
    else:
        found = convert.convert_ldm_clip_checkpoint(tensors)
    return {flat(name): value for name, value in found.items()}


def _set_prediction(path: Path, contents: Contents, files: Configurations, name: str) -> tuple[str, ...]:
    """Set what the UNet predicts, its zero terminal SNR and its size as far as the file tells; return what was assumed."""
    scheduler, unet = files["scheduler/scheduler_config.json"], files["unet/config.json"]
    original = _original(path.with_suffix(".yaml"))
    told = "v" if "v_pred" in contents.shapes else contents.notes.get("modelspec.prediction_type", "") or original.get("prediction", "")
    prediction = _PREDICTIONS.get(told.lower())
    if told and prediction is None:
        raise InputError(f"{path} says that its UNet predicts {told!r}; nemo-edge takes {', '.join(sorted(set(_PREDICTIONS.values())))}")
    if prediction:
        scheduler["prediction_type"] = prediction
    if "ztsnr" in contents.shapes:
        scheduler |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    if name == "sd21" and prediction == "epsilon":
        unet["sample_size"] = _SMALL
    size = _size(contents, original, 2 ** (len(files["vae/config.json"]["block_out_channels"]) - 1))
    if size:
        unet["sample_size"] = size
    if name != "sd21" or prediction:
        return ()
    return (
        f"{path} does not say what its UNet predicts: v is assumed, as for Stable Diffusion 2.1 of 768 pixels; for a model that predicts ε "
        f"(2.x-base) put its original configuration beside it, as {path.with_suffix('.yaml').name}",
    )


def _original(path: Path) -> dict[str, Any]:
    """What an original configuration (.yaml) says of the prediction and of the latents' size; nothing where there is none."""
    if not path.is_file():
        return {}
    try:
        params = yaml.safe_load(read_text(path, most=2**20))["model"]["params"]
        return {"prediction": str(params.get("parameterization", "eps")), "size": params.get("image_size")}
    except (ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}, the original configuration of the model beside it, cannot be read: {first_line(error)}") from error


def _size(contents: Contents, original: dict[str, Any], factor: int) -> int | list[int] | None:
    """Height and width of the latents, where the file's notes or its original configuration tell them."""
    found = re.fullmatch(r"(\d+)x(\d+)", contents.notes.get("modelspec.resolution", ""))
    if found:
        width, height = (int(pixels) // factor for pixels in found.groups())
        return width if width == height else [height, width]
    size = original.get("size")
    return size if isinstance(size, int) and size > 0 else None

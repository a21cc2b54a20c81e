"""What a checkpoint folder is, from the names of its files and its JSON alone: taken, or refused in one line before any work.

No line of the checkpoint's code is run, no weights are read. What is refused would crash later, or draw other pictures than diffusers
without a word: parts of other classes, UNets that want inputs which are not fed, noise without a schedule of betas.
"""

from __future__ import annotations

__all__ = ["check_folder", "check_kind", "check_layers", "pickle_error"]

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from nemo_edge.model._betas import unfit_schedule
from nemo_edge.model._code import check_no_code, unfit_counts
from nemo_edge.model._filekinds import check_complete, is_lora, read_contents
from nemo_edge.model._inputs import unfit_unet, unfit_vae
from nemo_edge.model.configuration import PIPELINES, Family, completed, kin
from nemo_edge.system.errors import InputError, MissingDependency, first_line
from nemo_edge.system.reading import read_json
from nemo_edge.system.weights import WEIGHTED_PARTS, part_entry, weights_of

_TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")
_SHARED: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "unet": ("diffusers", ("UNet2DConditionModel",)),
    "vae": ("diffusers", ("AutoencoderKL", "AutoencoderTiny")),
    "text_encoder": ("transformers", ("CLIPTextModel",)),
    "tokenizer": ("transformers", _TOKENIZERS),
    "scheduler": ("diffusers", ()),
}
_PARTS: Mapping[Family, Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "sd": _SHARED,
    "sdxl": {
        **_SHARED,
        "text_encoder_2": ("transformers", ("CLIPTextModelWithProjection",)),
        "tokenizer_2": ("transformers", _TOKENIZERS),
    },
}
"""The parts of each family: the library and the classes that are taken; of a scheduler `_betas` tells them."""
_LIBRARIES = {"LMSDiscreteScheduler": "scipy", "DPMSolverSDEScheduler": "torchsde"}
"""What diffusers asks for beside itself to make some schedulers."""
_ATTENTION = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D", "UNetMidBlock2DCrossAttn")


def check_folder(folder: Path, *, allow_pickle: bool = False) -> None:
    """Raise `InputError` for a diffusers folder that is not whole, has pickles for weights, or is of a kind that is not taken."""
    if not (folder / "model_index.json").is_file():
        lora = next((p.name for p in sorted(folder.glob("*.safetensors")) if is_lora(read_contents(p).shapes)), None)
        state = "is empty" if not any(folder.iterdir()) else f"is a LoRA's ({lora})" if lora else "has no model_index.json"
        raise InputError(f"checkpoint folder {folder} {state}: give a folder saved with diffusers' save_pretrained")
    check_no_code(folder)
    found = {part: weights_of(folder / part) for part in WEIGHTED_PARTS}
    if not any(found.values()):
        _family_of(folder)
        raise InputError(f"checkpoint folder {folder} holds no weights (*.safetensors): it was not copied whole")
    family = check_kind(folder)
    for part in (part for part in WEIGHTED_PARTS if part in _PARTS[family]):
        weights = found[part]
        if weights is None:
            raise InputError(f"checkpoint folder {folder} holds no weights in {part} (*.safetensors): it was not copied whole")
        if weights.sharded and weights.index is None:
            raise InputError(f"checkpoint folder {folder}: {weights.files[0].name} in {part} is cut in parts, whose index.json is missing")
        if weights.missing():
            raise InputError(f"checkpoint folder {folder} lacks {part}/{weights.missing()[0]}: it was not copied whole")
        if weights.pickled and not allow_pickle:
            raise pickle_error(weights.files[0])
        for file in weights.files:
            _check_whole(folder, file)
    _check_tokenizers(folder, family)


def _check_whole(folder: Path, file: Path) -> None:
    try:
        check_complete(file)
    except InputError as error:
        raise InputError(f"checkpoint {folder} cannot be opened: {error}") from error


def check_kind(folder: Path) -> Family:
    """Return the family of a diffusers folder of which only configurations are read.

    Raises `InputError` for a pipeline or a part that is not Stable Diffusion's, and for one that wants what it is not given;
    `MissingDependency` for a scheduler that needs a library that is not here.
    """
    check_no_code(folder)
    family, index = _family_of(folder)
    for part, (library, classes) in _PARTS[family].items():
        _check_part(folder, index, part, library, classes)
    if index.get("requires_aesthetics_score"):
        raise _refused(folder, "it wants an aesthetic score, as the refiner of Stable Diffusion XL: give the base model")
    model = _Model.read(folder, family, str((part_entry(index, "scheduler") or ("", ""))[1]))
    _check_library(folder, model.scheduler_class)
    for unfit in (_unfit_counts, _unfit_unet, _unfit_vae, _unfit_width, _unfit_schedule):
        try:
            reason = unfit(model)
        except (TypeError, ValueError, KeyError, AttributeError, IndexError, ArithmeticError) as error:
            raise _refused(folder, f"its configurations hold what diffusers does not write ({first_line(error)}): copy it again") from error
        if reason:
            raise _refused(folder, reason)
    return family


def check_layers(unet: Mapping[str, Any], layers: Literal["paper", "all"]) -> None:
    """Raise `InputError` for the configuration of a UNet that has no value neurons in the paper's layers, or in any."""
    blocks = [*unet["down_block_types"], unet["mid_block_type"], *(unet["up_block_types"] if layers == "all" else ())]
    if not set(blocks) & set(_ATTENTION):
        where = "its down and mid blocks" if layers == "paper" else "any block"
        raise InputError(
            f"the UNet has no cross-attention in {where}: there are no value neurons to silence; "
            "give a text-conditional UNet2DConditionModel (Stable Diffusion 1.x, 2.x, XL)"
        )


def pickle_error(path: Path) -> InputError:
    """Return what is said of a pickle that nobody allowed."""
    return InputError(
        f"{path} is a pickle, which can run any code when it is loaded: convert the checkpoint to safetensors, "
        "or pass --allow-pickle (in a recipe: checkpoint.allow_pickle = true) if you trust where it comes from"
    )


@dataclass(frozen=True)
class _Model:
    """The configurations that are looked at, each with what diffusers takes for what it does not say."""

    family: Family
    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    scheduler: Mapping[str, Any]
    scheduler_class: str
    texts: tuple[Mapping[str, Any], ...]

    @classmethod
    def read(cls, folder: Path, family: Family, scheduler: str) -> _Model:
        texts = tuple(_text(_read(folder / part / "config.json")) for part in _PARTS[family] if part.startswith("text_encoder"))
        return cls(
            family,
            completed("unet", _read(folder / "unet" / "config.json"), family),
            completed("vae", _read(folder / "vae" / "config.json"), family),
            completed("scheduler", _read(folder / "scheduler" / "scheduler_config.json"), family),
            scheduler,
            texts,
        )


def _unfit_counts(model: _Model) -> str:
    return unfit_counts((model.unet, model.vae, model.scheduler, *model.texts))


def _unfit_unet(model: _Model) -> str:
    return unfit_unet(model.unet, model.family, int(model.texts[-1].get("projection_dim", 512)))


def _unfit_vae(model: _Model) -> str:
    return unfit_vae(model.vae, int(model.unet["in_channels"]))


def _unfit_schedule(model: _Model) -> str:
    return unfit_schedule(model.scheduler, model.scheduler_class)


def _unfit_width(model: _Model) -> str:
    """What is wrong where the UNet does not attend to what the text encoders give."""
    given = sum(int(text.get("hidden_size", 512)) for text in model.texts)
    wide = model.unet["cross_attention_dim"]
    wanted = set(wide) if isinstance(wide, list) else {wide}
    if wanted == {given}:
        return ""
    numbers = " and ".join(str(number) for number in sorted(wanted))
    return f"its UNet attends to {numbers} values a token, and its text encoders give {given}: the parts are of different models"


def _family_of(folder: Path) -> tuple[Family, dict[str, Any]]:
    index = _read(folder / "model_index.json")
    name = index.get("_class_name")
    if isinstance(name, (list, tuple)):
        raise _refused(folder, f"its pipeline is code of its own ({' '.join(str(word) for word in name)}), which nemo-edge does not run")
    family = PIPELINES.get(kin(str(name)))
    if family is not None:
        return family, index
    remedy = ""
    if part_entry(index, "unet") == ("diffusers", "UNet2DConditionModel") and part_entry(index, "text_encoder"):
        like = "StableDiffusionXLPipeline" if part_entry(index, "text_encoder_2") else "StableDiffusionPipeline"
        remedy = f"; if it draws text-to-image as a {like} of the same parts, say so as _class_name in its model_index.json"
    raise _refused(folder, f"the checkpoint is a {name}; nemo-edge takes {', '.join(PIPELINES)}{remedy}")


def _check_part(folder: Path, index: dict[str, Any], part: str, library: str, classes: tuple[str, ...]) -> None:
    entry = part_entry(index, part)
    if entry is None:
        if part == "text_encoder" and part_entry(index, "text_encoder_2"):
            raise _refused(folder, "it has no first text encoder, as the refiner of Stable Diffusion XL: give the base model")
        raise _refused(folder, f"its model_index.json names no {part}")
    if entry[0] != library:
        raise _refused(folder, f"its {part} is code of its own ({' '.join(entry)}), which nemo-edge does not run")
    if classes and entry[1] not in classes:
        raise _refused(folder, f"its {part} is a {entry[1]}; nemo-edge takes {', '.join(classes)}")
    if part.startswith("tokenizer"):
        place = folder / part / "tokenizer_config.json"
        if place.is_file() and "auto_map" in _read(place):
            raise _refused(folder, f"its {part} wants code of its own (auto_map in {place.name}), which nemo-edge does not run")
        return
    config = _read(folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json"))
    told = config.get("_class_name", entry[1])
    if classes and library == "diffusers" and told != entry[1]:
        raise _refused(folder, f"its {part} is a {told} by its own configuration, and a {entry[1]} by model_index.json")
    kind = str(config.get("model_type", "clip_text_model"))
    if library == "transformers" and not kind.startswith("clip"):
        raise _refused(folder, f"its {part} is of the kind {kind}; nemo-edge takes CLIP's ({', '.join(classes)})")
    if config.get("quantization_config"):
        raise _refused(folder, f"its {part} is quantized (quantization_config in its config.json): give the weights as floats")
    if "auto_map" in config:
        raise _refused(folder, f"its {part} wants code of its own (auto_map in its config.json), which nemo-edge does not run")


def _check_library(folder: Path, scheduler: str) -> None:
    library = _LIBRARIES.get(scheduler)
    if library is not None and find_spec(library) is None:
        raise MissingDependency(f"checkpoint {folder}: its {scheduler} needs {library}: pip install {library}")


def _check_tokenizers(folder: Path, family: Family) -> None:
    for part in (part for part in _PARTS[family] if part.startswith("tokenizer")):
        have = {path.name for path in (folder / part).iterdir()} if (folder / part).is_dir() else set()
        if "tokenizer.json" not in have and not {"vocab.json", "merges.txt"} <= have:
            raise InputError(f"checkpoint folder {folder} lacks {part}/vocab.json and merges.txt: it was not copied whole")


def _text(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a text encoder, out of that of a whole CLIP where it is one."""
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config


def _refused(folder: Path, reason: str) -> InputError:
    return InputError(f"checkpoint {folder}: {reason}")


def _read(path: Path) -> dict[str, Any]:
    config = read_json(path, "checkpoint file", remedy="the checkpoint was not copied whole")
    if not isinstance(config, dict):
        raise InputError(f"checkpoint file {path} holds no JSON object")
    return config

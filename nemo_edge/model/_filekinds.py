"""What a file of weights is, told from its first bytes and the names and shapes of its tensors; no tensor is read.

Files that are no whole model are called by their name: a pointer of Git LFS, a web page, a LoRA, an embedding, a part alone.
"""

from __future__ import annotations

__all__ = ["Contents", "UNET", "VAE", "check_complete", "check_model", "is_lora", "read_contents"]

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemo_edge.system.errors import InputError, first_line
from nemo_edge.system.reading import check_regular, parse_json

UNET = "model.diffusion_model."
"""What the UNet's tensors are called by, in the original names."""
VAE = ("first_stage_model.", "vae.")
_TEXT = ("cond_stage_model.", "conditioner.embedders.")
_WHOLE = "give the whole model, as a .safetensors file or a diffusers folder"
_LONGEST = 100_000_000
"""Bytes of a header that the safetensors format allows."""
_SCALES = re.compile(r"\.scale_weight$|\.weight_scale(_2)?$|^scaled_fp8$|\.SCB$|\.absmax$|\.qweight$|\.quant_state\.|\.comfy_quant$")
"""What quantizers call the scales that belong to a matrix."""
_LORA = re.compile(r"lora_(up|down|mid|A|B)\b|\.lora\.(up|down)\.|_lora\.(up|down)\.|lora_linear_layer|\.hada_w|\.lokr_w|dora_scale|\.oft_")
_WORDS = {
    "inpainting": "an inpainting model, whose UNet takes 9 channels",
    "inpainting_v2": "an inpainting model, whose UNet takes 9 channels",
    "xl_inpaint": "an inpainting model, whose UNet takes 9 channels",
    "xl_refiner": "the refiner of Stable Diffusion XL, which draws no picture of its own",
    "instruct-pix2pix": "an editing model (InstructPix2Pix), whose UNet takes 8 channels",
    "upscale": "an upscaler",
    "playground-v2-5": "Playground 2.5, whose noise schedule (EDM) has no steps to localize at",
}


@dataclass(frozen=True)
class Contents:
    """What a file says of itself: the shape of every tensor by its name, and the notes of who saved it."""

    shapes: dict[str, tuple[int, ...]]
    notes: dict[str, str] = field(default_factory=dict)
    quantized: str = ""
    """What shows that its matrices are not the weights themselves; empty where nothing does."""

    def has(self, *prefixes: str) -> bool:
        """Whether a tensor's name begins so."""
        return any(name.startswith(prefixes) for name in self.shapes)


def read_contents(path: Path) -> Contents:
    """Read a safetensors file's header, or a pickle's tensors without their values (which the caller has allowed).

    Raises `InputError` that says what the file is where it is neither, and for one that was cut short.
    """
    check_complete(path)
    with path.open("rb") as file:
        head = file.read(9)
        if _is_pickle(head):
            return _pickled(path)
        _check_length(path, head)
        file.seek(8)
        header = dict(_header(path, file.read(int.from_bytes(head[:8], "little"))))
    notes = header.pop("__metadata__", None) or {}
    return Contents({name: tuple(entry["shape"]) for name, entry in header.items()}, notes, _quantized(header))


def check_complete(path: Path) -> None:
    """Raise `InputError` for a file that holds no weights, or is safetensors and has not all of those that its header names."""
    check_regular(path)
    with path.open("rb") as file:
        head = file.read(512)
    named = "" if _has_header(head) else _by_first_bytes(head)
    if named:
        raise InputError(f"{path} is {named}")
    if path.suffix != ".safetensors":
        return
    if _is_pickle(head):
        raise InputError(f"{path} is a pickle (or a zip archive) in spite of its name, which can run any code: {_WHOLE}")
    _check_length(path, head)


def check_model(path: Path, contents: Contents) -> None:
    """Raise `InputError`, which says what the file is, unless it holds a UNet, a VAE and text encoders of Stable Diffusion."""
    named = next((words for is_it, words in _KINDS if is_it(contents)), "")
    if named:
        raise InputError(f"{path} is {named}")
    if contents.quantized:
        raise InputError(f"{path} is quantized ({contents.quantized}): give the model's weights as floats")
    kind = _kind(contents)
    if kind not in ("v1", "v2", "xl_base"):
        words = _WORDS.get(kind, f"of another architecture ({kind})")
        raise InputError(f"{path} is {words}; nemo-edge takes Stable Diffusion 1.x, 2.x and XL")
    parts = {"UNet": contents.has(UNET), "VAE": contents.has(*VAE), "text encoder": contents.has(*_TEXT)}
    held, missing = [name for name in parts if parts[name]], [name for name in parts if not parts[name]]
    if not held:
        raise InputError(f"{path} is not a Stable Diffusion file: no tensor is called by an original name ({UNET}…); {_WHOLE}")
    if missing:
        raise InputError(f"{path} holds a {' and a '.join(held)} alone, without {' and '.join(missing)}: {_WHOLE}")


def is_lora(names: Collection[str]) -> bool:
    """Whether tensors of these names are those of a LoRA."""
    return any(_LORA.search(name) for name in names)


def _by_first_bytes(head: bytes) -> str:
    text = head.lstrip().lower()
    if not head:
        return "not a Stable Diffusion file: it is empty; copy or download it again"
    if head.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS, not the file that it stands for: fetch that with `git lfs pull`"
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<body")):
        return "a web page (HTML), which a server sends in place of a file where it asks for a login: download the file again"
    if head.startswith(b"GGUF"):
        return f"a GGUF file of quantized weights: {_WHOLE}"
    if text.startswith(b"{"):
        return "a text in JSON, as a server sends in place of a file: download the file again"
    return ""


def _has_header(head: bytes) -> bool:
    """Whether a file begins as safetensors does: the header's length in 8 bytes, which may be any letters, then its JSON."""
    return head[8:9] == b"{" and 1 < int.from_bytes(head[:8], "little") <= _LONGEST


def _is_pickle(head: bytes) -> bool:
    if _has_header(head):
        return False
    return head[:4] == b"PK\x03\x04" or (head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"))


def _check_length(path: Path, head: bytes) -> None:
    size, length = path.stat().st_size, int.from_bytes(head[:8], "little")
    if not _has_header(head):
        raise InputError(f"{path} is not a Stable Diffusion file, and no safetensors file at all: {_WHOLE}")
    wanted = 8 + length
    if wanted <= size:
        with path.open("rb") as file:
            file.seek(8)
            header = _header(path, file.read(length))
        wanted += max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
    if wanted != size:
        words = f"{wanted:,} bytes or more" if 8 + length > size else f"{wanted:,} bytes"
        state = "was cut short" if size < wanted else "is damaged"
        raise InputError(f"{path} {state}: by its header it has {words}, but there are {size:,}; copy or download it again")


def _header(path: Path, content: bytes) -> Mapping[str, dict[str, Any]]:
    try:
        header: Mapping[str, dict[str, Any]] = parse_json(content)
        if all(_is_text(entry) if name == "__metadata__" else _is_tensor(entry) for name, entry in header.items()):
            return header
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        raise InputError(f"{path} is damaged: its header cannot be read ({first_line(error)}); copy or download it again") from error
    raise InputError(f"{path} is damaged: its header names no places of its tensors; copy or download it again")


def _is_text(notes: Any) -> bool:
    return notes is None or all(isinstance(word, str) for pair in notes.items() for word in pair)


def _is_tensor(entry: Any) -> bool:
    """Whether an entry of a header says what a tensor is: its type, its shape, and where it begins and ends."""
    numbers = [*entry["shape"], *entry["data_offsets"]]
    whole = all(isinstance(number, int) and 0 <= number < 1 << 63 for number in numbers)
    return whole and len(entry["data_offsets"]) == 2 and isinstance(entry["dtype"], str) and bool(entry["dtype"])


def _quantized(header: Mapping[str, dict[str, Any]]) -> str:
    """The tensor by which a file is quantized: a matrix of whole numbers, or scales."""
    scale = next((name for name in header if _SCALES.search(name)), "")
    whole = next((name for name, e in header.items() if len(e["shape"]) > 1 and e["dtype"][0] in "IU" and "position_ids" not in name), "")
    return scale or (f"{whole} is {header[whole]['dtype']}" if whole else "")


def _pickled(path: Path) -> Contents:
    import torch

    try:
        found = torch.load(path, map_location="meta", weights_only=True)
    except Exception as error:  # whatever a broken or foreign pickle raises
        raise InputError(f"{path} cannot be read as a pickle of weights: {first_line(error)}") from error
    while isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    named = found if isinstance(found, dict) else {}
    shapes = {str(name): tuple(value.shape) for name, value in named.items() if isinstance(value, torch.Tensor)}
    extra = {"string_to_param": ()} if "string_to_param" in named else {}
    return Contents({**shapes, **extra})


def _kind(contents: Contents) -> str:
    """The model's kind, in diffusers' words."""
    import torch
    from diffusers.loaders.single_file_utils import infer_diffusers_model_type

    kind: str = infer_diffusers_model_type({name: torch.empty(shape, device="meta") for name, shape in contents.shapes.items()})
    return kind


def _is_embedding(contents: Contents) -> bool:
    names = set(contents.shapes)
    vector = len(names) == 1 and all(len(shape) in (1, 2) and "." not in name for name, shape in contents.shapes.items())
    return bool(names & {"emb_params", "string_to_param"}) or (bool(names) and names <= {"clip_l", "clip_g"}) or vector


_ALONE = f"alone: {_WHOLE}"
_KINDS: tuple[tuple[Callable[[Contents], bool], str], ...] = (
    (lambda c: not c.shapes, f"a file without tensors: {_WHOLE}"),
    (lambda c: is_lora(c.shapes), "a LoRA, not a model: name it in a recipe's checkpoint.loras, beside the model that it was made for"),
    (_is_embedding, f"a textual-inversion embedding, not a model: {_WHOLE}"),
    (lambda c: c.has("control_model.", "controlnet_", "input_hint_block."), f"a ControlNet, not a model: {_WHOLE}"),
    (lambda c: c.has("image_proj.", "ip_adapter."), f"an IP-Adapter, not a model: {_WHOLE}"),
    (lambda c: any(".motion_modules." in name for name in c.shapes), f"a motion module or a model of videos: {_WHOLE}"),
    (lambda c: c.has("edm_vpred.", "edm_mean"), f"a model of an EDM noise schedule, which has no steps to localize at: {_WHOLE}"),
    (lambda c: c.has("encoder.down", "decoder.up", "decoder.mid", "quant_conv.", "taesd"), f"a VAE {_ALONE}"),
    (lambda c: c.has("down_blocks.", "input_blocks.") and c.has("up_blocks.", "output_blocks."), f"a UNet {_ALONE}"),
    (lambda c: c.has("text_model.", "transformer.resblocks."), f"a text encoder {_ALONE}"),
)

"""How much memory and disk a build of a model takes, from the headers of its weights and a few measured factors.

Reads shapes and types only: no weights are loaded, no torch is imported. An estimate, not a promise: it is for telling a
machine that suffices from one that does not, before an hour of work.
"""

from __future__ import annotations

__all__ = [
    "PLACES",
    "Footprint",
    "Need",
    "Part",
    "check_memory",
    "estimate",
    "fitted",
    "needs_of",
    "part_of",
    "parts",
]

import shutil
from collections.abc import Iterable, Sequence
from math import prod
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict
from safetensors import safe_open

from nemo_edge.model.configuration import completed
from nemo_edge.recipe.settings import LocalizationSettings
from nemo_edge.system.errors import InputError, first_line
from nemo_edge.system.files import checkpoint_folder
from nemo_edge.system.memory import GB, memory_available, pictures_at_once, rows_at_once, search_bytes
from nemo_edge.system.reading import check_regular, expanded, read_json
from nemo_edge.system.weights import WEIGHTED_PARTS, weights_of

BYTES = {"fp32": 4, "fp16": 2}
DTYPES: tuple[Literal["fp32", "fp16"], ...] = ("fp32", "fp16")
PROCESS_BYTES = 0.8 * GB
"""Python with torch, diffusers and ONNX Runtime loaded, no weights.

This and the factors below were measured with a UNet of Stable Diffusion 1.5's shape (859.5 M parameters, latents of 64 × 64) on
x86-64 Linux with torch 2.14, diffusers 0.42 and onnxruntime 1.31 on the CPU, as the peak of resident memory: eager with its
weights 4.1 GB, 4.3 with one row and 4.8 with three; a session of the fp32 file 3.5 GB open, 4.7 with one row and 6.3 with three;
of the fp16 file 6.0 GB at its opening, 3.9 after it, 4.5 and 5.8. TensorRT-RTX compiles the fp16 file
within 6.5 GB (`benchmarks/results/full_size.json`).
"""
PLAN_WEIGHTS = 3.6
"""Peak of the compiler of TensorRT engines, in units of the weights in the graph's type."""
PLAN_PROCESS_BYTES = 0.4 * GB
COMPARED_PIXELS = 256 * 256
"""Of a picture that `export` compares with eager's, where sizes are free."""
PART_WEIGHTS = {"fp32": 1.1, "fp16": 1.3}
"""Peak of exporting one part, in units of its float32 weights: they are opened, cast, written, and compared (`full_size.json`)."""
WEIGHTS_OPEN = {"fp32": 1.0, "fp16": 1.1}
"""A session that is open, in the same units: a provider of the CPU widens fp16 to float32."""
ROW_SHARE = {"sd": 1.0, "sdxl": 0.65}
"""Rows of XL take less a pixel (0.6 GB each at 1024 × 1024 in eager): its UNet has no attention at full resolution."""
ROW_SESSION = {"fp32": 3600, "fp16": 2600}
"""Bytes a pixel that one row of a UNet's batch takes in ONNX Runtime, whose arena keeps what it took until the session is closed."""
PICTURE_SESSION = 5700
"""Bytes a pixel that a picture takes in the VAE's decoder in ONNX Runtime: 1.5 GB at 512 × 512."""
WATCHED_BYTES = {"sd": 0.2 * GB, "sdxl": 0.5 * GB}
"""What is counted of a call while ranges of activations are found: 0.5 MB of each input and output of what is quantized."""
VERIFIED_ROWS = 3
"""Rows of the larger batch that `export` compares."""
OTHER_DISK_BYTES = 0.1 * GB
"""Graphs, tokenizers, pictures and report."""

_RANGING = "finding the ranges of activations of"
_Tensor = tuple[str, str, int]
"""Key, type and number of values of a stored tensor."""

PLACES = WEIGHTED_PARTS
_SINGLE_FILE = {
    "model.diffusion_model.": "unet",
    "first_stage_model.": "vae",
    "cond_stage_model.": "text_encoder",
    "conditioner.embedders.0.": "text_encoder",
    "conditioner.embedders.1.": "text_encoder_2",
}
"""Prefix of a key in a single file of Stable Diffusion → the part it belongs to."""


class Part(BaseModel):
    """One part of a checkpoint as its files say."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    parameters: int
    exported: int
    """Parameters that become part of an engine: all of them, or the decoder's of a VAE."""
    dtypes: tuple[str, ...]
    """Types of the stored weights, in safetensors' words."""


class Need(BaseModel):
    """What a build with these settings takes at its peak, and whether this machine has it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: Literal["fp32", "fp16"]
    variants: int
    localize_bytes: int
    """Peak memory of calibrating and localizing: eager float32."""
    export_bytes: int
    """Peak memory of exporting, and of comparing each file with eager."""
    measure_bytes: int
    """Peak memory of examining: eager float32 beside the engines of every variant."""
    ranges_bytes: int
    """Peak memory of finding the ranges of activations, where they are to be quantized: engines in float32, a picture at a time."""
    disk_bytes: int
    """The bundle, and the cache of the stages, which holds the same files."""
    fits: bool

    @property
    def memory_bytes(self) -> int:
        """The peak of the stages that every build has."""
        return max(self.localize_bytes, self.export_bytes, self.measure_bytes)


class Footprint(BaseModel):
    """What a build of a model takes, beside what this machine has."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    model: str
    family: Literal["sd", "sdxl"]
    parts: tuple[Part, ...]
    memory_available_bytes: int
    disk_free_bytes: int
    output: str
    """The folder whose disk was asked."""
    needs: tuple[Need, ...]
    """For each type and number of variants; the first is what a recipe has by default."""
    fits: bool
    """Whether the default of a recipe fits."""
    remedy: str = ""
    """What to do where it does not."""


def estimate(model: str, output: Path, found: Sequence[Part] | None = None) -> Footprint:
    """Estimate what a build of `model`, a local diffusers folder or `.safetensors` file, takes with its bundle in `output`.

    `found` are the parts of a folder that has only their configurations yet. Raises `InputError` for a model that does not exist or
    whose weights are not safetensors.
    """
    found = parts(model) if found is None else found
    family = _family(found)
    pixels = _pixels(checkpoint_folder(model), family)
    memory, (place, disk) = memory_available(), _disk_free(output)
    needs = needs_of(found, pixels, memory, disk)
    return fitted(model, family, found, needs, memory, disk, place)


def parts(model: str) -> tuple[Part, ...]:
    """Return the parts of a local checkpoint from the headers of its safetensors files.

    Raises `InputError` when there are none, or no UNet among them.
    """
    if not expanded(model).exists():
        raise InputError(f"model {model} does not exist: give a diffusers folder or a .safetensors file on this machine")
    local = checkpoint_folder(model)
    if local.is_file():
        found = _parts_of_file(local)
    else:
        places = {name: weights for name in PLACES if (weights := weights_of(local / name)) is not None and not weights.pickled}
        found = {name: [t for file in weights.files for t in _header(file)] for name, weights in places.items()}
    if "unet" not in found:
        raise InputError(f"model {model} holds no UNet as safetensors: sizes are read from their headers, pickles are not opened")
    return tuple(part_of(name, found[name]) for name in PLACES if name in found)


def part_of(name: str, tensors: Sequence[_Tensor]) -> Part:
    """Return a part of `PLACES` by the key, type and number of values of each of its tensors."""
    decoder = ("decoder.", "post_quant_conv.")
    return Part(
        name=name,
        parameters=sum(count for _, _, count in tensors),
        exported=sum(count for key, _, count in tensors if name != "vae" or key.startswith(decoder)),
        dtypes=tuple(sorted({dtype for _, dtype, _ in tensors})),
    )


def needs_of(found: Sequence[Part], pixels: int, memory: int, disk: int) -> tuple[Need, ...]:
    """Return what a build takes in each type, with two variants and with one; `pixels` are those of one picture."""
    return tuple(_need(found, pixels, dtype, variants, memory, disk) for dtype in DTYPES for variants in (2, 1))


def fitted(
    model: str, family: Literal["sd", "sdxl"], found: Sequence[Part], needs: Sequence[Need], memory: int, disk: int, place: Path
) -> Footprint:
    """Return the footprint with its verdict, and the smallest change of a recipe that makes it fit."""
    wanted = needs[0]
    remedy = ""
    if not wanted.fits:
        better = next((n for n in needs if n.fits), None)
        remedy = _settings(better) if better else _shortage(needs, memory, disk, place)
    return Footprint(
        model=model,
        family=family,
        parts=tuple(found),
        memory_available_bytes=memory,
        disk_free_bytes=disk,
        output=str(place),
        needs=tuple(needs),
        fits=wanted.fits,
        remedy=remedy,
    )


def check_memory(footprint: Footprint, dtype: Literal["fp32", "fp16", "bf16"], *, compiled: bool, ranges: bool = False) -> None:
    """Raise `InputError` when exporting a model in a type takes more memory than there is, or compiling it for TensorRT, or finding the
    ranges of its activations."""
    kind: Literal["fp32", "fp16"] = "fp32" if dtype == "fp32" else "fp16"
    takes = {"exporting": next(need.export_bytes for need in footprint.needs if need.dtype == kind)}
    if compiled:
        largest = max(part.exported for part in footprint.parts)
        takes["compiling TensorRT engines"] = int(PLAN_PROCESS_BYTES + PLAN_WEIGHTS * BYTES[kind] * largest)
    if ranges:
        takes[_RANGING] = next(need.ranges_bytes for need in footprint.needs if need.dtype == kind)
    what, most = max(takes.items(), key=lambda item: item[1])
    if most > footprint.memory_available_bytes:
        remedy = "" if kind == "fp16" else ', or set export.dtype = "fp16"'
        remedy = ", or set quantization.scheme = 'int8_weights', which needs none" if what == _RANGING else remedy
        free = footprint.memory_available_bytes / GB
        raise InputError(
            f"{what} this model takes about {most / GB:.1f} GB of memory, and {free:.1f} GB are free: use a larger machine{remedy}"
        )


def _need(found: Sequence[Part], pixels: int, dtype: Literal["fp32", "fp16"], variants: int, memory: int, disk: int) -> Need:
    weights = {part.name: part.exported * (variants if part.name == "unet" else 1) for part in found}
    largest = max(part.exported for part in found)
    eager = PROCESS_BYTES + BYTES["fp32"] * sum(part.parameters for part in found)
    row = ROW_SHARE[_family(found)] * pixels
    method = LocalizationSettings()
    localize = eager + search_bytes(int(row), rows_at_once(int(row)), method.samples * method.prompts)
    small = ROW_SHARE[_family(found)] * min(pixels, COMPARED_PIXELS)
    rows = VERIFIED_ROWS * max(ROW_SESSION[dtype] * small, PICTURE_SESSION * min(pixels, COMPARED_PIXELS) if "vae" in weights else 0)
    export = PROCESS_BYTES + PART_WEIGHTS[dtype] * BYTES["fp32"] * largest + rows
    sessions = WEIGHTS_OPEN[dtype] * BYTES["fp32"] * sum(weights.values())
    drawn = pictures_at_once(pixels)
    drawing = 2 * drawn * ROW_SESSION[dtype] * row * variants
    measure = eager + sessions + drawing + drawn * PICTURE_SESSION * pixels
    once = sum(part.exported for part in found)
    ranges = PROCESS_BYTES + WEIGHTS_OPEN["fp32"] * BYTES["fp32"] * once + 2 * ROW_SESSION["fp32"] * row + WATCHED_BYTES[_family(found)]
    bundle = 2 * (BYTES[dtype] * sum(weights.values()) + OTHER_DISK_BYTES)
    return Need(
        dtype=dtype,
        variants=variants,
        localize_bytes=int(localize),
        export_bytes=int(export),
        measure_bytes=int(measure),
        ranges_bytes=int(ranges),
        disk_bytes=int(bundle),
        fits=max(localize, export, measure) <= memory and bundle <= disk,
    )


def _settings(need: Need) -> str:
    words = [] if need.dtype == "fp32" else [f'export.dtype = "{need.dtype}"']
    return "in the recipe: " + ", ".join([*words, *(['export.variants = ["masked"]'] if need.variants == 1 else [])])


def _shortage(needs: Sequence[Need], memory: int, disk: int, place: Path) -> str:
    least, smallest = min(n.memory_bytes for n in needs), min(n.disk_bytes for n in needs)
    words = []
    if least > memory:
        words.append(f"use a machine with {least / GB:.0f} GB of free memory, or draw smaller pictures (sampling.height, width)")
    if smallest > disk:
        words.append(f"free {(smallest - disk) / GB:.1f} GB in {place}, or give another --output")
    return "; ".join(words) or f"free memory and disk: {least / GB:.0f} GB and {smallest / GB:.1f} GB are needed together"


def _parts_of_file(path: Path) -> dict[str, list[_Tensor]]:
    found: dict[str, list[_Tensor]] = {}
    for key, dtype, count in _header(path):
        prefix = next((p for p in _SINGLE_FILE if key.startswith(p)), None)
        if prefix:
            found.setdefault(_SINGLE_FILE[prefix], []).append((key.removeprefix(prefix), dtype, count))
    return found


def _header(path: Path) -> list[_Tensor]:
    if path.suffix != ".safetensors":
        raise InputError(f"model {path} is not a .safetensors file: sizes are read from its header, pickles are not opened")
    check_regular(path, "model file")
    try:
        with safe_open(path, "numpy") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118  not a dict
            return [(key, part.get_dtype(), prod(part.get_shape())) for key, part in slices.items()]
    except Exception as error:  # of a header that is none, several unrelated classes
        raise InputError(f"model file {path} cannot be read: {first_line(error)}") from error


def _family(found: Iterable[Part]) -> Literal["sd", "sdxl"]:
    return "sdxl" if any(part.name == "text_encoder_2" for part in found) else "sd"


def _pixels(local: Path, family: Literal["sd", "sdxl"]) -> int:
    """Pixels of a picture of the size the model was trained on: its UNet's `sample_size`, each latent 8 pixels wide."""
    place = local / "unet" / "config.json"
    size = completed("unet", read_json(place), family)["sample_size"] if place.is_file() else None
    side = {"sd": 64, "sdxl": 128}[family]
    height, width = size if isinstance(size, list) else (size or side, size or side)
    return int(height * width * 8 * 8)


def _disk_free(output: Path) -> tuple[Path, int]:
    """The folder that exists nearest to `output`, and the bytes free on its disk."""
    place = expanded(output).absolute()
    while not place.is_dir():
        place = place.parent
    return place, shutil.disk_usage(place).free


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None

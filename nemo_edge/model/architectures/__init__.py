"""Architectures without weights: the values of published configurations, beside this file, or a folder of someone's own.

Facts about models, as diffusers and transformers spell them: stable-diffusion-v1-5/stable-diffusion-v1-5,
stabilityai/stable-diffusion-2-1, stabilityai/stable-diffusion-xl-base-1.0, nota-ai/bk-sdm-small. No weights come with them; the
vocabulary is OpenAI CLIP's, which all of them have (`clip/merges.txt`, under the MIT licence beside it).
"""

from __future__ import annotations

__all__ = ["ARCHITECTURES", "Configurations", "configurations", "modules", "parts", "source", "write_vocabulary"]

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_edge.model.configuration import check_pipeline
from nemo_edge.system.errors import InputError, first_line
from nemo_edge.system.reading import expanded, read_json

if TYPE_CHECKING:
    from torch import nn

ARCHITECTURES: dict[str, str] = {
    "sd15": "Stable Diffusion 1.5, pictures of 512 × 512",
    "sd21": "Stable Diffusion 2.1, pictures of 768 × 768, v-prediction",
    "sdxl": "Stable Diffusion XL 1.0, pictures of 1024 × 1024",
    "bk-sdm-small": "BK-SDM-Small, distilled from 1.4: one attention a block, no mid block, pictures of 512 × 512",
}
"""The architectures that come with the package, and what each is."""

Configurations = dict[str, dict[str, Any]]
"""The configuration files of a diffusers folder by their place in it."""

_CLASSES = ("UNet2DConditionModel", "AutoencoderKL", "CLIPTextModel", "CLIPTextModelWithProjection")
_NEEDED = ("scheduler", "text_encoder", "tokenizer", "unet", "vae")


def source(name: str) -> Path:
    """Return the folder of an architecture. Raises `InputError` for what is neither in `ARCHITECTURES` nor a folder of one."""
    folder = Path(__file__).parent / name if name in ARCHITECTURES else expanded(name)
    if not (folder / "model_index.json").is_file():
        raise InputError(
            f"architecture {name} is not known: give one of {', '.join(ARCHITECTURES)}, or a folder of configurations "
            "(model_index.json, scheduler/scheduler_config.json, and config.json in unet, vae, text_encoder)"
        )
    return folder


def configurations(name: str) -> Configurations:
    """Return every configuration of an architecture; a tokenizer may be without one.

    The index loses the parts that are neither drawn from nor drawn with, such as a safety checker. Raises `InputError` for
    an architecture that is not known, not whole, or not Stable Diffusion.
    """
    folder = source(name)
    index = _index(folder)
    found = {"model_index.json": index}
    for part in parts(index):
        file = {"scheduler": "scheduler_config.json", "tokenizer": "tokenizer_config.json"}.get(part.split("_")[0], "config.json")
        if not part.startswith("tokenizer") or (folder / part / file).is_file():
            found[f"{part}/{file}"] = _read(folder / part / file)
    return found


def parts(index: dict[str, Any], prefix: str = "") -> list[str]:
    """Return the parts that an index names, those of a prefix."""
    return [name for name, entry in index.items() if name.startswith(prefix) and _is_part(entry)]


def modules(name: str) -> dict[str, nn.Module]:
    """Return the parts with weights on torch's meta device: shapes without memory. Raises `InputError` like `configurations`."""
    found = configurations(name)
    index = found["model_index.json"]
    return {path.split("/")[0]: _module(path, index, config) for path, config in found.items() if path.endswith("/config.json")}


def write_vocabulary(tokenizer: Path) -> None:
    """Write CLIP's vocabulary into a tokenizer's folder: `vocab.json` and `merges.txt`, which every version of transformers reads."""
    tokenizer.mkdir(parents=True, exist_ok=True)
    for name, content in zip(("merges.txt", "vocab.json"), _vocabulary(), strict=True):
        (tokenizer / name).write_text(content, encoding="utf-8")


@cache
def _vocabulary() -> tuple[str, str]:
    """The contents of `merges.txt` and `vocab.json`: bytes, bytes that end a word, what they are merged to, the two marks."""
    merges = (Path(__file__).parent / "clip" / "merges.txt").read_text(encoding="utf-8")
    letters = _letters()
    pieces = [line.replace(" ", "") for line in merges.splitlines()[1:]]  # the first line is the format's version
    words = [*letters, *(f"{letter}</w>" for letter in letters), *pieces, "<|startoftext|>", "<|endoftext|>"]
    return merges, json.dumps({word: i for i, word in enumerate(words)}, ensure_ascii=False)


def _letters() -> list[str]:
    """A letter for each of the 256 bytes, in the order of GPT-2's byte pairs: those that can be seen, then the rest from U+0100 on."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [*map(chr, seen), *(chr(256 + i) for i in range(256 - len(seen)))]


def _index(folder: Path) -> dict[str, Any]:
    index = _read(folder / "model_index.json")
    check_pipeline(str(index.get("_class_name")))
    kept = {part: [None, None] if _is_part(entry) and not part.startswith(_NEEDED) else entry for part, entry in sorted(index.items())}
    missing = [part for part in _NEEDED if part not in parts(kept)]
    if missing:
        raise InputError(f"architecture {folder} is not whole: its model_index.json names no {', '.join(missing)}")
    return {**kept, "requires_safety_checker": False} if kept["_class_name"] == "StableDiffusionPipeline" else kept


def _is_part(entry: object) -> bool:
    return isinstance(entry, list) and len(entry) == 2 and all(isinstance(word, str) for word in entry)


def _module(path: str, index: dict[str, Any], config: dict[str, Any]) -> nn.Module:
    import diffusers
    import torch
    import transformers

    library, kind = index[path.split("/")[0]]
    if kind not in _CLASSES:
        raise InputError(f"{path} of the architecture is of a {kind}: give one of {', '.join(_CLASSES)}")
    try:
        with torch.device("meta"):
            if library == "transformers":
                module: nn.Module = getattr(transformers, kind)(transformers.CLIPTextConfig(**config))
            else:
                module = getattr(diffusers, kind).from_config(config)
    except Exception as error:  # whatever a library makes of a number that it did not expect
        raise InputError(f"{path} of the architecture does not make a {kind}: {first_line(error)}") from error
    return module


def _read(path: Path) -> dict[str, Any]:
    config = read_json(path, "architecture file", remedy="the architecture is not whole")
    if not isinstance(config, dict):
        raise InputError(f"architecture file {path} holds no JSON object")
    return config

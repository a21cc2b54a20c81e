"""The files of a diffusers folder that are opened: which there are is read off names and `model_index.json`, no weights are read.

Knows diffusers' and transformers' names of files; nothing of what is in them.
"""

from __future__ import annotations

__all__ = ["PICKLE_FILES", "WEIGHTED_PARTS", "WEIGHT_FILES", "Weights", "opened_files", "part_entry", "weights_of"]

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_edge.system.errors import InputError
from nemo_edge.system.reading import read_json

WEIGHT_FILES = (".safetensors",)
PICKLE_FILES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
WEIGHTED_PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")
"""The parts that hold weights."""
_TOKENIZERS = ("tokenizer", "tokenizer_2")
_SCHEDULER = "scheduler/scheduler_config.json"
_NAMES = re.compile(
    r"(diffusion_pytorch_model|pytorch_model|model)(?:\.(?P<early>[\w.]+?))?(?P<shard>-\d+-of-\d+)?(?:\.(?P<late>\w+))?\.(safetensors|bin)"
)
"""Of a file of weights: `model.safetensors`, `model.fp16.safetensors`, `model.fp16-00001-of-00002.safetensors`, and the old form."""
_STEMS = {"unet": ("diffusion_pytorch_model",), "vae": ("diffusion_pytorch_model",)}
"""How the files of a part begin; those of text encoders as transformers and diffusers call them."""
_FIRST = ("", "fp16", "bf16")
"""Variants, that of the plain name first; others come after these by their names."""


@dataclass(frozen=True)
class Weights:
    """The weights of one part that are opened: one file, or several with their index."""

    files: tuple[Path, ...]
    variant: str
    """The word between the name and its ending, as "fp16"; empty where there is none."""
    index: Path | None = None
    """What tells which shard holds what; None for a single file, and for shards that lack theirs."""

    @property
    def pickled(self) -> bool:
        """Whether they are pickles."""
        return self.files[0].suffix in PICKLE_FILES

    @property
    def sharded(self) -> bool:
        """Whether they are cut in several files."""
        return "-of-" in self.files[0].name

    def missing(self) -> list[str]:
        """Return the names of shards that the index tells of and that are not there."""
        if self.index is None:
            return []
        try:
            named = set(read_json(self.index)["weight_map"].values())
        except (InputError, KeyError, TypeError, AttributeError):
            return [self.index.name]
        return sorted(str(name) for name in named if name not in {file.name for file in self.files})


def weights_of(part: Path) -> Weights | None:
    """Return what is opened of a part's folder: safetensors before pickles, the plain name before fp16 before other variants."""
    found: dict[tuple[bool, str], list[Path]] = {}
    for path in sorted(part.iterdir()) if part.is_dir() else ():
        match = _NAMES.fullmatch(path.name)
        if match is not None and path.is_file() and match[1] in _STEMS.get(part.name, (match[1],)):
            variant = match["early"] or match["late"] or ""
            found.setdefault((path.suffix in PICKLE_FILES, variant), []).append(path)
    if not found:
        return None
    pickled, variant = min(found, key=lambda kind: (kind[0], _FIRST.index(kind[1]) if kind[1] in _FIRST else len(_FIRST), kind[1]))
    files = found[pickled, variant]
    shards = tuple(path for path in files if "-of-" in path.name)
    whole = tuple(path for path in files if path not in shards)
    index = _index_of(shards[0], variant) if shards else None
    if whole and not (index and index.name.startswith("diffusion")):  # diffusers asks for an index first, transformers for one file
        return Weights(whole[:1], variant)
    return Weights(shards, variant, index)


def opened_files(folder: Path) -> list[Path]:
    """Return every file of a checkpoint folder that is opened, sorted; parts may be links to folders.

    These are the configurations and weights of the parts that its `model_index.json` names; not those of a safety checker, other
    variants, optimizers, logs. Of a folder without a legible index all that such files are named like.
    """
    entries = _index(folder)
    if entries is None:
        kept = (*WEIGHT_FILES, *PICKLE_FILES, ".json", ".txt")
        return sorted(p for p in folder.rglob("*") if p.suffix in kept and p.is_file())
    found = [folder / "model_index.json", folder / _SCHEDULER]
    for part in (part for part in WEIGHTED_PARTS if part_entry(entries, part)):
        weights = weights_of(folder / part)
        found += [folder / part / "config.json", *(weights.files if weights else ())]
        found += [weights.index] if weights and weights.index else []
    for part in (part for part in _TOKENIZERS if part_entry(entries, part)):
        found += _texts(folder / part)
    return sorted(path for path in found if path.is_file())


def part_entry(index: dict[str, Any], part: str) -> tuple[str, str] | None:
    """Return the library and the class that an index names for a part; None where it names none."""
    entry = index.get(part)
    if isinstance(entry, (list, tuple)) and len(entry) == 2 and all(isinstance(word, str) for word in entry):
        return entry[0], entry[1]
    return None


def _index(folder: Path) -> dict[str, Any] | None:
    try:
        index = read_json(folder / "model_index.json")
    except InputError:
        return None
    return index if isinstance(index, dict) else None


def _index_of(shard: Path, variant: str) -> Path | None:
    stem, suffix = shard.name.partition(".")[0].partition("-")[0], shard.suffix
    new, old = f"{stem}{suffix}.index.{variant}.json", f"{stem}.{variant}{suffix}.index.json"
    names = (new, old) if variant else (f"{stem}{suffix}.index.json",)
    return next((shard.parent / name for name in names if (shard.parent / name).is_file()), None)


def _texts(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.suffix in (".json", ".txt")] if folder.is_dir() else []

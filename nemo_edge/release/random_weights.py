"""Checkpoints of a published architecture with random weights, for what asks how large and how fast, not how good.

Everything else takes such a folder like any checkpoint. Knows how PyTorch starts a layer; knows nothing of what the layers are
for, nor which architectures there are.
"""

from __future__ import annotations

__all__ = ["parts_of", "weights_folder", "write_random"]

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from importlib.metadata import version
from math import prod, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_edge import __version__
from nemo_edge.bundle.manifest import staging
from nemo_edge.model.architectures import ARCHITECTURES, Configurations, configurations, modules, parts, source
from nemo_edge.model.marker import MARKER, Dtype, RandomWeights, read_marker
from nemo_edge.recipe.recipe import Recipe
from nemo_edge.release._cache import cache_of
from nemo_edge.release._footprint import PLACES, Part, part_of
from nemo_edge.system.errors import InputError, first_line
from nemo_edge.system.files import explain, sha256_json, write_atomically
from nemo_edge.system.progress import Advance, Progress
from nemo_edge.system.reading import expanded

if TYPE_CHECKING:
    from torch import Tensor, nn

_CHUNK = 1 << 20
_EMBEDDING_BOUND = 0.02 * sqrt(3)
"""Uniform values up to it have CLIP's standard deviation of 0.02; a normal draw differs in its last bit between processors."""
_START, _END = "<|startoftext|>", "<|endoftext|>"
_WORDS = ("cat", "dog", "fox", "hat", "key", "map", "owl", "pig", "red", "sea", "sun", "toy")
"""What a tokenizer without a vocabulary has beside bytes, where there is room: words for an attack with text to choose from."""


def weights_folder(recipe: Recipe) -> Path:
    """Return where the random weights of a recipe are made, and found again."""
    assert recipe.random_weights is not None
    name, seed = recipe.random_weights.architecture, recipe.random_weights.seed
    return cache_of(recipe.output) / f"weights-{sha256_json([name, configurations(name), seed])[:12]}"


def write_random(name: str, folder: Path, dtype: Dtype = "fp16", seed: int = 0, progress: Progress | None = None) -> Path:
    """Write a diffusers folder of the architecture `name` with random weights in safetensors; return `folder`.

    `name` is one of `ARCHITECTURES`, or a folder with `model_index.json`, `scheduler/scheduler_config.json` and the
    `config.json` of each part. Each tensor is drawn by itself, from the seed and its name, within the bounds of PyTorch's own
    initialization, so the bytes depend on neither threads nor order, and no more than one part is held, in `dtype`. A
    tokenizer without a vocabulary gets one of single bytes. The folder appears whole or not at all; one that already holds
    these weights is kept. Raises `InputError` for an unknown architecture and for a folder with something else in it.
    """
    configs = configurations(name)
    wanted = _wanted(name, configs, dtype, seed)
    if wanted.matches(read_marker(folder)):
        return folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is there and is not {wanted.name} in {dtype} with seed {seed}: remove it, or choose another folder")
    built = modules(name)
    count = sum(p.numel() for module in built.values() for p in module.parameters())
    with staging(folder) as staged, (progress or Progress()).task(f"random weights of {wanted.name}", count) as advance:
        for path, config in configs.items():
            _write_json(staged / path, config)
        for part in parts(configs["model_index.json"], "tokenizer"):
            _write_tokenizer(staged / part, source(name) / part, configs)
        for part, module in built.items():
            _write_weights(staged / part, module, dtype, f"{seed}/{part}", advance)
        _write_json(staged / MARKER, wanted.model_dump())
        try:
            os.replace(staged, folder)
        except OSError as error:
            if not wanted.matches(read_marker(folder)):  # another process may have been faster
                raise explain(error, folder) from error
    return folder


def parts_of(name: str, _: Progress) -> tuple[Part, ...]:
    """Return what `footprint.parts` reads of a folder of these random weights, before there is one; raises as `write_random` does."""
    built = modules(name)
    return tuple(part_of(part, [(key, "F16", p.numel()) for key, p in built[part].named_parameters()]) for part in PLACES if part in built)


def _wanted(name: str, configs: Configurations, dtype: Dtype, seed: int) -> RandomWeights:
    return RandomWeights(
        name=name if name in ARCHITECTURES else expanded(name).resolve().name,
        seed=seed,
        dtype=dtype,
        architecture=sha256_json(configs),
        versions={"nemo_edge": __version__, **{package: version(package) for package in ("torch", "diffusers", "transformers")}},
    )


def _write_weights(folder: Path, module: nn.Module, dtype: Dtype, stream: str, advance: Advance) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    text = folder.name.startswith("text_encoder")
    path = folder / ("model.safetensors" if text else "diffusion_pytorch_model.safetensors")
    tensors = {}
    for key, parameter, value, bound in _layers(module):
        # transformers 5 has dropped the prefix that published text encoders have; both versions read it
        key = f"text_model.{key}" if text and not key.startswith(("text_model.", "text_projection.")) else key
        tensors[key] = _draw(parameter.shape, dtype, value, bound, f"{stream}/{key}")
        advance(parameter.numel())
    try:
        save_file(tensors, path, {"format": "pt"})
    except OSError as error:
        raise explain(error, path) from error
    except SafetensorError as error:
        raise InputError(f"the random weights of {folder.name} cannot be written: {first_line(error)}") from error


def _layers(module: nn.Module) -> Iterator[tuple[str, Tensor, float, float]]:
    """Each parameter with the value it starts around and the bound it starts within.

    As `reset_parameters` of PyTorch's Linear and Conv has it (Kaiming uniform with a = √5): 1 / √fan_in for weight and bias.
    """
    from torch import nn

    for prefix, layer in module.named_modules():
        weight = getattr(layer, "weight", None)
        for name, parameter in layer.named_parameters(recurse=False):
            matrix = parameter if parameter.ndim > 1 else weight
            key = f"{prefix}.{name}" if prefix else name
            if isinstance(layer, nn.Embedding):
                yield key, parameter, 0.0, _EMBEDDING_BOUND
            elif matrix is not None and matrix.ndim > 1:
                yield key, parameter, 0.0, 1 / sqrt(prod(matrix.shape[1:]))
            else:
                yield key, parameter, float(name == "weight"), 0.0


def _draw(shape: tuple[int, ...], dtype: Dtype, value: float, bound: float, stream: str) -> Tensor:
    """Uniform values around `value`, drawn in float32 by a generator of this tensor's own."""
    import torch

    out = torch.full(shape, value, dtype={"fp32": torch.float32, "fp16": torch.float16}[dtype])
    if bound:
        generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(stream.encode()).digest()[:4]))
        chunk = torch.empty(_CHUNK)
        for piece in out.view(-1).split(_CHUNK):
            piece.copy_(chunk[: len(piece)].uniform_(value - bound, value + bound, generator=generator))
    return out


def _write_tokenizer(folder: Path, original: Path, configs: Configurations) -> None:
    """Copy a tokenizer that has a vocabulary; else write CLIP's with few words: the bytes keep their ids, 0 to 511."""
    from transformers import CLIPTokenizer

    if any((original / file).is_file() for file in ("tokenizer.json", "vocab.json")):
        shutil.copytree(original, folder, dirs_exist_ok=True)
        return
    text = configs[f"{folder.name.replace('tokenizer', 'text_encoder')}/config.json"]
    (vocabulary, merges), length = _byte_vocabulary(int(text["vocab_size"])), int(text["max_position_embeddings"])
    settings = configs.get(f"{folder.name}/tokenizer_config.json", {})
    pad = settings.get("pad_token", _END)
    pad = str(pad["content"] if isinstance(pad, dict) else pad)
    length = min(length, int(settings.get("model_max_length", length)))
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=length, pad_token=pad if pad in vocabulary else _END)
    tokenizer.save_pretrained(folder)


def _byte_vocabulary(size: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The letters CLIP writes bytes with, each inside a word and at its end, words that are made of them, and the two marks, last of
    `size` ids; and the pairs that make the words."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = [chr(code) for code in (*printable, *range(0x100, 0x200 - len(printable)))]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    if size < len(tokens) + 2:
        raise InputError(f"vocab_size of the text encoder is {size}: bytes and the marks of start and end take {len(tokens) + 2}")
    merges = [pair for word in _WORDS for pair in ((word[0], word[1]), (word[:2], f"{word[2]}</w>"))]
    if size < len(tokens) + len(merges) + 2:
        merges = []
    made = {token: i for i, token in enumerate([*tokens, *("".join(pair) for pair in merges)])}
    return {**made, _START: size - 2, _END: size - 1}, merges


def _write_json(path: Path, config: dict[str, Any]) -> None:
    write_atomically(path, json.dumps(config, indent=1, sort_keys=True) + "\n")

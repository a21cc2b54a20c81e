"""What a model is, without its weights: configurations, tokenizers, noise schedule. Saved with a bundle, so that a bundle
can make pictures without the checkpoint it came from.
"""

from __future__ import annotations

__all__ = ["PIPELINES", "Configuration", "check_pipeline", "upcasts_decoder"]

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from nemo_edge.system.errors import BundleError, InputError

Family = Literal["sd", "sdxl"]

_PLACES = ("_name_or_path", "name_or_path", "special_tokens_map_file", "tokenizer_file")
"""Keys under which diffusers and transformers note where a part was read from, on whatever machine."""

PIPELINES: dict[str, Family] = {"StableDiffusionPipeline": "sd", "StableDiffusionXLPipeline": "sdxl"}


@dataclass(frozen=True)
class Configuration:
    """The configurations of a pipeline's parts, as diffusers and transformers write them.

    Raises `InputError` for a pipeline that is not Stable Diffusion.
    """

    index: Mapping[str, Any]
    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    scheduler: Mapping[str, Any]
    text_encoders: tuple[Mapping[str, Any], ...]
    tokenizers: tuple[Any, ...]

    def __post_init__(self) -> None:
        check_pipeline(str(self.index.get("_class_name")))

    @property
    def family(self) -> Family:
        """Stable Diffusion 1.x/2.x ("sd") or XL ("sdxl")."""
        return PIPELINES[self.index["_class_name"]]

    @property
    def factor(self) -> int:
        """Pixels a latent stands for, in each direction."""
        return int(2 ** (len(self.vae["block_out_channels"]) - 1))

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the latents the UNet was trained on."""
        size = self.unet["sample_size"]
        height, width = (size, size) if isinstance(size, int) else size
        return int(self.unet["in_channels"]), int(height), int(width)

    @property
    def pixel_size(self) -> tuple[int, int]:
        """Height and width of the pictures the model was trained on, in pixels."""
        _, height, width = self.latent_shape
        return height * self.factor, width * self.factor

    @property
    def latent_multiple(self) -> int:
        """What the UNet halves evenly: the height and width of the latents of a graph of free sizes are multiples of it."""
        return int(2 ** (len(self.unet["down_block_types"]) - 1))

    @property
    def prediction_type(self) -> str:
        """What the UNet predicts: "epsilon", "v_prediction" or "sample"."""
        return str(self.scheduler.get("prediction_type", "epsilon"))

    @property
    def upcasts_decoder(self) -> bool:
        """Whether the VAE's decoder is to run in float32 whatever the pipeline's type, since its activations overflow fp16."""
        return _upcasts(self.index, self.vae)

    @property
    def text_encoder_names(self) -> tuple[str, ...]:
        """The folders of the text encoders, which are the names of their components."""
        return tuple(_numbered("text_encoder", i) for i in range(len(self.text_encoders)))

    def token_ids(self, prompts: Sequence[str]) -> list[np.ndarray]:
        """Return the ids of each tokenizer, int64 [B, T], padded and cut to the text encoder's length."""
        return [
            tokenizer(
                list(prompts), padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="np"
            ).input_ids.astype(np.int64)
            for tokenizer in self.tokenizers
        ]

    def left_out(self, prompts: Sequence[str]) -> dict[str, str]:
        """Return of each prompt that is too long the words that no text encoder reads."""
        found = {}
        for prompt in prompts:
            rests = []
            for tokenizer in self.tokenizers:
                ids = tokenizer(prompt, verbose=False).input_ids
                rests.append(tokenizer.decode(ids[tokenizer.model_max_length - 1 : -1]))  # the last place is that of the end
            if all(rests):
                found[prompt] = min(rests, key=len)
        return found

    def warnings(self, prompts: Sequence[str]) -> list[str]:
        """What to say of prompts that are longer than the text encoder reads: a line each."""
        return [
            f"the prompt {prompt[:40] + '…'!r} is longer than the text encoder reads; left out: {rest!r}"
            for prompt, rest in self.left_out(prompts).items()
        ]

    def save(self, folder: Path, unets: Sequence[str]) -> None:
        """Write the configurations into a bundle's layout, without the places they were read from; `unets` are its UNets' folders."""
        parts = {
            "scheduler/scheduler_config.json": self.scheduler,
            **{f"{u}/config.json": self.unet for u in unets},
            "vae_decoder/config.json": self.vae,
        }
        parts |= {f"{name}/config.json": config for name, config in zip(self.text_encoder_names, self.text_encoders, strict=True)}
        for name, config in {"model_index.json": self.index, **parts}.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            _write(folder / name, config)
        for i, tokenizer in enumerate(self.tokenizers):
            _save_tokenizer(tokenizer, folder / _numbered("tokenizer", i))

    @classmethod
    def load(cls, bundle: Path, *, tokenizers: bool = True) -> Configuration:
        """Read what `save` writes, or a checkpoint's, the tokenizers only if they are wanted.

        Raises `BundleError` when a part is missing.
        """
        unet = next((f for f in ("unet", "unet_masked") if (bundle / f / "config.json").is_file()), "unet")
        vae = next((f for f in ("vae_decoder", "vae") if (bundle / f / "config.json").is_file()), "vae_decoder")
        count = 1 + (bundle / "tokenizer_2").is_dir()
        try:
            texts = [_read(bundle / _numbered("text_encoder", i) / "config.json") for i in range(count)]
            return cls(
                index=_read(bundle / "model_index.json"),
                unet=_read(bundle / unet / "config.json"),
                vae=_read(bundle / vae / "config.json"),
                scheduler=_read(bundle / "scheduler" / "scheduler_config.json"),
                text_encoders=tuple(texts),
                tokenizers=tuple(_load_tokenizer(bundle / _numbered("tokenizer", i)) for i in range(count)) if tokenizers else (),
            )
        except (OSError, ValueError) as error:
            raise BundleError(f"{bundle} lacks a part of its model: {error}") from error


def check_pipeline(name: str) -> None:
    """Raise `InputError` unless `name` is the class of a pipeline we take."""
    if name not in PIPELINES:
        raise InputError(f"the checkpoint is a {name}; nemo-edge takes {', '.join(PIPELINES)}")


def upcasts_decoder(folder: Path) -> bool:
    """Whether `Configuration.upcasts_decoder` is true of a diffusers folder, of which only two files are read; False for anything else."""
    try:
        return _upcasts(_read(folder / "model_index.json"), _read(folder / "vae" / "config.json"))
    except (OSError, ValueError):
        return False


def _upcasts(index: Mapping[str, Any], vae: Mapping[str, Any]) -> bool:
    return PIPELINES.get(str(index.get("_class_name"))) == "sdxl" and bool(vae.get("force_upcast", True))


def _load_tokenizer(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(str(folder))


def _save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write a tokenizer with `vocab.json` and `merges.txt` beside `tokenizer.json`, for readers older than transformers 5."""
    tokenizer.save_pretrained(folder)
    _write(folder / "tokenizer_config.json", _read(folder / "tokenizer_config.json"))
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or (folder / "vocab.json").is_file():
        return
    model = json.loads(backend.to_str())["model"]
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{pair}\n" for pair in pairs), encoding="utf-8")


def _numbered(name: str, index: int) -> str:
    return name if index == 0 else f"{name}_{index + 1}"


def _write(path: Path, config: Mapping[str, Any]) -> None:
    kept = {key: value for key, value in config.items() if key not in _PLACES}
    path.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return config

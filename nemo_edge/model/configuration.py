"""What a model is, without its weights: configurations, tokenizers, noise schedule. Saved with a bundle, so that a bundle
can make pictures without the checkpoint it came from.
"""

from __future__ import annotations

__all__ = ["LCM_PIPELINE", "PIPELINES", "Configuration", "check_pipeline", "completed", "fit_tokenizer", "kin", "upcasts_decoder"]

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, Literal

import numpy as np

from nemo_edge.model._tokenizer import FileTokenizer
from nemo_edge.model.component import GUIDANCE
from nemo_edge.system.environment import importable
from nemo_edge.system.errors import BundleError, InputError, NemoEdgeError, first_line
from nemo_edge.system.reading import check_letters, read_json

Family = Literal["sd", "sdxl"]

_PLACES = ("_name_or_path", "name_or_path", "special_tokens_map_file", "tokenizer_file", "is_local", "local_files_only")
"""Keys under which diffusers and transformers note where a part was read from, on whatever machine, and how."""

LCM_PIPELINE = "LatentConsistencyModelPipeline"
"""diffusers' class of the first consistency models (LCM), whose parts are those of Stable Diffusion 1.x."""
PIPELINES: dict[str, Family] = {"StableDiffusionPipeline": "sd", "StableDiffusionXLPipeline": "sdxl", LCM_PIPELINE: "sd"}

_KIN = {
    "StableDiffusionImg2ImgPipeline": "StableDiffusionPipeline",
    "StableDiffusionInpaintPipeline": "StableDiffusionPipeline",
    "StableDiffusionInpaintPipelineLegacy": "StableDiffusionPipeline",
    "StableDiffusionInstructPix2PixPipeline": "StableDiffusionPipeline",
    "StableDiffusionKDiffusionPipeline": "StableDiffusionPipeline",
    "LatentConsistencyModelImg2ImgPipeline": LCM_PIPELINE,
    "StableDiffusionXLImg2ImgPipeline": "StableDiffusionXLPipeline",
    "StableDiffusionXLInpaintPipeline": "StableDiffusionXLPipeline",
    "StableDiffusionXLInstructPix2PixPipeline": "StableDiffusionXLPipeline",
    "StableDiffusionXLKDiffusionPipeline": "StableDiffusionXLPipeline",
}
"""diffusers' classes of the same parts, opened as those of `PIPELINES`; a UNet of other channels than the latents' is refused for that."""
_UNSAID: dict[str, Mapping[str, Any]] = {
    "unet": {
        "sample_size": None,
        "in_channels": 4,
        "out_channels": 4,
        "cross_attention_dim": 1280,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    },
    "vae": {"block_out_channels": (64,), "latent_channels": 4, "out_channels": 3, "scaling_factor": 0.18215, "force_upcast": True},
    "tiny": {"block_out_channels": (64,) * 4, "latent_channels": 4, "out_channels": 3, "scaling_factor": 1.0, "force_upcast": False},
    "scheduler": {"num_train_timesteps": 1000, "prediction_type": "epsilon"},
}
"""What diffusers takes for a key that a configuration, as an old one, does not have."""
_TOKENS = 77
"""The length of a text encoder whose configuration does not say it, as transformers takes it."""

_LAYERS = 12
"""Those of a text encoder whose configuration does not say it, as transformers takes them."""
_CLIP_SKIP = "clip_skip"
"""A key of ours in the configuration of a text encoder."""


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
    def latent_statistics(self) -> tuple[Sequence[float], Sequence[float]] | None:
        """Mean and deviation of the VAE's latents, a number a channel each, where diffusers' pipeline knows of them: XL's alone does."""
        mean, std = (self.vae.get(key) for key in ("latents_mean", "latents_std"))
        return None if self.family != "sdxl" or mean is None or std is None else (mean, std)

    @property
    def guidance_width(self) -> int:
        """Width of the embedding by which the UNet is told the guidance scale, as that of a consistency model (LCM) is; 0: it is not."""
        return int(self.unet.get("time_cond_proj_dim") or 0)

    def told_guidance(self, guidance: float, rows: int) -> dict[str, np.ndarray]:
        """The input of a UNet that is told the guidance scale, float32 [R, `guidance_width`]; none for any other.

        diffusers' `get_guidance_scale_embedding` of the scale less 1: sines and cosines of the scale at falling frequencies.
        """
        if not self.guidance_width:
            return {}
        half = self.guidance_width // 2
        if not importable("torch"):
            fall = np.log(np.float32(10000)) / np.float32(half - 1)
            angles_E = np.float32(guidance - 1) * np.float32(1000) * np.exp(np.arange(half, dtype=np.float32) * -fall)
            row_E = np.pad(np.concatenate([np.sin(angles_E), np.cos(angles_E)]), (0, self.guidance_width % 2))
            return {GUIDANCE: np.repeat(row_E[None], rows, axis=0)}
        import torch  # whose sines diffusers takes

        step = torch.log(torch.tensor(10000.0)) / (half - 1)
        angles = torch.tensor(guidance - 1) * 1000.0 * torch.exp(torch.arange(half, dtype=torch.float32) * -step)
        row = torch.nn.functional.pad(torch.cat([angles.sin(), angles.cos()]), (0, self.guidance_width % 2))
        return {GUIDANCE: np.repeat(row.numpy()[None], rows, axis=0)}

    @property
    def upcasts_decoder(self) -> bool:
        """Whether the VAE's decoder is to run in float32 whatever the pipeline's type, since its activations overflow fp16."""
        return _upcasts(self.index, self.vae)

    @property
    def text_encoder_names(self) -> tuple[str, ...]:
        """The folders of the text encoders, which are the names of their components."""
        return tuple(_numbered("text_encoder", i) for i in range(len(self.text_encoders)))

    @property
    def clip_skip(self) -> int:
        """How many of the text encoders' last layers a prompt is read without."""
        return int(self.text_encoders[0].get(_CLIP_SKIP) or 0)

    def skipping(self, clip_skip: int) -> Configuration:
        """Return the same with another `clip_skip`. Raises `InputError` for one that the text encoders have too few layers for."""
        depth = min(int(config.get("num_hidden_layers", _LAYERS)) for config in self.text_encoders)
        most = depth if self.family == "sd" else max(0, depth - 1)  # XL leaves its last layer out anyhow
        if not 0 <= clip_skip <= most:
            raise InputError(f"clip_skip {clip_skip} does not fit the checkpoint, whose text encoder has {depth} layers: take 0 to {most}")
        own = {_CLIP_SKIP: clip_skip} if clip_skip else {}
        texts = [{name: value for name, value in config.items() if name != _CLIP_SKIP} | own for config in self.text_encoders]
        return replace(self, text_encoders=tuple(texts))

    def token_ids(self, prompts: Sequence[str]) -> list[np.ndarray]:
        """Return the ids of each tokenizer, int64 [B, T], padded and cut to the text encoder's length.

        A token of a textual inversion of several vectors, "<cat>", stands for all of them: "<cat> <cat>_1 <cat>_2".
        """
        found = []
        for tokenizer in self.tokenizers:
            texts = [_expanded(prompt, tokenizer) for prompt in prompts]
            rows = tokenizer(texts, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="np")
            found.append(rows.input_ids.astype(np.int64))
        return found

    def left_out(self, prompts: Sequence[str]) -> dict[str, str]:
        """Return of each prompt that is too long the words that no text encoder reads."""
        found = {}
        for prompt in prompts:
            rests = []
            for tokenizer in self.tokenizers:
                ids = tokenizer(_expanded(prompt, tokenizer), verbose=False).input_ids
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
        try:
            index = _read(bundle / "model_index.json")
            index["_class_name"] = kin(str(index.get("_class_name")))
            family = PIPELINES.get(index["_class_name"], "sd")
            places = range(2 if family == "sdxl" else 1)
            texts = [_read(bundle / _numbered("text_encoder", i) / "config.json") for i in places]
            return _whole(
                cls(
                    index=index,
                    unet=completed("unet", _read(bundle / unet / "config.json"), family),
                    vae=completed("vae", _read(bundle / vae / "config.json"), family),
                    scheduler=completed("scheduler", _read(bundle / "scheduler" / "scheduler_config.json"), family),
                    text_encoders=tuple(texts),
                    tokenizers=tuple(_load_tokenizer(bundle / _numbered("tokenizer", i), texts[i]) for i in places) if tokenizers else (),
                )
            )
        except NemoEdgeError:
            raise
        except Exception as error:  # of what is no configuration of theirs libraries raise several classes
            raise BundleError(f"{bundle} lacks a part of its model: {first_line(error)}; build it again") from error


def _whole(config: Configuration) -> Configuration:
    """The same, once every number that is read of it is one. Raises what reading another does."""
    int(config.scheduler["num_train_timesteps"])
    int(config.vae["latent_channels"])
    if min(*config.pixel_size, *config.latent_shape, config.latent_multiple, config.guidance_width + 1, config.clip_skip + 1) < 1:
        raise ValueError("its sizes are no sizes")
    return config


def kin(name: str) -> str:
    """Return the class of `PIPELINES` that a pipeline is opened as; any other name as it is."""
    return _KIN.get(name, name)


def completed(part: str, config: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """Return the configuration of a "unet", "vae" or "scheduler" with what diffusers takes for what it does not say.

    A UNet of Stable Diffusion 1.x saved before diffusers 0.9 is of 64 latents where it says fewer, as diffusers corrects it.
    """
    tiny = part == "vae" and config.get("_class_name") == "AutoencoderTiny"
    found = {**_UNSAID["tiny" if tiny else part], **config}
    if tiny:
        found["block_out_channels"] = config.get("decoder_block_out_channels", found["block_out_channels"])
    size = found.get("sample_size")
    if part == "unet" and family == "sd" and _before_0_9(config) and isinstance(size, int) and size < 64:
        found["sample_size"] = 64
    return found


def fit_tokenizer(tokenizer: Any, encoder: Mapping[str, Any]) -> Any:
    """Return a tokenizer that gives as many tokens as its text encoder takes, where it says no length or a greater one."""
    most = int(encoder.get("max_position_embeddings") or _TOKENS)
    tokenizer.model_max_length = min(int(tokenizer.model_max_length), most)
    return tokenizer


def check_pipeline(name: str) -> None:
    """Raise `InputError` unless `name` is the class of a pipeline we take."""
    if name not in PIPELINES:
        raise InputError(f"the checkpoint is a {name}; nemo-edge takes {', '.join(PIPELINES)}")


def upcasts_decoder(folder: Path) -> bool:
    """Whether `Configuration.upcasts_decoder` is true of a diffusers folder, of which only two files are read; False for anything else."""
    try:
        return _upcasts(_read(folder / "model_index.json"), completed("vae", _read(folder / "vae" / "config.json"), "sdxl"))
    except InputError:
        return False


def _upcasts(index: Mapping[str, Any], vae: Mapping[str, Any]) -> bool:
    return PIPELINES.get(kin(str(index.get("_class_name")))) == "sdxl" and bool(vae.get("force_upcast", True))


def _before_0_9(config: Mapping[str, Any]) -> bool:
    found = re.match(r"(\d+)\.(\d+)", str(config.get("_diffusers_version", "")))
    return found is not None and (int(found[1]), int(found[2])) < (0, 9)


def _expanded(prompt: str, tokenizer: Any) -> str:
    """The prompt with all tokens of each textual inversion, as diffusers' `maybe_convert_prompt` has it, in one order on every run."""
    check_letters(prompt, "the prompt")
    added = tokenizer.added_tokens_encoder
    several = {token for token in added if f"{token}_1" in added}
    for token in sorted(several.intersection(tokenizer.tokenize(prompt))) if several else ():
        last = next(i for i in count(2) if f"{token}_{i}" not in added)
        prompt = prompt.replace(token, " ".join([token, *(f"{token}_{i}" for i in range(1, last))]))
    return prompt


def _load_tokenizer(folder: Path, encoder: Mapping[str, Any]) -> Any:
    if not importable("transformers"):
        return fit_tokenizer(FileTokenizer(folder), encoder)
    from transformers import CLIPTokenizer

    return fit_tokenizer(CLIPTokenizer.from_pretrained(str(folder)), encoder)


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
    try:
        config = read_json(path, remedy="copy or build it again")
    except InputError as error:
        raise BundleError(f"{path.parent} lacks a part of its model: {error}") from error
    if not isinstance(config, dict):
        raise BundleError(f"{path} holds no JSON object: copy or build it again")
    return config

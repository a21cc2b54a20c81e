"""Opens a diffusers checkpoint and hands out what the rest needs: components, what a prompt becomes, value layers.

With `_forwards` the only module that knows the attribute names of diffusers' modules. Takes Stable Diffusion 1.x, 2.x, XL and UNets
distilled from them.
"""

from __future__ import annotations

__all__ = [
    "Checkpoint",
    "Conditioning",
    "check_device",
    "check_files",
    "cross_attentions",
    "import_pipelines",
    "open_checkpoint",
    "open_parts",
    "open_source",
    "summary",
    "value_layers",
    "value_projections",
]

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from nemo_edge.model._filekinds import check_complete
from nemo_edge.model._forwards import DecoderGraph, HiddenTextGraph, TextGraph, UNetGraph
from nemo_edge.model._loras import fuse_
from nemo_edge.model._opening import pipeline_from_folder, quiet
from nemo_edge.model._tensors import check_tensors
from nemo_edge.model.component import GUIDANCE, SKIPPED, Component, Port
from nemo_edge.model.conditioning import conditioning
from nemo_edge.model.configuration import Configuration, check_pipeline
from nemo_edge.model.inspection import check_folder, pickle_error
from nemo_edge.model.neurons import ValueLayer
from nemo_edge.model.singlefile import pipeline_from_file
from nemo_edge.recipe.settings import CheckpointSettings, LoraSettings
from nemo_edge.system.errors import InputError, MissingDependency
from nemo_edge.system.files import PICKLE_FILES, WEIGHT_FILES, checkpoint_folder, checkpoint_hashes, sha256_json
from nemo_edge.system.weights import WEIGHTED_PARTS

Layers = Literal["paper", "all"]

Conditioning = dict[str, Tensor]
"""UNet inputs that come from the prompt, each [B, …]: `encoder_hidden_states`, and XL's `text_embeds`, `time_ids`."""


@dataclass(frozen=True)
class Checkpoint:
    """An open checkpoint: modules of one type on one device, in evaluation mode, and their configuration.

    A part that was left out has its shape but no weights: it is on PyTorch's `meta` device.
    """

    source: str
    config: Configuration
    unet: nn.Module
    vae: nn.Module
    text_encoders: tuple[Any, ...]
    fused: Mapping[str, Path] = field(default_factory=dict)
    """The LoRAs that are in its weights, by names that tell their order and scale."""
    notes: tuple[str, ...] = ()
    """What was assumed of it: a line each."""

    @cached_property
    def files(self) -> dict[str, str]:
        """The files it was read from and their sha256."""
        return checkpoint_hashes(self.source, self.fused, self.config.clip_skip)

    @property
    def device(self) -> torch.device:
        """The device the modules with weights are on."""
        devices = (next(module.parameters()).device for module in (self.unet, self.vae, *self.text_encoders))
        return next((device for device in devices if device.type != "meta"), torch.device("meta"))

    def content_hash(self) -> str:
        """Return one hash of all its files."""
        return sha256_json(self.files)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], *, unconditional: bool = False) -> Conditioning:
        """Encode prompts: `encoder_hidden_states` [B, T, D], for XL also `text_embeds` [B, P] and `time_ids` [B, 6].

        `unconditional` ones are what guidance leads away from, for which diffusers skips no layers (`clip_skip`).
        """
        return self.encode_ids(self.token_ids(prompts), unconditional=unconditional)

    def encode_ids(self, ids: Sequence[np.ndarray], *, unconditional: bool = False) -> Conditioning:
        """Encode the ids of prompts, as `token_ids` gives them; gradients are taken where they are wanted."""
        components = [self.text_component(i) for i in range(len(self.text_encoders))]
        outputs = [
            dict(zip(c.outputs, c.module(torch.from_numpy(own).to(self.device)), strict=True))
            for c, own in zip(components, ids, strict=True)
        ]
        return conditioning(self.config, outputs, self.config.pixel_size, len(ids[0]) if unconditional else 0)

    @torch.no_grad()
    def encode_pictures(self, pictures_BHW3: np.ndarray) -> Tensor:
        """Encode pictures, bytes [B, height, width, 3], as the latents that the UNet is trained on: [B, C, H, W].

        The mean of what the VAE's encoder gives, with the scaling and `latent_statistics` that the decoder's feed takes away.
        """
        parameter = next(self.vae.parameters())
        x_B3HW = torch.from_numpy(np.array(pictures_BHW3)).permute(0, 3, 1, 2).to(parameter.device, parameter.dtype) / 127.5 - 1
        encoded = self.vae.encode(x_B3HW)  # type: ignore[operator]
        z_BCHW: Tensor = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
        scaling, statistics = float(self.config.vae["scaling_factor"]), self.config.latent_statistics
        if statistics is None:
            return z_BCHW * scaling
        mean_C11, std_C11 = (z_BCHW.new_tensor(values).reshape(-1, 1, 1) for values in statistics)
        return (z_BCHW - mean_C11) * scaling / std_C11

    def token_ids(self, prompts: Sequence[str]) -> list[np.ndarray]:
        """Return the ids for each text encoder, int64 [B, T]. Raises `InputError` for ids that it has no embedding of."""
        ids = self.config.token_ids(prompts)
        for own, encoder in zip(ids, self.text_encoders, strict=True):
            if own.max() >= encoder.config.vocab_size:
                raise InputError(
                    f"checkpoint {self.source}: its tokenizer gives ids up to {own.max()}, but its text encoder knows "
                    f"{encoder.config.vocab_size} of them: give a diffusers folder with the tokenizer that belongs to it"
                )
        return ids

    def components(self) -> tuple[Component, ...]:
        """Return every graph of the checkpoint: text encoders, UNet, VAE decoder."""
        texts = tuple(self.text_component(i) for i in range(len(self.text_encoders)))
        return (*texts, self.unet_component(), self.vae_component())

    def text_component(self, index: int) -> Component:
        """Text encoder `index` as a graph: `input_ids` [B, T] → hidden states and the pooled output."""
        encoder, tokenizer = self.text_encoders[index], self.config.tokenizers[index]
        name = "text_encoder" if index == 0 else f"text_encoder_{index + 1}"
        high = int(encoder.config.vocab_size)
        ids = Port("input_ids", ("batch", int(tokenizer.model_max_length)), "ids", high)
        if self.config.family == "sd":
            skipped = (SKIPPED,) if self.config.clip_skip else ()
            return Component(name, TextGraph(encoder, self.config.clip_skip), (ids,), ("last_hidden_state", "pooler_output", *skipped), {})
        depth = int(encoder.config.num_hidden_layers)
        first = ("last_hidden_state", "pooler_output") if index == 0 else ("text_embeds", "last_hidden_state")
        outputs = (*first, *(f"hidden_states.{i}" for i in range(depth + 1)))
        return Component(name, HiddenTextGraph(encoder), (ids,), outputs, {})

    def unet_component(self) -> Component:
        """The UNet as a graph: `sample`, `timestep`, conditioning, of an LCM the guidance → `out_sample`."""
        channels, height, width = self.config.latent_shape
        tokens, wide = int(self.config.tokenizers[0].model_max_length), _int(self.config.unet["cross_attention_dim"])
        inputs = [
            Port("sample", ("batch", channels, "height", "width")),
            Port("timestep", ("batch",), "time", int(self.config.scheduler["num_train_timesteps"])),
            Port("encoder_hidden_states", ("batch", tokens, wide)),
        ]
        if self.config.family == "sdxl":
            inputs += [
                Port("text_embeds", ("batch", int(self.text_encoders[-1].config.projection_dim))),
                Port("time_ids", ("batch", 6), "time", 1024),
            ]
        if self.config.guidance_width:
            inputs.append(Port(GUIDANCE, ("batch", self.config.guidance_width)))
        sizes, multiples = {"height": height, "width": width}, dict.fromkeys(("height", "width"), self.config.latent_multiple)
        graph = UNetGraph(self.unet, [port.name for port in inputs[3:]])
        return Component("unet", graph, tuple(inputs), ("out_sample",), sizes, multiples)

    def vae_component(self) -> Component:
        """The VAE's decoder as a graph: `latent_sample` (already divided by the scaling factor) → `sample`."""
        _, height, width = self.config.latent_shape
        latents = Port("latent_sample", ("batch", int(self.config.vae["latent_channels"]), "height", "width"))
        return Component("vae_decoder", DecoderGraph(self.vae), (latents,), ("sample",), {"height": height, "width": width})


def value_projections(unet: nn.Module, layers: Layers = "paper") -> Iterator[tuple[str, nn.Linear]]:
    """Iterate over the value projections of cross-attention (`attn2.to_v`) with their names.

    Order: down blocks, mid block, then with `layers="all"` the up blocks, as the paper numbers them (the official code's
    layers 0 to 6 for Stable Diffusion 1.x). Raises `InputError` for a UNet without cross-attention there.
    """
    blocks: list[tuple[str, Any]] = [("down_blocks", unet.down_blocks), ("mid_block", unet.mid_block)]
    if layers == "all":
        blocks.append(("up_blocks", unet.up_blocks))
    found = [
        (f"{prefix}.{name}.to_v", module.to_v)
        for prefix, block in blocks
        if block is not None
        for name, module in block.named_modules()
        if name.endswith("attn2") and getattr(module, "to_v", None) is not None
    ]
    if not found:
        where = "its down and mid blocks" if layers == "paper" else "any block"
        raise InputError(
            f"the UNet ({type(unet).__name__}) has no cross-attention in {where}: there are no value neurons to silence; "
            "give a text-conditional UNet2DConditionModel (Stable Diffusion 1.x, 2.x, XL)"
        )
    return iter(found)


def cross_attentions(unet: nn.Module) -> list[Any]:
    """Return every cross-attention of the UNet, whose keys (`to_k`) and values (`to_v`) are computed from the prompt alone."""
    return [module for name, module in unet.named_modules() if name.endswith("attn2") and getattr(module, "to_v", None) is not None]


def value_layers(unet: nn.Module, layers: Layers = "paper") -> tuple[ValueLayer, ...]:
    """Return the value layers in the order of `value_projections`."""
    return tuple(ValueLayer(name=name, width=linear.out_features) for name, linear in value_projections(unet, layers))


def summary(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what a person asks of a checkpoint: pipeline, prediction type, parameters, value layers, files."""
    paper = {layer.name for layer in value_layers(checkpoint.unet)}
    modules = {c.name: c.module for c in checkpoint.components()}
    return {
        "source": checkpoint.source,
        "pipeline": checkpoint.config.index["_class_name"],
        "prediction_type": checkpoint.config.prediction_type,
        "latent_shape": list(checkpoint.config.latent_shape),
        "parameters": {name: sum(p.numel() for p in module.parameters()) for name, module in modules.items()},
        "value_layers": [{**v.model_dump(), "paper": v.name in paper} for v in value_layers(checkpoint.unet, "all")],
        "clip_skip": checkpoint.config.clip_skip,
        "files": checkpoint.files,
        "notes": list(checkpoint.notes),
    }


def open_checkpoint(
    path: str,
    *,
    allow_pickle: bool = False,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    parts: Collection[str] | None = None,
    loras: Sequence[LoraSettings] = (),
    clip_skip: int = 0,
) -> Checkpoint:
    """Open a checkpoint: a diffusers folder, a hub id, or a single `.safetensors` file; fuse `loras` into its weights.

    Prompts are read without the last `clip_skip` layers of its text encoders, as diffusers counts them.

    Weights are read from safetensors and held in `dtype`; a pickle is refused unless `allow_pickle` is set. With `parts`
    ("unet", "vae", "text_encoder", "text_encoder_2") only those get weights, the others their shape alone. Raises `InputError` for
    anything that is not a Stable Diffusion checkpoint, `MissingDependency` for a GPU that is not here.
    """
    check_device(device)
    local = check_files(path, allow_pickle=allow_pickle)
    if clip_skip and local.is_dir():  # before gigabytes of weights are read
        Configuration.load(local, tokenizers=False).skipping(clip_skip)
    wanted = WEIGHTED_PARTS if parts is None else tuple(parts)
    leave = [part for part in WEIGHTED_PARTS if part not in wanted]
    read = torch.float32 if loras else dtype  # what is fused is summed as eager has it, and rounded once, in the end
    notes: tuple[str, ...]
    if local.is_dir():
        pipeline, notes = pipeline_from_folder(local, read, leave), ()
    else:
        pipeline, notes = pipeline_from_file(local, read, leave)
    if loras:
        for part in wanted:
            if getattr(pipeline, part, None) is not None:
                getattr(pipeline, part).to(torch.float32)
        fuse_(pipeline, loras, wanted)
    opened = _from_pipeline(pipeline, path, device, dtype, wanted, clip_skip)
    return replace(opened, fused=CheckpointSettings(path=path, loras=tuple(loras)).fused, notes=notes)


def check_device(device: str) -> None:
    """Raise `InputError` for a device that is neither the CPU nor an NVIDIA GPU, `MissingDependency` where PyTorch sees none.

    On a GPU float32 is float32 from now on: PyTorch rounds the factors of convolutions to 10 bits (TF32) unless it is told not to.
    """
    if device.partition(":")[0] not in ("cpu", "cuda"):
        raise InputError(f"device {device!r} is not known: give cpu or cuda")
    if device == "cpu":
        return
    with warnings.catch_warnings(action="ignore"):  # of an old driver, which `doctor` tells
        if not torch.cuda.is_available():
            raise MissingDependency(f"device {device!r} was asked for, but PyTorch sees no NVIDIA GPU here (nemo-edge doctor): take cpu")
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def open_parts(source: CheckpointSettings, parts: Collection[str] = (), dtype: torch.dtype = torch.float32) -> Checkpoint:
    """Open a recipe's checkpoint with the weights of some of its parts, or of none."""
    return open_checkpoint(
        source.path, allow_pickle=source.allow_pickle, dtype=dtype, parts=parts, loras=source.loras, clip_skip=source.clip_skip
    )


def open_source(source: CheckpointSettings) -> Checkpoint:
    """Open a recipe's checkpoint whole, on its device."""
    return open_checkpoint(
        source.path, allow_pickle=source.allow_pickle, device=source.device, loras=source.loras, clip_skip=source.clip_skip
    )


def check_files(path: str, *, allow_pickle: bool = False) -> Path:
    """Return where a checkpoint lies; read no weights. Raises `InputError` as `check_folder` and `check_tensors`."""
    local = checkpoint_folder(path)
    if local.is_dir():
        check_folder(local, allow_pickle=allow_pickle)
        check_tensors(local)
        return local
    check_complete(local)
    if local.suffix not in WEIGHT_FILES and not allow_pickle:
        if local.suffix not in PICKLE_FILES:
            raise InputError(
                f"{local} is no checkpoint: give a diffusers folder or a .safetensors file; of a bundle, its folder or an engine"
            )
        raise pickle_error(local)
    return local


def import_pipelines() -> None:
    """Import what `open_checkpoint` needs of diffusers and transformers, which they do themselves only when a pipeline is opened."""
    with quiet():
        import diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion
        import diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl  # noqa: F401


def _from_pipeline(pipeline: Any, path: str, device: str, dtype: torch.dtype, parts: Collection[str], clip_skip: int) -> Checkpoint:
    check_pipeline(type(pipeline).__name__)
    encoders = [m for m in (pipeline.text_encoder, getattr(pipeline, "text_encoder_2", None)) if m is not None]
    tokenizers = [t for t in (pipeline.tokenizer, getattr(pipeline, "tokenizer_2", None)) if t is not None]
    config = Configuration(
        index={**pipeline.config, "_class_name": type(pipeline).__name__},
        unet=pipeline.unet.config,
        vae=pipeline.vae.config,
        scheduler={**pipeline.scheduler.config, "_class_name": type(pipeline.scheduler).__name__},
        text_encoders=tuple(m.config.to_dict() for m in encoders),
        tokenizers=tuple(tokenizers),
    ).skipping(clip_skip)
    with quiet():
        modules = {"unet": pipeline.unet, "vae": pipeline.vae, **dict(zip(WEIGHTED_PARTS[2:], encoders, strict=False))}
        for part, module in modules.items():
            module.eval().requires_grad_(False)
            if part in parts:
                module.to(device, dtype)
            else:
                module.to("meta")
    return Checkpoint(path, config, pipeline.unet, pipeline.vae, tuple(encoders))


def _int(value: Any) -> int:
    return int(value[0] if isinstance(value, (tuple, list)) else value)

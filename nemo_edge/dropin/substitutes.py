"""What stands in for the modules of a diffusers pipeline: a UNet, text encoders and a VAE's decoder whose `forward` is an engine.

They are called as diffusers and transformers call theirs, and answer with tensors of the same type on the same device; on their way
to the engine and back tensors go through the machine's own memory. `to` says where answers are and of what type; the engine stays
as it was built. What only a module with weights can do is refused in one line that says what to do instead.
Shapes: R rows (guidance has two a picture), B pictures, N value neurons, T tokens.
"""

from __future__ import annotations

__all__ = ["EngineDecoder", "EngineTextEncoder", "EngineUNet", "refusal"]

from collections.abc import Mapping
from types import SimpleNamespace, TracebackType
from typing import Any, Self

import numpy as np
import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor, nn
from transformers import CLIPTextConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPTextModelOutput

from nemo_edge.backends.base import Runner
from nemo_edge.model.component import GUIDANCE, SKIPPED, VALUE_MASK
from nemo_edge.model.configuration import Configuration
from nemo_edge.model.masks import Mask, read_mask
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.recipe.settings import SamplingSettings
from nemo_edge.sampling.loop import check_size
from nemo_edge.system.errors import InputError

_LORA = "takes no LoRA: fuse it into the checkpoint (`fuse_lora` of its own pipeline), save that, and build the bundle anew"
_IP_ADAPTER = "takes no IP-Adapter, whose attention is not in its graph: use the checkpoint's own UNet for that"
_ATTENTION = "has its attention compiled in: leave the call out, there is nothing to choose"
_RESIDUALS = "takes no residuals of a ControlNet or T2I-Adapter, for which its graph has no inputs: use the checkpoint's own UNet for that"
_FREEU = "has its skip connections compiled in, which FreeU scales: use the checkpoint's own UNet for that"
_TILING = "decodes whole pictures: leave the call out, or use the checkpoint's own VAE"
_EMBEDDINGS = "has its token embeddings compiled in: put the new ones into the checkpoint, and build the bundle anew"
_COMPILED = "the UNet is an engine, which is compiled already: leave torch.compile out, or its fullgraph"
_REASONS = {
    "load_lora_adapter": _LORA,
    "load_lora_weights": _LORA,
    "load_attn_procs": _LORA,
    "fuse_lora": _LORA,
    "add_adapter": _LORA,
    "set_adapters": _LORA,
    "scale": _LORA,
    "load_ip_adapter": _IP_ADAPTER,
    "_load_ip_adapter_weights": _IP_ADAPTER,
    "encoder_hid_proj": _IP_ADAPTER,
    "image_embeds": _IP_ADAPTER,
    "ip_adapter_masks": _IP_ADAPTER,
    "attn_processors": _ATTENTION,
    "set_attn_processor": _ATTENTION,
    "set_default_attn_processor": _ATTENTION,
    "fuse_qkv_projections": _ATTENTION,
    "enable_xformers_memory_efficient_attention": _ATTENTION,
    "down_block_additional_residuals": _RESIDUALS,
    "mid_block_additional_residual": _RESIDUALS,
    "down_intrablock_additional_residuals": _RESIDUALS,
    "enable_freeu": _FREEU,
    "enable_tiling": _TILING,
    "load_textual_inversion": _EMBEDDINGS,
    "get_input_embeddings": _EMBEDDINGS,
    "resize_token_embeddings": _EMBEDDINGS,
}
_FEW = "the text encoder of this pipeline is an engine and gives"
_NO_SKIP = "leave clip_skip out, or use the checkpoint's own text encoder, or build the bundle anew with that checkpoint.clip_skip"
_OTHERWISE = "its graph has nothing of that name: use the checkpoint's own module for that"


class _Absent(InputError, AttributeError):
    """An attribute that an engine lacks: `hasattr` says so, and whoever calls it is told why."""


def refusal(part: str, name: str) -> str:
    """Why the engine of a part does not do what is called `name`, and what to do instead."""
    return f"{name}: the {part} is an engine and {_REASONS.get(name, _OTHERWISE)}"


class _EngineModule(nn.Module):
    """An engine as a module without weights: its configuration, where its answers go, and the end of it.

    An empty tensor is moved and cast in place of weights, so that `to`, `half` and offloading do what they say.
    """

    part = ""

    def __init__(self, runner: Runner, config: Any) -> None:
        super().__init__()
        self._runner = runner
        self._internal_dict = config  # where diffusers looks for it, and puts another
        self.register_buffer("_place", torch.empty(0), persistent=False)

    @property
    def config(self) -> Any:
        """The configuration of the module it stands in for."""
        return self._internal_dict

    @property
    def device(self) -> torch.device:
        """Where `to` has put it: pipelines make their tensors there."""
        device: torch.device = self._place.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Of what type its answers are where its inputs have none."""
        dtype: torch.dtype = self._place.dtype
        return dtype

    def close(self) -> None:
        """Free the engine. A call after that raises `InputError`."""
        self._runner.__exit__(None, None, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._runner.__exit__(kind, error, trace)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            raise _Absent(refusal(self.part, name)) from None

    def _refuse(self, conditions: Mapping[str, Any]) -> None:
        for name, value in conditions.items():
            if value is not None and value is not False and not (isinstance(value, Mapping) and not value):
                raise InputError(refusal(self.part, name))


class EngineUNet(_EngineModule):
    """The UNet of a bundle for diffusers' pipelines. A masked one silences the bundle's `neurons`, until `mask` is set.

    Raises `InputError` for a mask of another model, and for any where the engine is baked.
    """

    part = "UNet"

    def __init__(self, runner: Runner, model: Configuration, neurons: NeuronSet, mask: Mask | None = None) -> None:
        super().__init__(runner, FrozenDict(model.unet))
        self._model, self._neurons = model, neurons
        self._free = [dim for dim in runner.inputs["sample"][2:] if isinstance(dim, str)]
        width = model.unet.get("projection_class_embeddings_input_dim")
        if model.family == "sdxl":
            self.add_embedding = SimpleNamespace(linear_1=SimpleNamespace(in_features=width))
        self.mask = mask

    @property
    def mask(self) -> np.ndarray | None:
        """The factor of each neuron, float32 [N], in the calls to come, or [B, N] of their pictures; None where the engine is baked.

        Of a call with guidance, whose rows are the unconditional ones and then the others, each picture's two have the same.
        Set it to what `read_mask` takes: neurons, a file, an array, "off", or None for the bundle's own neurons.
        """
        return self._mask

    @mask.setter
    def mask(self, given: Mask | None) -> None:
        if VALUE_MASK not in self._runner.inputs:
            if given is not None:
                raise InputError("this UNet is baked and takes no mask: load the masked variant of the bundle (variant='masked')")
            self._mask = None
            return
        self._mask = read_mask(self._neurons, given).astype(np.float32)

    @torch.compiler.disable(reason=_COMPILED)  # type: ignore[untyped-decorator]
    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor,
        *,
        cross_attention_kwargs: Mapping[str, Any] | None = None,
        added_cond_kwargs: Mapping[str, Any] | None = None,
        return_dict: bool = True,
        **conditions: Any,
    ) -> Any:
        """Predict, as `UNet2DConditionModel` does: `sample` [R, C, H, W], a time for all rows or each, the prompt [R, T, D].

        Raises `InputError` for a size or a batch that the engine does not take, and for `conditions` that its graph does not have.
        """
        added = dict(added_cond_kwargs or {})
        told = conditions.pop(GUIDANCE, None) if GUIDANCE in self._runner.inputs else None
        self._refuse({**(cross_attention_kwargs or {}), "image_embeds": added.get("image_embeds"), **conditions})
        self._check_size(sample)
        rows, time = len(sample), _array(timestep).ravel()
        feed = {
            "sample": _array(sample),
            "timestep": np.repeat(time, rows) if len(time) == 1 else time,
            "encoder_hidden_states": _array(encoder_hidden_states),
            **{name: _array(value) for name, value in added.items()},
        }
        if told is not None:
            feed[GUIDANCE] = _array(told)
        if self._mask is not None:
            feed[VALUE_MASK] = _rows_of(self._mask, rows)
        out = torch.from_numpy(self._runner(feed)["out_sample"]).to(sample)
        return UNet2DConditionOutput(sample=out) if return_dict else (out,)

    def _check_size(self, sample: Tensor) -> None:
        height, width = (int(size) * self._model.factor for size in sample.shape[-2:])
        check_size(self._model, SamplingSettings.model_construct(height=height, width=width), self._free)  # any size is asked after


class EngineTextEncoder(_EngineModule):
    """A text encoder of a bundle for diffusers' pipelines; of XL with its hidden states, of others with that of its `clip_skip`."""

    part = "text encoder"

    def __init__(self, runner: Runner, config: Mapping[str, Any]) -> None:
        super().__init__(runner, CLIPTextConfig.from_dict(dict(config)))
        self._skip = int(config.get("clip_skip") or 0)
        if self._skip:
            self.text_model = SimpleNamespace(final_layer_norm=nn.Identity())  # the state was normalized by the engine

    def forward(self, input_ids: Tensor, *, output_hidden_states: bool | None = None, return_dict: bool = True, **conditions: Any) -> Any:
        """Encode ids [B, T], as transformers' encoders do. Raises `InputError` for hidden states where the engine gives none."""
        self._refuse(conditions)
        found = self._runner({"input_ids": input_ids.cpu().numpy().astype(np.int64)})
        tensors = {name: torch.from_numpy(value).to(input_ids.device, self.dtype) for name, value in found.items()}
        hidden = tuple(value for name, value in tensors.items() if name.startswith("hidden_states."))
        if SKIPPED in tensors:
            hidden = _Skipped(tensors[SKIPPED], self._skip)
        if output_hidden_states and not hidden:
            raise InputError(f"{_FEW} its last hidden state only: {_NO_SKIP}")
        shown = {"last_hidden_state": tensors["last_hidden_state"], "hidden_states": hidden if output_hidden_states else None}
        if "text_embeds" in tensors:
            answer = CLIPTextModelOutput(text_embeds=tensors["text_embeds"], **shown)
        else:
            answer = BaseModelOutputWithPooling(pooler_output=tensors["pooler_output"], **shown)
        return answer if return_dict else answer.to_tuple()


class _Skipped(tuple[Tensor, ...]):
    """Hidden states of which one is there, that of a `clip_skip`, where diffusers looks for it; any other is refused."""

    _skip: int

    def __new__(cls, state: Tensor, skip: int) -> Self:
        found = super().__new__(cls, (state,))
        found._skip = skip
        return found

    def __getitem__(self, index: Any) -> Any:
        if index != -1 - self._skip:
            raise InputError(f"{_FEW} the hidden states of clip_skip = {self._skip} and of none: {_NO_SKIP}")
        return super().__getitem__(0)


class EngineDecoder(_EngineModule):
    """The VAE's decoder of a bundle for diffusers' pipelines. It has no encoder, which image-to-image needs."""

    part = "VAE"

    def __init__(self, runner: Runner, config: Mapping[str, Any]) -> None:
        super().__init__(runner, FrozenDict(config))
        self.use_slicing = False

    @property
    def dtype(self) -> torch.dtype:
        """float32: the engine was built in a type that does not overflow, so that nobody need cast it (`force_upcast`)."""
        return torch.float32

    def decode(self, z: Tensor, return_dict: bool = True, generator: Any = None) -> Any:
        """Latents [B, C, H, W] without their scaling to pictures [B, 3, height, width] from -1 to 1."""
        parts = z.split(1) if self.use_slicing else (z,)
        pictures = [self._runner({"latent_sample": _array(part)})["sample"] for part in parts]
        out = torch.from_numpy(np.concatenate(pictures)).to(z)
        return DecoderOutput(sample=out) if return_dict else (out,)

    def encode(self, *_: Any, **__: Any) -> Any:
        """Raises `InputError`: a bundle holds no encoder."""
        raise InputError(
            "the VAE of this pipeline is an engine that decodes only, a bundle holds no encoder: for image-to-image and inpainting set "
            "`pipe.vae` to the checkpoint's own, AutoencoderKL.from_pretrained(CHECKPOINT, subfolder='vae')"
        )

    def enable_slicing(self) -> None:
        """Decode the pictures of a batch one after the other."""
        self.use_slicing = True

    def disable_slicing(self) -> None:
        """Decode the pictures of a batch at once."""
        self.use_slicing = False


def _rows_of(mask: np.ndarray, rows: int) -> np.ndarray:
    """A mask [N], or [B, N] of a call's pictures, for each of its rows, [R, N]."""
    if mask.ndim == 1:
        return np.broadcast_to(mask, (rows, len(mask)))
    if rows not in (len(mask), 2 * len(mask)):
        raise InputError(f"the mask is of {len(mask)} pictures, and the UNet was called with {rows} rows: set a mask of as many, or of [N]")
    return np.tile(mask, (rows // len(mask), 1))


def _array(value: Tensor | float) -> np.ndarray:
    """A tensor or a number as an array of float32."""
    array: np.ndarray = torch.as_tensor(value).detach().to("cpu", torch.float32).numpy()
    return array

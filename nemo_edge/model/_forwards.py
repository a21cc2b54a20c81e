"""The components of a checkpoint as modules whose `forward` takes and gives plain tensors, as graphs do.

With `checkpoint` the only module that knows the attribute names of diffusers' modules.
"""

from __future__ import annotations

__all__ = ["DecoderGraph", "HiddenTextGraph", "TextGraph", "UNetGraph"]

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from nemo_edge.model.component import GUIDANCE


class TextGraph(nn.Module):
    """A text encoder of Stable Diffusion 1.x or 2.x, read also without its last `clip_skip` layers where these are not 0."""

    def __init__(self, encoder: nn.Module, clip_skip: int = 0) -> None:
        super().__init__()
        self.encoder: Any = encoder
        self._skip = clip_skip

    def forward(self, input_ids: Tensor) -> tuple[Tensor, ...]:
        """Ids [B, T] → the last hidden state [B, T, D], the pooled output [B, D], and with `clip_skip` the state before those layers,
        normalized as the last one is."""
        if not self._skip:
            out = self.encoder(input_ids)
            return out.last_hidden_state, out.pooler_output
        out = self.encoder(input_ids, output_hidden_states=True)
        inner = getattr(self.encoder, "text_model", self.encoder)  # of transformers before 5
        return out.last_hidden_state, out.pooler_output, inner.final_layer_norm(out.hidden_states[-1 - self._skip])


class HiddenTextGraph(TextGraph):
    """A text encoder of XL. In transformers' order: diffusers takes a first output of two dimensions for `text_embeds`."""

    def forward(self, input_ids: Tensor) -> tuple[Tensor, ...]:
        """Ids [B, T] → the last hidden state and the pooled output, of the second `text_embeds` and that state; then all states."""
        out = self.encoder(input_ids, output_hidden_states=True)
        if hasattr(out, "text_embeds"):
            return (out.text_embeds, out.last_hidden_state, *out.hidden_states)
        return (out.last_hidden_state, out.pooler_output, *out.hidden_states)


class UNetGraph(nn.Module):
    """A UNet; `added` names what it takes beside latents, time and prompt."""

    def __init__(self, unet: nn.Module, added: Sequence[str] = ()) -> None:
        super().__init__()
        self.unet: Any = unet
        self._added = tuple(added)

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, *added: Tensor) -> tuple[Tensor]:
        """`sample` [B, C, H, W], `timestep` [B], the prompt [B, T, D], of XL `text_embeds` and `time_ids`, of an LCM `timestep_cond`
        → the prediction [B, C, H, W]."""
        out: tuple[Tensor]
        conditions = dict(zip(self._added, added, strict=True))
        told = {GUIDANCE: conditions.pop(GUIDANCE)} if GUIDANCE in conditions else {}
        if not conditions:
            out = self.unet(sample, timestep, encoder_hidden_states, **told, return_dict=False)
            return (out[0],)
        # XL joins sines in float32 with embeddings of its own type, which PyTorch's exporter writes as it is and ONNX does not allow
        handle = self.unet.add_time_proj.register_forward_hook(lambda _module, _args, sines: sines.to(sample.dtype))
        try:
            out = self.unet(sample, timestep, encoder_hidden_states, **told, return_dict=False, added_cond_kwargs=conditions)
        finally:
            handle.remove()
        return (out[0],)


class DecoderGraph(nn.Module):
    """The decoder of a VAE."""

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae: Any = vae

    def forward(self, latent_sample: Tensor) -> tuple[Tensor]:
        """Latents [B, C, H, W] without their scaling → pictures [B, 3, height, width] from -1 to 1."""
        out: tuple[Tensor] = self.vae.decode(latent_sample, return_dict=False)
        return (out[0],)

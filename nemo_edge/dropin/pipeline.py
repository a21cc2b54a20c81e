"""What a pipeline of engines has before diffusers' own class: an end, policies, the recipe's sampling, and a line for what engines do not
do."""

from __future__ import annotations

__all__ = ["EnginePipeline"]

from collections.abc import Mapping
from inspect import signature
from types import TracebackType
from typing import Any, NoReturn, Self

import torch

from nemo_edge.bundle.policies import Policies, Policy, apply
from nemo_edge.dropin.substitutes import refusal
from nemo_edge.recipe.settings import SamplingSettings
from nemo_edge.system.errors import InputError


def _refused(part: str, name: str) -> Any:
    def method(self: Any, *_: Any, **__: Any) -> NoReturn:
        raise InputError(refusal(part, name))

    return method


class EnginePipeline:
    """The first base of such a pipeline, whose other is diffusers' class. Who makes one sets its engines, policies and
    sampling."""

    unet: Any
    _engines: tuple[Any, ...] = ()
    _policies: Policies
    _policy: Policy | None = None
    _sampling: SamplingSettings
    _own_skip: int = 0
    """The bundle's `clip_skip`, which calls are given that do not say any."""
    _drawing = False

    @property
    def policy(self) -> str | None:
        """The policy that pictures are drawn under; None where the UNet's mask says what is silenced. Set it to the name of another.

        Raises `InputError` for one that the bundle does not have.
        """
        return None if self._policy is None else self._policy.name

    @policy.setter
    def policy(self, name: str | None) -> None:
        self._policy = None if name is None else self._policies.choose(name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As diffusers' own, with the recipe's sampling where the call says nothing; under the policy, after which the UNet's mask is
        what it was."""
        own = signature(super().__call__)  # type: ignore[misc]
        given = own.bind_partial(*args, **kwargs).arguments
        asked = {**_asked(self._sampling, given), **_unsaid_skip(self._own_skip, given)}
        kwargs |= {name: value for name, value in asked.items() if name in own.parameters}
        if self._policy is None:
            return super().__call__(*args, **kwargs)  # type: ignore[misc]
        former, self._drawing = self.unet.mask, True
        try:
            return super().__call__(*args, **kwargs)  # type: ignore[misc]
        finally:
            self.unet.mask, self._drawing = former, False

    def close(self) -> None:
        """Free the engines."""
        for engine in self._engines:
            engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def encode_prompt(self, *args: Any, lora_scale: float | None = None, **kwargs: Any) -> Any:
        """As diffusers' own, but for LoRA, which it would look for in the text encoder; a call's policy is told what the UNet will be."""
        if lora_scale is not None:
            raise InputError(refusal("UNet", "scale"))
        given = signature(super().encode_prompt).bind_partial(*args, **kwargs).arguments  # type: ignore[misc]
        kwargs |= _unsaid_skip(self._own_skip, given)
        found = super().encode_prompt(*args, **kwargs)  # type: ignore[misc]
        if self._policy is not None and self._drawing:
            if self._policy.trigger is not None and (kwargs.get("clip_skip") or 0) != self._own_skip:
                raise InputError(
                    f"clip_skip gives states that policy {self._policy.name} does not know: leave it out, or take another policy"
                )
            self.unet.mask, _ = apply(self._policy, found[0].detach().to("cpu", torch.float32).numpy())
        return found

    def save_pretrained(self, *_: Any, **__: Any) -> NoReturn:
        """Raises `InputError`: there are no weights to save."""
        raise InputError("save_pretrained: this pipeline's engines have no weights to save: copy the folder of the bundle")

    load_lora_weights = _refused("UNet", "load_lora_weights")
    fuse_lora = _refused("UNet", "fuse_lora")
    set_adapters = _refused("UNet", "set_adapters")
    load_ip_adapter = _refused("UNet", "load_ip_adapter")
    load_textual_inversion = _refused("text encoder", "load_textual_inversion")


def _unsaid_skip(own: int, given: Mapping[str, Any]) -> dict[str, int]:
    """The bundle's `clip_skip` where a call says none."""
    return {"clip_skip": own} if own and "clip_skip" not in given else {}


def _asked(sampling: SamplingSettings, given: Mapping[str, Any]) -> dict[str, Any]:
    """What the recipe's sampling is called in diffusers, but for what a call has given itself."""
    found: dict[str, Any] = {"num_inference_steps": sampling.steps, "guidance_scale": sampling.guidance}
    found |= {"height": sampling.height, "width": sampling.width}
    prompts = next((given[name] for name in ("prompt", "prompt_embeds") if given.get(name) is not None), "")
    negative = sampling.negative_prompt
    if negative and "negative_prompt_embeds" not in given:
        found["negative_prompt"] = negative if isinstance(prompts, str) else [negative] * len(prompts)
    return {name: value for name, value in found.items() if value is not None and name not in given}

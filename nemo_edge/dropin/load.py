"""A bundle's engines inside diffusers' own pipelines: the UNet alone, or a whole pipeline.

Needs nothing of the checkpoint. Every file is checked against the manifest before an engine is opened.
"""

from __future__ import annotations

__all__ = ["load_pipeline", "load_unet"]

import warnings
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import diffusers

from nemo_edge.backends.base import Runner
from nemo_edge.bundle.manifest import MANIFEST, open_verified
from nemo_edge.bundle.policies import Policies, baked_policies, read_policies
from nemo_edge.dropin.pipeline import EnginePipeline
from nemo_edge.dropin.substitutes import EngineDecoder, EngineTextEncoder, EngineUNet
from nemo_edge.model.configuration import Configuration
from nemo_edge.model.masks import Mask
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.recipe.recipe import from_keywords, kept_recipe
from nemo_edge.recipe.settings import SamplingSettings
from nemo_edge.recipe.targets import EngineSettings
from nemo_edge.sampling.generate import choose_variant
from nemo_edge.sampling.loop import latent_shape
from nemo_edge.sampling.pipelines import open_engines
from nemo_edge.sampling.schedulers import make_scheduler
from nemo_edge.system.errors import InputError
from nemo_edge.system.files import sha256_file


def load_unet(
    bundle: str | PathLike[str],
    variant: Literal["baked", "masked"] | None = None,
    mask: Mask | None = None,
    backend: Literal["onnxruntime", "openvino", "tensorrt", "tensorrt-rtx"] | None = None,
) -> EngineUNet:
    """Open a bundle's UNet for a diffusers pipeline of yours: `pipe.unet = load_unet(bundle)`.

    Warns of a bundle that must not be shipped.

    Args:
        bundle: Where the bundle is.
        variant: "baked" or "masked"; else the first of the bundle.
        mask: For the masked one, what to silence: neurons, their file, factors [N] or "off"; else the bundle's neurons. It can be set
            later (`EngineUNet.mask`).
        backend: What runs it, where that is not the recipe's: "onnxruntime", "openvino", "tensorrt" or "tensorrt-rtx".

    Returns:
        The UNet, in the place of diffusers' own; its `close`, or leaving its context, frees the engine.

    Raises:
        BundleError: For a bundle that was changed.
        InputError: For a variant or a mask that does not fit.
        MissingDependency: For engines that do not run here.

    Example:
        >>> pipe = StableDiffusionPipeline.from_pretrained("model")  # of diffusers
        >>> with nemo_edge.load_unet("out", "baked") as pipe.unet:
        ...     picture = pipe("a red pig", num_inference_steps=3).images[0]
        >>> picture.size
        (32, 32)
    """
    source = _verified(Path(bundle), variant, backend, masked=mask is not None)
    with ExitStack() as stack:
        unet = source.unet(source.open(stack, ["unet"]), mask)
        stack.pop_all()  # from here on the UNet owns its engine
    return unet


def load_pipeline(
    bundle: str | PathLike[str],
    variant: Literal["baked", "masked"] | None = None,
    mask: Mask | None = None,
    backend: Literal["onnxruntime", "openvino", "tensorrt", "tensorrt-rtx"] | None = None,
    policy: str | None = None,
) -> Any:
    """Open a bundle as diffusers' own `StableDiffusionPipeline` or `StableDiffusionXLPipeline`, all of whose parts are engines.

    It samples as the bundle's recipe does (scheduler, steps, guidance, size, negative prompt, `clip_skip`) unless a call, or a scheduler
    put into it, says otherwise; there is no safety checker and no watermark.

    Args:
        bundle: Where the bundle is.
        variant: "baked" or "masked"; else the first of the bundle.
        mask: For the masked one, what to silence, as in `load_unet`.
        backend: What runs it, where that is not the recipe's: "onnxruntime", "openvino", "tensorrt" or "tensorrt-rtx".
        policy: For the masked one, in place of a mask: the name of one of the bundle's policies, by which each picture's prompt decides
            what is silenced, as on a server. It can be set later (the pipeline's `policy`).

    Returns:
        The pipeline; its `close`, or leaving its context, frees the engines.

    Raises:
        BundleError: For a bundle that was changed.
        InputError: For a variant, a mask or a policy that does not fit, and for a policy beside a mask.
        MissingDependency: For engines that do not run here.

    Example:
        >>> with nemo_edge.load_pipeline("out", policy="triggered") as pipe:
        ...     pictures = pipe(["a red pig", "a bus"], num_inference_steps=3).images
        >>> [picture.size for picture in pictures]
        [(32, 32), (32, 32)]
    """
    if mask is not None and policy is not None:
        raise InputError("mask and policy each say what is silenced: give one of them")
    source = _verified(Path(bundle), variant, backend, masked=mask is not None or policy is not None, tokenizers=True)
    policies = source.policies()
    chosen = None if policy is None else policies.choose(policy)
    model = source.model
    with ExitStack() as stack:
        runners = source.open(stack, [*model.text_encoder_names, "unet", "vae_decoder"])
        texts = {name: EngineTextEncoder(runners[name], config) for name, config in _numbered("text_encoder", model.text_encoders).items()}
        engines = {**texts, "unet": source.unet(runners, mask), "vae": EngineDecoder(runners["vae_decoder"], model.vae)}
        parts = {**engines, **_numbered("tokenizer", model.tokenizers), "scheduler": make_scheduler(model, source.sampling)}
        pipeline = _pipeline_class(model)(**parts, **_options(model))
        stack.pop_all()
    pipeline._engines, pipeline._policies, pipeline._policy = tuple(engines.values()), policies, chosen
    pipeline._sampling, pipeline._own_skip = _sized(source.sampling, model), model.clip_skip
    return pipeline


@dataclass(frozen=True)
class _Source:
    """A bundle that is as its manifest says, and what of it was asked for."""

    bundle: Path
    model: Configuration
    engine: EngineSettings
    sampling: SamplingSettings
    variant: str
    files: Collection[str]

    def open(self, stack: ExitStack, names: Sequence[str]) -> dict[str, Runner]:
        return open_engines(self.model, self.bundle, self.engine, self.variant, stack, names)

    def unet(self, runners: Mapping[str, Runner], mask: Mask | None) -> EngineUNet:
        return EngineUNet(runners["unet"], self.model, NeuronSet.load(self.bundle / "neurons.json"), mask)

    def policies(self) -> Policies:
        if self.variant == "baked":
            return baked_policies()
        return read_policies(self.bundle, self.files, sha256_file(self.bundle / MANIFEST))


def _verified(bundle: Path, variant: str | None, backend: str | None, *, masked: bool, tokenizers: bool = False) -> _Source:
    manifest = open_verified(bundle)
    recipe = kept_recipe(manifest.recipe, bundle)
    engine = from_keywords(EngineSettings, {**recipe.engine.model_dump(), **({"backend": backend} if backend else {})})
    chosen = choose_variant(manifest, variant, masked=masked)
    if manifest.flaw:
        warnings.warn(f"the bundle {bundle} {manifest.flaw}: it must not be shipped", stacklevel=3)
    return _Source(bundle, Configuration.load(bundle, tokenizers=tokenizers), engine, recipe.sampling, chosen, manifest.files)


def _numbered(name: str, parts: Sequence[Any]) -> dict[str, Any]:
    return {name if i == 0 else f"{name}_{i + 1}": part for i, part in enumerate(parts)}


def _sized(sampling: SamplingSettings, model: Configuration) -> SamplingSettings:
    """The settings with height and width, since diffusers takes no one of them without the other."""
    _, height, width = latent_shape(model, sampling)
    return sampling.model_copy(update={"height": height * model.factor, "width": width * model.factor})


def _options(model: Configuration) -> dict[str, Any]:
    """What the class of the pipeline is told beside its parts."""
    if model.family == "sd":
        return {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return {"force_zeros_for_empty_prompt": model.index.get("force_zeros_for_empty_prompt", True), "add_watermarker": False}


def _pipeline_class(model: Configuration) -> Any:
    """diffusers' own class with ours before it, of the same name, by which diffusers finds its kin (`AutoPipelineForImage2Image`)."""
    own = getattr(diffusers, model.index["_class_name"])
    return type(own.__name__, (EnginePipeline, own), {"__module__": own.__module__, "__doc__": own.__doc__})

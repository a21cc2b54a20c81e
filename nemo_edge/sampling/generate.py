"""Makes pictures with the engines of a finished bundle; needs nothing of the checkpoint it came from."""

from __future__ import annotations

__all__ = ["Request", "choose_variant", "draw"]

from contextlib import ExitStack
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from nemo_edge import __version__
from nemo_edge.bundle.manifest import MANIFEST, Manifest, open_verified
from nemo_edge.bundle.policies import Policy, apply, read_policies
from nemo_edge.model.configuration import Configuration
from nemo_edge.model.masks import OFF, read_mask
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.recipe.limits import check_seed
from nemo_edge.recipe.recipe import from_options, kept_recipe
from nemo_edge.recipe.settings import SamplingSettings
from nemo_edge.recipe.targets import EngineSettings
from nemo_edge.sampling.loop import Pipeline, condition, generate, latent_shape
from nemo_edge.sampling.pipelines import open_pipeline
from nemo_edge.system.errors import InputError
from nemo_edge.system.files import check_file, sha256_file, write_atomically
from nemo_edge.system.memory import check_drawing
from nemo_edge.system.progress import Progress
from nemo_edge.system.terminal import visible

_BATCH = 8


@dataclass(frozen=True)
class Request:
    """What to draw. `overrides` are sampling settings other than the recipe's; `mask`, `policy` and `unmitigated`, of which one can be
    given, are for masked engines, and say what is silenced where that is not the bundle's neurons.

    `backend` is what runs the bundle where that is not the recipe's.
    """

    prompt: str
    seed: int = 0
    count: int = 1
    overrides: dict[str, Any] = field(default_factory=dict)
    variant: str | None = None
    mask: Path | None = None
    unmitigated: bool = False
    backend: str | None = None
    policy: str | None = None


def draw(bundle: Path, request: Request, out: Path, progress: Progress | None = None) -> list[Path]:
    """Draw the pictures and write them as PNG, with what they were drawn from as text in them; return their paths.

    Every file is checked against the manifest before an engine is opened. Raises `BundleError` when one was changed,
    `InputError` for a size, a variant, a mask or a policy that does not fit, `MissingDependency` for engines that do not run here.
    """
    progress = progress or Progress()
    check_file(out)
    check_seed(request.seed, request.count)
    manifest, digest = open_verified(bundle), sha256_file(bundle / MANIFEST)
    recipe = kept_recipe(manifest.recipe, bundle)
    variant = choose_variant(manifest, request.variant, masked=_masked(request))
    policy = None
    if request.policy is not None:
        policy = read_policies(bundle, manifest.files, digest).choose(request.policy)
    settings = from_options(SamplingSettings, recipe.sampling.model_dump(), request.overrides)
    engine = from_options(EngineSettings, recipe.engine.model_dump(), {"backend": request.backend} if request.backend else {})
    config = Configuration.load(bundle)
    _check_memory(config, settings, request.count)
    mask: np.ndarray | None = None
    if policy is None and variant == "masked":
        mask = read_mask(NeuronSet.load(bundle / "neurons.json"), OFF if request.unmitigated else request.mask)
    seeds = range(request.seed, request.seed + request.count)
    with ExitStack() as stack:
        pipeline = open_pipeline(config, bundle, engine, variant, stack)
        if policy is not None:
            mask = _applied(policy, pipeline, request.prompt, settings, progress)
        parts = [seeds[i : i + _BATCH] for i in range(0, request.count, _BATCH)]
        with progress.task("generate", request.count * settings.steps) as advance:
            made = [generate(pipeline, [request.prompt] * len(part), part, settings, mask, advance) for part in parts]
    facts = _facts(request, settings, variant, f"{manifest.name}, identity {manifest.identity}, manifest {digest}")
    paths = _save(np.concatenate(made), out, [{**facts, "seed": str(seed)} for seed in seeds])
    if manifest.flaw:
        progress.note(f"this bundle {manifest.flaw}: it must not be shipped")
    return paths


def _check_memory(config: Configuration, settings: SamplingSettings, count: int) -> None:
    _, height, width = latent_shape(config, settings)
    check_drawing(height * config.factor, width * config.factor, min(count, _BATCH), count)


def _facts(request: Request, settings: SamplingSettings, variant: str, bundle: str) -> dict[str, str]:
    """What pictures were drawn from, but for their seeds."""
    return {
        "prompt": request.prompt,
        "silenced": visible(_silenced(request, variant)),  # a file's name need not be UTF-8
        "sampling": f"{settings.scheduler}, {settings.steps} steps, guidance {settings.guidance:g}",
        "bundle": bundle,
        "Software": f"nemo-edge {__version__}",
    }


def _silenced(request: Request, variant: str) -> str:
    """What a picture was drawn without, in a few words."""
    if request.policy is not None:
        return f"policy {request.policy}"
    if request.unmitigated or variant == "unmitigated":
        return "nothing"
    return f"mask {request.mask.name}" if request.mask is not None else f"the bundle's neurons, {variant}"


def _save(pictures: np.ndarray, out: Path, facts: list[dict[str, str]]) -> list[Path]:
    """Write each picture as PNG with its facts as text; several get numbers behind the name."""
    several = len(pictures) > 1
    paths = [out.with_name(f"{out.stem}-{i:02d}{out.suffix or '.png'}") if several else out for i in range(len(pictures))]
    for picture, path, own in zip(pictures, paths, facts, strict=True):
        encoded, texts = BytesIO(), PngInfo()
        for name, text in own.items():
            texts.add_itxt(name, text)
        Image.fromarray(picture).save(encoded, format="PNG", pnginfo=texts)
        write_atomically(path, encoded.getvalue())
    return paths


def _masked(request: Request) -> bool:
    """Whether a masked engine is asked for. Raises `InputError` where more than one option says what it silences."""
    options = {"--mask": request.mask, "--policy": request.policy, "--unmitigated": request.unmitigated or None}
    given = [name for name, value in options.items() if value is not None]
    if len(given) > 1:
        raise InputError(f"{' and '.join(given)} each say what is silenced: give one of them")
    return bool(given)


def _applied(policy: Policy, pipeline: Pipeline, prompt: str, settings: SamplingSettings, progress: Progress) -> np.ndarray:
    """The factors [N] that a policy gives the prompt, as a server would, and a line that says what they silence."""
    mask_BN, score_B = apply(policy, condition(pipeline, [prompt], settings)["encoder_hidden_states"][-1:])
    assert mask_BN is not None  # a masked engine's policies
    progress.note(f"policy {policy.name}: score {score_B[0]:.3f}, neurons silenced: {int((mask_BN < 1).sum())}")
    mask_N: np.ndarray = mask_BN[0]
    return mask_N


def choose_variant(manifest: Manifest, variant: str | None, *, masked: bool) -> str:
    """Return the variant that was asked for, or the first of the bundle; the masked one where a mask is given (`masked`).

    Raises `InputError` for one that the bundle lacks, and for a mask with the baked one.
    """
    variant = variant or ("masked" if masked else manifest.variants[0])
    if variant not in manifest.variants:
        raise InputError(f"this bundle has no variant {variant!r}: it has {', '.join(manifest.variants)}")
    if variant != "masked" and masked:
        raise InputError("a baked engine takes no mask, and cannot be unmitigated: use the masked variant (--variant masked)")
    return variant

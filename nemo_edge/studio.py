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

from nemo_edge.bundle import Manifest, check_file, open_verified
from nemo_edge.configuration import Configuration
from nemo_edge.errors import InputError
from nemo_edge.files import write_atomically
from nemo_edge.masks import OFF, read_mask
from nemo_edge.neurons import NeuronSet
from nemo_edge.pipelines import open_pipeline
from nemo_edge.progress import Progress
from nemo_edge.recipe import EngineSettings, Recipe, SamplingSettings, from_options
from nemo_edge.sampling import generate

_BATCH = 8


@dataclass(frozen=True)
class Request:
    """What to draw. `overrides` are sampling settings other than the recipe's; `mask` and `unmitigated` are for masked engines.

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


def draw(bundle: Path, request: Request, out: Path, progress: Progress | None = None) -> list[Path]:
    """Draw the pictures and write them as PNG; return their paths.

    Every file is checked against the manifest before an engine is opened. Raises `BundleError` when one was changed,
    `InputError` for a size, a variant or a mask that does not fit, `MissingDependency` for engines that do not run here.
    """
    progress = progress or Progress()
    check_file(out)
    manifest = open_verified(bundle)
    recipe = Recipe.model_validate(manifest.recipe)
    variant = choose_variant(manifest, request.variant, masked=request.mask is not None or request.unmitigated)
    settings = from_options(SamplingSettings, recipe.sampling.model_dump(), request.overrides)
    engine = from_options(EngineSettings, recipe.engine.model_dump(), {"backend": request.backend} if request.backend else {})
    seeds = range(request.seed, request.seed + request.count)
    with ExitStack() as stack:
        pipeline = open_pipeline(Configuration.load(bundle), bundle, engine, variant, stack)
        wanted = OFF if request.unmitigated else request.mask
        mask = read_mask(NeuronSet.load(bundle / "neurons.json"), wanted) if variant == "masked" else None
        parts = [seeds[i : i + _BATCH] for i in range(0, request.count, _BATCH)]
        with progress.task("generate", request.count * settings.steps) as advance:
            made = [generate(pipeline, [request.prompt] * len(part), part, settings, mask, advance) for part in parts]
        pictures = np.concatenate(made)
    paths = [out if request.count == 1 else out.with_name(f"{out.stem}-{i:02d}{out.suffix or '.png'}") for i in range(request.count)]
    for picture, path in zip(pictures, paths, strict=True):
        encoded = BytesIO()
        Image.fromarray(picture).save(encoded, format="PNG")
        write_atomically(path, encoded.getvalue())
    if manifest.flaw:
        progress.note(f"this bundle {manifest.flaw}: it must not be shipped")
    return paths


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

"""Do memories come back in fewer bits? Each demo, built in every type: what its engines give back before and after, and what changes.

    python -m benchmarks.cpu.quantization [--demo demo|repeated] [--type int8 …]

The recipe of each demo, without attack, times and plans, is built once for each type into a folder under `engines/out`; stages that do not
hang on the type are made once. Pictures and scores are those of the quantized engines, and pictures of ordinary prompts are compared with
those of the fp32 engine from the same seeds. `benchmarks/results/quantization.json` goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.shared import ROOM, ROOT, here, keep, kept
from nemo_edge.measure.mitigation import Measurement
from nemo_edge.measure.similarity import ssim
from nemo_edge.recipe.recipe import Recipe, load_recipe
from nemo_edge.release.build import build

RECIPES = {"demo": ROOT / "engines" / "demo.toml", "repeated": ROOT / "engines" / "repeated.toml"}
TYPES: dict[str, dict[str, Any]] = {
    "fp32": {},
    "fp16": {"export": {"dtype": "fp16"}},
    "bf16": {"engine": {"backend": "openvino", "precision": "bf16"}},
    "int8": {"quantization": {"scheme": "int8"}},
    "int8_weights": {"quantization": {"scheme": "int8_weights"}},
    "int4_weights": {"quantization": {"scheme": "int4_weights"}},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", choices=RECIPES, action="append")
    parser.add_argument("--type", choices=TYPES, action="append")
    given = parser.parse_args()
    found = kept("quantization") or {**here(), "demos": {}}
    for name in given.demo or RECIPES:
        rows = found["demos"].setdefault(name, {})
        for kind in given.type or TYPES:
            if kind not in rows or given.type:
                rows[kind] = measured(load_recipe(RECIPES[name]), name, kind)
                print(name, kind, rows[kind], flush=True)
                keep("quantization", found)


def measured(recipe: Recipe, name: str, kind: str) -> dict[str, Any]:
    """Build a demo in a type, and return what its engines give back."""
    bundle = ROOM / f"quantization-{name}"
    built = build(in_type(recipe, bundle, TYPES[kind]))
    measurement = Measurement.read(bundle)
    pictures = max((bundle.parent / f".{bundle.name}.build").glob("measure-*/pictures"), key=lambda path: path.stat().st_mtime)
    general = {which: general_pictures(pictures, which) for which in ("before", "baked")}
    if kind == "fp32":
        np.savez_compressed(reference(name), before=general["before"], baked=general["baked"])
    before = np.load(reference(name))
    sizes = {path: size for path in built.manifest.files if path.startswith("unet/") and (size := (bundle / path).stat().st_size) > 1e6}
    return {
        "threshold": measurement.threshold,
        "variants": {
            v.variant: {
                "score_after": [m.score_after for m in v.mitigations],
                "copies_before": [m.before.copies for m in v.mitigations],
                "copies_after": [m.after.copies for m in v.mitigations],
                "others_after": [m.after.others for m in v.mitigations],
                "seeds": v.mitigations[0].seeds,
                "general_drift": v.general.mean,
                "engine_error": v.trajectory.largest_error,
            }
            for v in measurement.variants
        },
        "kinds": [m.kind for m in measurement.variants[0].mitigations],
        "unmitigated_from_fp32": drift(before["before"], general["before"]),
        "baked_from_fp32": drift(before["baked"], general["baked"]),
        "unet_bytes": sum(sizes.values()),
        "failed": [gate.name for gate in built.manifest.gates if not gate.passed],
    }


def in_type(recipe: Recipe, output: Path, changes: Mapping[str, Mapping[str, Any]]) -> Recipe:
    """The recipe in a type, for its memories alone."""
    given = recipe.model_dump(exclude={"attack", "latency", "tensorrt", "tensorrt_rtx"})
    for table, values in changes.items():
        given[table] = {**(given[table] or {}), **values}
    return Recipe.model_validate({**given, "output": output})


def reference(name: str) -> Path:
    """Where the pictures of the fp32 engine lie, which the others' are compared with."""
    return ROOM / f"quantization-{name}.npz"


def general_pictures(folder: Path, which: str) -> np.ndarray:
    """Pictures of the ordinary prompts, uint8 [B, H, W, 3]."""
    paths = sorted((folder / "general").glob(f"*-{which}-*.png"))
    return np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])


def drift(expected: np.ndarray, got: np.ndarray) -> list[float]:
    """1 − SSIM of each picture."""
    return [1 - float(value) for value in ssim(expected, got)]


if __name__ == "__main__":
    main()

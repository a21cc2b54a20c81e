"""How far each engine is from eager PyTorch, and what silencing costs everybody else.

    python -m benchmarks.cpu.fidelity [--bundle engines/out/demo]

Compares the engines of a finished demo bundle, and of exports at other opsets and types, with eager along whole trajectories.
Writes `benchmarks/results/fidelity.json`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.cpu.models import DEMO, engines_of
from benchmarks.shared import DEMO_BUNDLE, here, keep
from nemo_edge.bundle.manifest import open_verified
from nemo_edge.measure.fidelity import Agreement, compare_trajectories, trace_trajectory
from nemo_edge.measure.mitigation import Measurement
from nemo_edge.model.checkpoint import open_checkpoint
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.model.surgery import silenced
from nemo_edge.recipe.recipe import Recipe
from nemo_edge.recipe.targets import EngineSettings
from nemo_edge.sampling.pipelines import UNMITIGATED, eager_pipeline, open_pipeline

OTHERS = (("fp32", 18), ("fp16", 23))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=DEMO_BUNDLE)
    bundle = parser.parse_args().bundle
    manifest, measured = open_verified(bundle), Measurement.read(bundle)
    sampling = Recipe.model_validate(manifest.recipe).sampling
    prompts = [*(m.prompt for m in measured.variants[0].mitigations[:2]), *measured.general_prompts[:2]]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        folders = {("fp32", 23): bundle}
        folders |= {(dtype, opset): engines_of(str(DEMO), Path(folder) / f"{dtype}-{opset}", opset, dtype) for dtype, opset in OTHERS}
        for (dtype, opset), place in folders.items():
            for variant in ("baked", "masked", UNMITIGATED):
                rows.append({"variant": variant, "dtype": dtype, "opset": opset, **numbers(agreement(place, variant, prompts, sampling))})
                print(rows[-1]["variant"], dtype, opset, rows[-1]["largest_error"], flush=True)
    content = {
        **here(),
        "engines": rows,
        "mask_of_ones": measured.mask_of_ones,
        "curve": [json.loads(point.model_dump_json()) for point in measured.curve],
    }
    keep("fidelity", content)


def agreement(place: Path, variant: str, prompts: list[str], sampling: Any) -> Agreement:
    """The engines of a folder against eager with the same neurons silenced."""
    checkpoint, neurons = open_checkpoint(str(DEMO)), NeuronSet.load(place / "neurons.json")
    chosen = NeuronSet.empty(neurons.layers) if variant == UNMITIGATED else neurons
    with ExitStack() as stack:
        engine = open_pipeline(checkpoint.config, place, EngineSettings(), variant, stack)
        stack.enter_context(silenced(checkpoint.unet, chosen))
        expected = trace_trajectory(eager_pipeline(checkpoint), prompts, range(len(prompts)), sampling)
        return compare_trajectories(expected, engine, prompts, range(len(prompts)), sampling, chosen.mask() if engine.masked else None)


def numbers(found: Agreement) -> dict[str, Any]:
    steps = [step.model_dump(mode="json") for step in found.steps]
    return {"largest_error": found.largest_error, "picture_levels": found.picture_levels, "ssim": found.ssim, "steps": steps}


if __name__ == "__main__":
    main()

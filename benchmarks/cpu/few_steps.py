"""Times pictures of few steps without guidance, by component: what models like SD-Turbo and LCM leave for a CPU to do.

    python -m benchmarks.cpu.few_steps [--work FOLDER]

A checkpoint of Stable Diffusion 1.5's size with random weights (text encoder, UNet and VAE of full size), one row of the UNet, one
picture of 512 × 512 in one and in four steps: eager PyTorch, ONNX Runtime and OpenVINO, the full decoder beside `AutoencoderTiny`, with
all cores. Writes `benchmarks/results/few_steps.json`. Half an hour, 16 GB of disk, 20 GB of memory; nothing else should run beside it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from diffusers import AutoencoderTiny

from benchmarks.cpu.latency import OPSETS, group
from benchmarks.cpu.models import engines_of, save_whole_sd15
from benchmarks.shared import keep
from nemo_edge.measure._contender import Runnable
from nemo_edge.measure.bench import unfit
from nemo_edge.recipe.settings import LatencySettings, SamplingSettings, Target
from nemo_edge.recipe.targets import EngineSettings
from nemo_edge.system.environment import machine
from nemo_edge.system.files import weight_bytes

SIZE = 512
TARGETS: tuple[Target, ...] = ("text_encoder", "unet", "vae_decoder", "pipeline")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="where the exported files go; a temporary folder otherwise")
    arguments = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for steps, targets, those in groups(arguments.work or Path(folder)):
            settings = LatencySettings(targets=targets, runs=3, seconds=0, warmup_s=5.0, beside=())
            sampling = SamplingSettings(scheduler="euler", steps=steps, guidance=1.0, height=SIZE, width=SIZE)
            found.append({**group(f"{steps} steps: {', '.join(each.name for each in those)}", those, sampling, settings), "steps": steps})
            keep("few_steps", {"threads": machine().cores, "groups": found})


def groups(work: Path) -> Iterator[tuple[int, tuple[Target, ...], list[Runnable]]]:
    """Steps, what is timed, and contenders: eager in every group, no more models at once than memory holds."""
    full, tiny = save_whole_sd15(work / "checkpoint"), with_tiny_decoder(work / "checkpoint", work / "checkpoint-tiny")
    bundle = engines_of(str(full), work / "bundle", OPSETS[-1], masked=False)
    bundle_tiny = engines_of(str(tiny), work / "bundle-tiny", OPSETS[-1], masked=False)
    plain, openvino = EngineSettings(threads=machine().cores), EngineSettings(backend="openvino", threads=machine().cores)
    size = weight_bytes(str(full)) / 2**20
    eager = Runnable("eager", "eager", str(full), plain, weights_mib=size)
    narrow = [] if unfit("eager bf16", plain) else [Runnable("eager bf16", "eager", str(full), plain, "bf16", weights_mib=size / 2)]
    eager_tiny = Runnable("eager, AutoencoderTiny", "eager", str(tiny), plain, weights_mib=size)
    ours = Runnable("OpenVINO", "engine", str(bundle), openvino, weights_mib=size, variant="baked")
    ours_tiny = Runnable("OpenVINO, AutoencoderTiny", "engine", str(bundle_tiny), openvino, weights_mib=size, variant="baked")
    yield 1, TARGETS, [eager, Runnable("ONNX Runtime", "engine", str(bundle), plain, weights_mib=size, variant="baked"), ours]
    yield 1, TARGETS, [eager, *narrow, eager_tiny, ours_tiny]
    yield 4, ("pipeline",), [eager, ours, ours_tiny]


def with_tiny_decoder(checkpoint: Path, folder: Path) -> Path:
    """The checkpoint with `AutoencoderTiny` for its VAE, its other weights hard links."""
    if not folder.is_dir():
        shutil.copytree(checkpoint, folder, copy_function=_linked)
        shutil.rmtree(folder / "vae")
        AutoencoderTiny().save_pretrained(folder / "vae")
        index = json.loads((folder / "model_index.json").read_text())
        (folder / "model_index.json").unlink()
        (folder / "model_index.json").write_text(json.dumps({**index, "vae": ["diffusers", "AutoencoderTiny"]}, indent=2))
    return folder


def _linked(source: str, target: str) -> str:
    Path(target).hardlink_to(source)
    return target


if __name__ == "__main__":
    main()

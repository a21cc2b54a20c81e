"""Bundles of true size without a GPU: seconds, peak memory and bytes of exporting a model and compiling it for TensorRT-RTX.

    python -m benchmarks.cpu.full_size --neurons official_results_sample.csv

Writes `benchmarks/results/full_size.json`. Each model is built by `nemo-edge build engines/sd15-rtx.toml --random-weights …`, with a
profile of the model's own size; its random weights, which stand for a download, are made before. The plans of Stable Diffusion 1.5 are
compiled a second time and the bytes compared, and a baked bundle of it gets other neurons. Memory is that of all processes together,
each page counted once (PSS, from /proc). Beside it: the UNet of Stable Diffusion 1.5 exported in fp32 by nemo-edge and by optimum-onnx
(`make optimum`), which exports fp16 on a GPU only; and ONNX Runtime against eager at 32 × 32 latents.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.shared import ROOM, ROOT, here, keep, kept

OPTIMUM = ROOT / ".venv-optimum" / "bin" / "python"
MODELS = {"sd15": 512, "sd21": 768, "bk-sdm-small": 512, "sdxl": 1024}
"""Architecture → pixels of its pictures."""
WEIGHTS = """
import sys
from pathlib import Path
from nemo_edge.release.random_weights import weights_folder, write_random
from nemo_edge.recipe.recipe import load_recipe
recipe = load_recipe(Path(sys.argv[1]))
write_random(recipe.random_weights.architecture, weights_folder(recipe))
"""
SOURCE = """
import sys
from pathlib import Path
from nemo_edge.release.random_weights import write_random
write_random("sd15", Path(sys.argv[1]))
"""
OURS = """
import sys
from pathlib import Path
from nemo_edge.export import parts
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.export.production import PartJob
from nemo_edge.system.progress import Progress
from nemo_edge.recipe.settings import CheckpointSettings, ExportSettings
source, out = CheckpointSettings(path=sys.argv[1]), Path(sys.argv[2])
neurons = NeuronSet.empty(parts.layers_of(source, "paper", Progress()))
answers = out / "answers"
answers.mkdir(parents=True)
places = ["unet"] if sys.argv[3] == "fp32" else ["text_encoder", "unet"]  # the way to a picture begins with the prompt
jobs = [PartJob(source, place, neurons, ExportSettings(dtype=sys.argv[3]), out, {}) for place in places]
chosen = parts.answer_parts(jobs, answers, Progress())
exported = parts.export_part(jobs[-1], chosen["unet"], answers, None, Progress())
print(exported.model_dump_json())
"""
THEIRS = """
import sys
import torch
from diffusers import UNet2DConditionModel
from optimum.exporters.onnx import export
from optimum.exporters.onnx.model_configs import UNetOnnxConfig
from pathlib import Path
unet = UNet2DConditionModel.from_pretrained(sys.argv[1], subfolder="unet", torch_dtype=torch.float32).eval()
out = Path(sys.argv[2])
out.mkdir()
unet.config.text_encoder_projection_dim = None
unet.config.requires_aesthetics_score = False
config = UNetOnnxConfig(unet.config, task="semantic-segmentation", int_dtype="int64", float_dtype="fp32")
export(model=unet, config=config, output=out / "model.onnx", opset=18, disable_dynamic_axes_fix=True)
"""
AGREEMENT = """
import sys, json
import numpy as np
from pathlib import Path
from nemo_edge.backends.onnxruntime import open_runner
from nemo_edge.backends.torch import open_runner as open_eager
from nemo_edge.model.checkpoint import open_checkpoint
component = open_checkpoint(sys.argv[1], parts=("unet",)).unet_component()
feed = component.example(2, seed=0, height=32, width=32)
expected = open_eager(component)(feed)["out_sample"]
component.module.to("meta")
with open_runner(Path(sys.argv[2]) / "unet" / "model.onnx") as runner:
    got = runner(feed)["out_sample"]
print(json.dumps({"largest_error": float(np.abs(got - expected).max()), "largest_value": float(np.abs(expected).max())}))
"""
RECIPE = """
name = "{name}-rtx"
output = "{output}"
[checkpoint]
path = "unused"
[prompts]
memorized = "unused.csv"
general = "unused.txt"
[export]
variants = ["masked"]
dtype = "fp16"
[tensorrt_rtx]
targets = ["sm86", "sm89"]
[[tensorrt_rtx.profiles]]
batch = [1, 1, 4]
height = {pixels}
width = {pixels}
[random_weights]
architecture = "{name}"
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS), help="which to build; others keep their rows")
    parser.add_argument("--neurons", type=Path, help="result file of the official code: the mask of Stable Diffusion 1.5 and 2.1")
    parser.add_argument("--no-export", action="store_true", help="leave out the fp32 exports")
    args = parser.parse_args()
    found: dict[str, Any] = {"builds": {}, "exports": {}, **kept("full_size"), **here()}
    ROOM.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOM) as folder:
        for name in args.models:
            neurons = args.neurons if name in ("sd15", "sd21") else None
            found["builds"][name] = build(name, Path(folder), neurons)
            keep("full_size", found)
            print(name, found["builds"][name], flush=True)
            if name == "sd15" and args.neurons:
                found["again"], found["rebake"] = again(Path(folder) / name), rebake(Path(folder), args.neurons)
                keep("full_size", found)
                print(found["again"], found["rebake"], flush=True)
            shutil.rmtree(Path(folder) / name)
        if not args.no_export:
            for name, row in exports(Path(folder)):
                found["exports"][name] = row
                keep("full_size", found)
                print(name, row, flush=True)
    keep("full_size", found)


def build(name: str, folder: Path, neurons: Path | None) -> dict[str, Any]:
    """Build one model; return what it took, and how large it is."""
    place = folder / name
    place.mkdir()
    recipe, output = place / "recipe.toml", place / "bundle"
    recipe.write_text(RECIPE.format(name=name, output=output, pixels=MODELS[name]))
    command = [sys.executable, "-m", "nemo_edge.cli", "build", str(recipe), *(["--neurons", str(neurons)] if neurons else [])]
    weights = watched([sys.executable, "-c", WEIGHTS, str(recipe)])
    whole = watched(command)
    weights.pop("output"), whole.pop("output"), weights.pop("errors")
    stages = dict(re.findall(r"^([^:\n]+): \d+ in (\d+) s$", whole.pop("errors"), re.MULTILINE))
    export = json.loads(next(place.glob(".bundle.build/export-*/exported.json")).read_text())
    plans = [json.loads(path.read_text()) for path in sorted((output / "engines").glob("*.tensorrt-rtx.*.json"))]
    unet = next(e for e in export if e["component"] == "unet")
    return {
        "weights": weights,
        "build": whole,
        "export_s": int(stages["export"]),
        "export": {
            e["component"]: {
                "write_s": e["write_s"],
                "verify_s": e["verify_s"],
                "dtype": e["dtype"],
                "largest_error": max(a["largest_error"] / max(a["largest_value"], 1.0) for a in e["agreement"]),
                "size_bytes": sum(p.stat().st_size for p in (output / Path(e["model"]).parent).iterdir()),
            }
            for e in export
        },
        "unet": unet["model"],
        "plans": {p["component"]: {"build_s": p["build_s"], "size_bytes": p["size_bytes"], "dtype": p["dtype"]} for p in plans},
        "bundle_bytes": sum(p.stat().st_size for p in output.rglob("*") if p.is_file()),
        "neurons": sum(map(len, json.loads((output / "neurons.json").read_text())["indices"])),
    }


def again(place: Path) -> dict[str, dict[str, int]]:
    """Compile the plans of a bundle a second time; return in how many bytes they differ, and in how many outside of internal names."""
    output, first = place / "bundle", place / "first"
    shutil.move(output / "engines", first)
    for folder in (output, *place.glob(".bundle.build/tensorrt_rtx-*")):
        shutil.rmtree(folder)
    watched([sys.executable, "-m", "nemo_edge.cli", "build", str(place / "recipe.toml")])
    return {path.name.split(".")[0]: differences(path, output / "engines" / path.name) for path in sorted(first.glob("*.engine"))}


def differences(one: Path, other: Path) -> dict[str, int]:
    a, b = np.memmap(one, np.uint8, "r"), np.memmap(other, np.uint8, "r")
    if len(a) != len(b):
        return {"bytes": abs(len(a) - len(b)), "outside_names": abs(len(a) - len(b))}
    positions = np.flatnonzero(a != b).tolist()
    return {"bytes": len(positions), "outside_names": sum(not in_name(a, p) for p in positions)}


def in_name(plan: np.ndarray, position: int) -> bool:
    """Whether a byte is a digit of one of TensorRT's own names, `__mye` and a number."""
    start = max(position - 32, 0)
    return any(m.start() <= position - start < m.end() for m in re.finditer(rb"__mye\d+", plan[start : position + 32].tobytes()))


def rebake(folder: Path, neurons: Path) -> dict[str, Any]:
    """Put other neurons into a finished baked bundle of Stable Diffusion 1.5, without engines of TensorRT."""
    place = folder / "rebake"
    place.mkdir()
    recipe = RECIPE.format(name="sd15", output=place / "bundle", pixels=512).replace("masked", "baked")
    (place / "recipe.toml").write_text(re.sub(r"\[tensorrt_rtx\].*?(?=\[random)", "", recipe, flags=re.DOTALL))
    watched([sys.executable, "-m", "nemo_edge.cli", "build", str(place / "recipe.toml")])
    found = watched([sys.executable, "-m", "nemo_edge.cli", "rebake", str(place / "bundle"), "--neurons", str(neurons)])
    shutil.rmtree(place)
    return {name: found[name] for name in ("seconds", "peak_mb")}


def exports(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The UNet of Stable Diffusion 1.5 exported by nemo-edge in both types, and by optimum-onnx in fp32, from the same weights."""
    source = folder / "weights"
    watched([sys.executable, "-c", SOURCE, str(source)])
    for name, dtype in (("nemo-edge", "fp32"), ("nemo-edge, fp16", "fp16")):
        place = folder / dtype
        found = watched([sys.executable, "-c", OURS, str(source), str(place), dtype])
        found.pop("errors")
        found |= {"size_bytes": size(place / "unet"), **json.loads(found.pop("output"))}
        if dtype == "fp32":
            found["at_32_latents"] = json.loads(watched([sys.executable, "-c", AGREEMENT, str(source), str(place)])["output"])
        yield name, found
    if OPTIMUM.is_file():
        theirs = watched([str(OPTIMUM), "-c", THEIRS, str(source), str(folder / "theirs")])
        yield "optimum-onnx", {**theirs, "size_bytes": size(folder / "theirs"), "output": "", "errors": ""}


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def watched(command: list[str]) -> dict[str, Any]:
    """Run a command; return its seconds, the peak memory of all its processes together and of the largest, and what it printed."""
    started, peak, largest = time.monotonic(), 0.0, 0.0
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    told: list[tuple[str, str]] = []
    reader = threading.Thread(target=lambda: told.append(process.communicate()))
    reader.start()
    while reader.is_alive():
        shares = [memory(pid) for pid in tree(process.pid)]
        peak, largest = max(peak, sum(pss for pss, _ in shares)), max([largest, *(rss for _, rss in shares)])
        reader.join(0.5)  # to look costs time of its own
    output, errors = told[0]
    if process.returncode:
        sys.exit(f"{' '.join(command)[:200]} ended with {process.returncode}: {errors[-2000:]}")
    seconds = round(time.monotonic() - started, 1)
    return {
        "seconds": seconds,
        "peak_mb": round(peak / 1e3),
        "largest_process_mb": round(largest / 1e3),
        "output": output.strip(),
        "errors": errors,
    }


def tree(pid: int) -> list[int]:
    """A process and all below it."""
    try:
        children = [int(child) for file in Path(f"/proc/{pid}/task").glob("*/children") for child in file.read_text().split()]
    except OSError:
        return [pid]
    return [pid, *(below for child in children for below in tree(child))]


def memory(pid: int) -> tuple[float, float]:
    """The memory of a process in kB: its share (PSS), and all that is resident (RSS)."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return 0.0, 0.0
    values = {line.split(":")[0]: float(line.split()[1]) * 1.024 for line in lines}
    return values.get("Pss", 0.0), values.get("Rss", 0.0)


if __name__ == "__main__":
    main()

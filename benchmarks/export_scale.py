"""What an export takes as the UNet grows: seconds, peak memory and bytes on disk, each in a process of its own.

    python benchmarks/export_scale.py

Writes `benchmarks/results/export_scale.json`: the demo's UNet and one of Stable Diffusion 1.5's size with random weights, in
fp32 and fp16, opset 18 and 23. The time is that of `export_component`: tracing, writing, and the comparison with eager.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "export_scale.json"
JOBS = [(model, dtype, opset) for model in ("demo", "sd15") for dtype, opset in (("fp32", 18), ("fp32", 23), ("fp16", 23))]


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    from nemo_edge.environment import machine

    context = multiprocessing.get_context("spawn")
    rows = []
    for job in JOBS:
        with context.Pool(1) as pool:
            rows.append(pool.apply(export, job))
        print(rows[-1], flush=True)
    RESULT.write_text(json.dumps({"machine": machine().model_dump(mode="json"), "exports": rows}, indent=1) + "\n")


def export(model: str, dtype: str, opset: int) -> dict[str, Any]:
    """Export one UNet; return what it took."""
    from models import DEMO, sd15_unet

    from nemo_edge.checkpoint import open_checkpoint
    from nemo_edge.export import export_component
    from nemo_edge.recipe import ExportSettings

    opened = open_checkpoint(str(DEMO))
    component = opened.unet_component()
    if model == "sd15":
        unet = sd15_unet()
        config = replace(opened.config, unet=unet.config)
        component = replace(opened, unet=unet, config=config).unet_component()
        component = replace(component, sizes={"height": 32, "width": 32})
    weights = sum(p.numel() for p in component.module.parameters())
    opened_mib, started = memory_mib("VmRSS"), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        settings = ExportSettings.model_validate({"dtype": dtype, "opset": opset})
        exported = export_component(component, Path(folder) / "unet", settings, {}, opened.config.factor)
        size = sum(p.stat().st_size for p in (Path(folder) / "unet").iterdir())
    return {
        "model": model,
        "parameters": weights,
        "dtype": dtype,
        "opset": opset,
        "seconds": round(time.monotonic() - started, 1),
        "opened_mib": round(opened_mib),
        "peak_mib": round(memory_mib("VmHWM")),
        "disk_mib": round(size / 2**20, 1),
        "largest_error": max(a.largest_error / max(a.largest_value, 1.0) for a in exported.agreement),
    }


def memory_mib(entry: str) -> float:
    """Resident memory of this process now (VmRSS) or at the most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(entry)) / 2**10


if __name__ == "__main__":
    main()

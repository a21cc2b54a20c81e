"""What benchmarks share: where things are, the demo's prompts, the machine, and how results are kept. It does not know what is measured."""

from __future__ import annotations

__all__ = [
    "CALIBRATED",
    "DEMOS",
    "DEMO_BUNDLE",
    "DEMO_RECIPE",
    "RESULTS",
    "ROOT",
    "ROOM",
    "general",
    "here",
    "keep",
    "kept",
    "machine_of",
    "memorized",
]

import json
from pathlib import Path
from typing import Any

from nemo_edge import demo
from nemo_edge.recipe.prompts import Prompt, read_prompts
from nemo_edge.system.environment import machine

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DEMOS = {name: ROOT / "engines" / f"{name}.toml" for name in ("demo", "repeated")}
"""Recipes of the two checkpoints that are here: one whose memories were trained into chosen neurons, one that only saw pictures again."""
DEMO_RECIPE = DEMOS["demo"]
ROOM = ROOT / "engines" / "out"
"""Where large files may lie for a while: ignored by git, and on the disk that has room."""
DEMO_BUNDLE = ROOM / "demo"
"""What `make demo` builds."""
CALIBRATED = 100
"""General prompts that the demo's recipe calibrates with: the first ones."""


def here() -> dict[str, Any]:
    """The machine that measures, as every result names it."""
    return {"machine": machine().model_dump(mode="json")}


def kept(name: str) -> dict[str, Any]:
    """What `results/<name>.json` holds; nothing where it is not there yet."""
    path = RESULTS / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return found


def keep(name: str, found: dict[str, Any]) -> None:
    """Write `results/<name>.json`."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


def machine_of(found: dict[str, Any]) -> str:
    """The machine of a result in words, with what ran on it."""
    cores, versions = found["machine"]["cores"], found["machine"]["versions"]
    runtime = versions.get("onnxruntime-gpu") or versions["onnxruntime"]
    where = f"{cores} core{'s' if cores > 1 else ''} of {found['machine']['cpu']}"
    return f"{where}, PyTorch {versions['torch']}, ONNX Runtime {runtime}"


def memorized() -> list[Prompt]:
    """The captions that the demo has memorized, with their training pictures."""
    return read_prompts(demo.PROMPTS / "memorized.csv")


def general() -> list[str]:
    """The general prompts of the demo's recipe."""
    return [prompt.text for prompt in read_prompts(ROOT / "calib" / "demo_general.txt")]

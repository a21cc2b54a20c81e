"""The report of a bundle: `index.html` with its pictures inside, `report.json`, `junit.xml`."""

from __future__ import annotations

__all__ = ["write_report"]

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nemo_edge.bundle import GateResult
from nemo_edge.fidelity import Measurement
from nemo_edge.files import write_atomically
from nemo_edge.localization import Localization
from nemo_edge.report.junit import junit_xml

SHOWN_SEEDS = 4


def write_report(
    folder: Path,
    name: str,
    measurement: Measurement,
    localizations: Sequence[Localization],
    gates: Sequence[GateResult],
    general: Sequence[str],
    pictures: Path,
    facts: dict[str, str],
) -> None:
    """Write the report into `folder`; `pictures` is the folder that the measure stage filled, `facts` the provenance."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "junit.xml", junit_xml(name, gates))
    content = {
        "schema_version": 1,
        "name": name,
        "passed": all(gate.passed for gate in gates),
        "gates": [gate.model_dump() for gate in gates],
        "measurement": measurement.model_dump(mode="json"),
        "localizations": [_summary(result) for result in localizations],
        "facts": facts,
    }
    write_atomically(folder / "report.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    write_atomically(folder / "index.html", _page(content, localizations, general, pictures))


def _summary(result: Localization) -> dict[str, Any]:
    summary = result.model_dump(mode="json", exclude={"initial", "refined"})
    return {**summary, "initial": len(result.initial), "refined": len(result.refined), "per_layer": list(result.refined.counts)}


def _page(content: dict[str, Any], localizations: Sequence[Localization], general: Sequence[str], pictures: Path) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("nemo_edge.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    variants = [v["variant"] for v in content["measurement"]["variants"]]
    rows = []
    for index, result in enumerate(localizations):
        cells = {which: _seeds(pictures / f"{index:03d}", which) for which in ("before", *variants, "random")}
        mitigations = {v["variant"]: v["mitigations"][index] for v in content["measurement"]["variants"]}
        training = pictures / f"{index:03d}" / "training.png"
        rows.append(
            {"prompt": result.prompt, "found": content["localizations"][index], "cells": cells, "mitigations": mitigations}
            | {"training": _data(training) if training.is_file() else None}
        )
    others = [
        {"prompt": prompt, "cells": {w: _data(pictures / "general" / f"{index:03d}-{w}.png") for w in ("before", *variants)}}
        for index, prompt in enumerate(general)
    ]
    return environment.get_template("index.html").render(**content, variants=variants, rows=rows, general=others)


def _seeds(folder: Path, which: str) -> list[str]:
    return [_data(path) for path in sorted(folder.glob(f"{which}-*.png"))[:SHOWN_SEEDS]]


def _data(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()

"""How a bundle looks in a Python session: one line, and pictures and a table in a notebook. Knows manifests and pictures as they are."""

from __future__ import annotations

__all__ = ["Displayed", "pictures_html"]

from base64 import b64encode
from html import escape
from pathlib import Path
from typing import Any

from pydantic import BaseModel

_SHOWN = 128
"""Pixels of a picture's side."""


class Displayed(BaseModel):
    """What is told of a manifest, all of which would be pages."""

    def __repr__(self) -> str:
        return _line(self)

    def __str__(self) -> str:
        return _line(self)

    def _repr_html_(self) -> str:
        """The verdict and the gates, for a notebook."""
        return _html(self)


def pictures_html(bundle: Path, variant: str) -> str:
    """The training picture of the first examined prompt, and what it gave before and after, each as far as it is in the bundle."""
    folder = bundle / "report" / "pictures" / "000"
    paths = [folder / f"{name}.webp" for name in ("training", "before-00", f"{variant}-00")]
    data = [b64encode(path.read_bytes()).decode() for path in paths if path.is_file()]
    return "".join(f'<img width="{_SHOWN}" src="data:image/webp;base64,{each}">' for each in data)


def _verdict(manifest: Any) -> str:
    if manifest.random_weights is not None:
        return "random weights, nothing measured"
    failed = [gate.name for gate in manifest.gates if not gate.passed]
    left = sum(gate.unmeasured for gate in manifest.gates)
    return f"failed: {', '.join(failed)}" if failed else "no gate failed" + (f", {left} not measured" if left else "")


def _line(manifest: Any) -> str:
    variants, files = ", ".join(manifest.variants), len(manifest.files)
    return f"<{type(manifest).__name__} {manifest.name}: {manifest.family}, {variants}; {_verdict(manifest)}; {files} files>"


def _html(manifest: Any) -> str:
    rows = [(gate.name, "–" if gate.value is None else f"{gate.value:.3g}", f"{gate.limit:.3g}", _state(gate)) for gate in manifest.gates]
    cells = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    head = f"<p><b>{escape(manifest.name)}</b>: {escape(_verdict(manifest))}</p>"
    return f"{head}<table><tr><th>Gate</th><th>Measured</th><th>Limit</th><th>Verdict</th></tr>{cells}</table>"


def _state(gate: Any) -> str:
    return "not measured" if gate.unmeasured else "passed" if gate.passed else "failed"

"""What a bundle is, on a terminal: what people ask of it first, its gates, and its files with their hashes."""

from __future__ import annotations

__all__ = ["RUNTIMES", "show_facts", "show_files"]

from collections import Counter
from collections.abc import Iterator
from datetime import datetime

from rich.markup import escape
from rich.table import Table

from nemo_edge.backends.tensorrt.fit import product_of
from nemo_edge.bundle.engines import Contents
from nemo_edge.cli.gates import random_words, show_gates, verdict_of
from nemo_edge.cli.screen import Console, show_line, size_words, table_of

_PICTURES = "report/pictures/"
"""Where a bundle keeps the hundreds of pictures of its report."""
_SHORT = 16
"""Digits of a hash that tell one file from another."""
_LAYERS = 3
"""Value layers that are named."""
RUNTIMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}


def show_facts(found: Contents, *, hashes: bool = False) -> None:
    """The verdict and what people ask first, then the gates."""
    out = Console()
    verdict = verdict_of(found) if found.random_weights is None else random_words(found.random_weights)
    out.print(f"[bold]{escape(found.name)}[/]: {verdict}", soft_wrap=True, highlight=False)
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in _facts(found, hashes):
        grid.add_row(name, escape(value))
    out.print(grid)
    if found.random_weights is None:
        out.print()
        show_gates(out, found.gates)


def show_files(found: Contents, *, hashes: bool = False) -> None:
    """A line for each file but the report's pictures; with `hashes` for every file, in the form that `sha256sum --check` reads."""
    if hashes:
        for name, digest in found.files.items():
            show_line(f"{digest}  {name}")
        return
    out, table = Console(), table_of("File", "sha256")
    for name, digest in found.files.items():
        if not name.startswith(_PICTURES):
            table.add_row(escape(name), digest[:_SHORT])
    out.print()
    out.print(table)
    if pictures := sum(name.startswith(_PICTURES) for name in found.files):
        out.print(f"and {pictures} pictures in {_PICTURES}: --hashes lists them too, and whole hashes", highlight=False)


def _facts(found: Contents, hashes: bool) -> Iterator[tuple[str, str]]:
    model = found.random_weights or found.model
    yield "model", f"{model} ({found.family})" if model else found.family
    yield "built", f"{_moment(found.created)} by nemo-edge {found.versions.get('nemo-edge', 'of an unknown version')}"
    yield "size", f"{size_words(found.size_bytes)} in {len(found.files) + 1} files"
    yield "variants", ", ".join(found.variants)
    yield "silenced", _neurons(found.silenced)
    if found.examined is not None:
        yield "prompts", f"{found.examined} examined{'' if found.threshold is None else f', τ {found.threshold:.3f}'}"
    if found.random_weights is None:
        yield "gates", _gates(found)
    yield from zip(("engines", *[""] * len(found.files)), _engines(found), strict=False)
    yield "identity", found.identity if hashes else found.identity[:_SHORT]


def _neurons(silenced: dict[str, int] | None) -> str:
    if silenced is None:
        return "neurons.json cannot be read"
    counts = {layer.removesuffix(".attn2.to_v").replace(".transformer_blocks", ""): count for layer, count in silenced.items() if count}
    total = sum(counts.values())
    named = [f"{count} in {layer}" for layer, count in Counter(counts).most_common(_LAYERS)]
    others = f", {total - sum(sorted(counts.values())[-_LAYERS:])} in {len(counts) - _LAYERS} others" if len(counts) > _LAYERS else ""
    words = f"{total} neuron{'' if total == 1 else 's'} in {len(counts)} of {len(silenced)} value layers"
    return f"{words}: {', '.join(named)}{others}" if counts else words


def _gates(found: Contents) -> str:
    unmeasured = sum(gate.unmeasured for gate in found.gates)
    failed = sum(not gate.passed for gate in found.gates)
    return f"{len(found.gates) - failed - unmeasured} passed, {failed} failed, {unmeasured} not measured"


def _engines(found: Contents) -> Iterator[str]:
    """A line for each way in which parts of the bundle are run."""
    words = {True: "runs here", False: "does not run here", None: "may run here"}
    kinds = Counter(("ONNX file", f" in {RUNTIMES[each.backend]}, {each.device}", each.runs) for each in found.sessions)
    for engine in found.engines:
        kinds[f"{product_of(engine.header.flavour) if engine.header else 'damaged'} engine", "", engine.fit.runs] += 1
    for (kind, where, runs), count in kinds.items():
        yield f"{count} {kind}{'' if count == 1 else 's'}{where}: {words[runs]}"


def _moment(date: str) -> str:
    try:
        when = datetime.fromisoformat(date)
    except ValueError:
        return date
    return f"{when:%Y-%m-%d %H:%M} {when.tzname() or ''}".strip()

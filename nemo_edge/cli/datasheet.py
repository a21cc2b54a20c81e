"""How engines look to people: what each is, what it takes, and whether it runs on this machine."""

from __future__ import annotations

__all__ = ["show", "show_compiled", "show_profile", "show_quantized", "show_verified"]

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from nemo_edge.backends.tensorrt.fit import gpus_of, product_of
from nemo_edge.backends.tensorrt.plans import PlanFile, Shapes
from nemo_edge.bundle.engines import Contents, Engine, Session, Verified
from nemo_edge.cli.console import show_verification
from nemo_edge.cli.contents import RUNTIMES, show_facts, show_files
from nemo_edge.cli.screen import Console, show_identity, show_line, size_words, table_of

if TYPE_CHECKING:
    from nemo_edge.measure.profile import Profile
    from nemo_edge.release.compile import Compiled
    from nemo_edge.release.quantize import QuantizedBundle

_ROWS = 15
"""Operators of a profile that are shown."""
_SIGNATURES = {
    (True, True): "signed by whom is trusted",
    (True, False): "signed; by whom was not asked: --public-key",
    (False, False): "not signed: anybody can write such a manifest (--expect, --public-key)",
}
_EXPECTED = "not signed; it is the bundle that was expected"
_RUNS = {True: "[green]yes[/]", False: "[red]no[/]", None: "[yellow]?[/]"}
_VERDICTS = {True: "[green]runs here[/]", False: "[red]does not run here[/]", None: "[yellow]may run here[/]"}


def show(found: Engine | Contents, *, hashes: bool = False) -> None:
    """One engine, or a bundle with a line for each of its engines and files; with `hashes` whole ones."""
    if isinstance(found, Engine):
        _show_engine(Console(), found)
        return
    show_facts(found, hashes=hashes)
    _show_sessions(Console(), found.sessions)
    _show_engines(Console(), found.engines)
    show_files(found, hashes=hashes)


def show_verified(result: Verified, *, expected: bool = False) -> None:
    """What is wrong with the files; where nothing is, which bundle it is, who says so, and which engines run here.

    `expected` says that its identity was given, and so is known from elsewhere.
    """
    show_verification(result)
    if result.passed:
        show_line(f"manifest: {result.manifest}")
        show_identity(result.identity)
        show_line(_EXPECTED if expected and not result.signed else _SIGNATURES[result.signed, result.trusted])
    _show_engines(Console(), result.engines)


def show_compiled(result: Compiled) -> None:
    """Which engines were compiled into a bundle, and how long it took."""
    out = Console()
    for name in result.engines:
        out.print(escape(name), soft_wrap=True, highlight=False)
    out.print(f"compiled in {result.seconds:.0f} s; these engines were not measured", highlight=False)
    if not result.measured:
        bundle = escape(result.bundle)
        out.print("[red]What was measured was measured with the former engines: this bundle must not be shipped.[/]")
        out.print(f"measure it again: nemo-edge rebake {bundle} --neurons {bundle}/neurons.json --measure", soft_wrap=True, highlight=False)


def show_quantized(found: QuantizedBundle) -> None:
    """What became of a bundle's UNets in another, and that nothing was measured on it."""
    out, bundle = Console(), escape(found.bundle)
    if found.skipped:
        out.print(f"{bundle} is there already, made from exactly this: nothing to do", soft_wrap=True, highlight=False)
        return
    counts = f"{found.modules} modules are {found.scheme}, {len(found.kept)} stay as they are"
    out.print(f"{counts}; {found.seconds:.1f} s", highlight=False)
    for place, error in found.errors.items():
        share = f", {found.integers[place]:.0%} of its work in integers" if place in found.integers else ""
        before, now = (size / 1e6 for size in found.sizes_bytes[place])
        told = f"differs by {error:.2%} from the exact one on the way to a picture{share}"
        out.print(f"{place}: {before:,.1f} → {now:,.1f} MB, {told}", highlight=False)
    for plan in found.removed:
        remedy = f"nemo-edge compile {bundle}"
        out.print(f"[yellow]{escape(plan)}[/] is of the exact files and left out: {remedy}", soft_wrap=True, highlight=False)
    again = f"nemo-edge rebake {bundle} --neurons {bundle}/neurons.json --measure"
    out.print("[red]Nothing was measured on it yet: this bundle must not be shipped.[/]")
    out.print(f"measure it: {again}", soft_wrap=True, highlight=False)


def show_profile(found: Profile) -> None:
    """An engine's slowest operators, and its time beside what the machine can do."""
    out, table = Console(), table_of("Module", "Operator", "ms", "Share")
    for row in found.rows[:_ROWS]:
        table.add_row(escape(row.module or "–"), row.operator, f"{row.ms:.3f}", f"{row.share:.1%}")
    rest = found.rows[_ROWS:]
    if rest:
        table.add_row(f"{len(rest)} others", "", f"{sum(row.ms for row in rest):.3f}", f"{sum(row.share for row in rest):.1%}")
    out.print(table)
    threads = f"{found.threads} thread{'s' if found.threads > 1 else ''}"
    out.print(f"\n{found.component} in {found.backend}, {found.precision}, {threads}: {found.latency_ms:.1f} ms a call", highlight=False)
    rates = f"{found.rates.gflops:,.0f} GFLOP/s, weights read at {found.rates.gbytes:.1f} GB/s"
    if found.limit_ms is None or found.of_limit is None:
        why = "ONNX Runtime, which counts the operations, is not installed"
        if found.integers:
            why = f"{found.integers:.0%} of the products are of integers, whose rate is not measured, so that no best time is known"
        out.print(f"this machine: {rates}; {why}", highlight=False)
        return
    best = f"{found.gflops:,.1f} GFLOP and {found.weights_mb:,.0f} MB of weights take {found.limit_ms:.1f} ms at best"
    out.print(f"this machine: {rates}; {best}: the engine reaches {found.of_limit:.0%} of that", highlight=False)


def _show_engine(out: Console, engine: Engine) -> None:
    out.print(f"[bold]{escape(engine.path)}[/]", soft_wrap=True, highlight=False)
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in _facts(engine):
        grid.add_row(name, escape(value))
    out.print(grid)
    if engine.sidecar is None:
        out.print(f"\nno sidecar {escape(Path(engine.path).stem)}.json beside it: only what its header says is known", highlight=False)
    else:
        _show_tensors(out, engine.sidecar)
    fit = engine.fit
    out.print(f"\n{_VERDICTS[fit.runs]}: {escape(fit.reason)}", highlight=False)
    _show_remedy(out, fit.remedy)


def _facts(engine: Engine) -> list[tuple[str, str]]:
    header, plan = engine.header, engine.sidecar
    if header is None:
        return []
    facts = [
        ("built by", f"{product_of(header.flavour)} {plan.version if plan else header.version}"),
        ("size", size_words(header.size_bytes)),
    ]
    targets = plan.targets if plan else header.targets
    if targets is not None:
        facts.append(("for", gpus_of(header.flavour, targets)))
    if plan is None:
        return facts
    also = {"AMPERE_PLUS": "sm80 and later", "SAME_COMPUTE_CAPABILITY": "the same compute capability"}.get(
        plan.hardware_compatibility or ""
    )
    facts += [("built on", f"{plan.built_on}{f', for {also}' if also else ''}")] if plan.built_on else []
    facts += [("system", plan.system), ("component", f"{plan.component}, {plan.dtype}, from {plan.model}")]
    facts += [("flags", ", ".join(plan.flags))] if plan.flags else []
    facts += [("settings", ", ".join(f"{name} = {_word(value)}" for name, value in plan.settings.items()))] if plan.settings else []
    facts += [("refittable", f"{len(plan.refittable)} weights")] if plan.refittable else []
    return facts


def _show_tensors(out: Console, plan: PlanFile) -> None:
    for number, profile in enumerate(plan.profiles, 1):
        table = _table("Input", "Type", "Least", "Usual", "Greatest", title=f"profile {number} of {len(plan.profiles)}")
        for name, tensor in plan.inputs.items():
            table.add_row(escape(name), tensor.dtype, *_shapes(profile.get(name), tensor.dims))
        out.print()
        out.print(table)
    table = _table("Output", "Type", "Shape")
    out.print()
    for name, tensor in plan.outputs.items():
        table.add_row(escape(name), tensor.dtype, _dims(tensor.dims))
    out.print(table)


def _show_sessions(out: Console, sessions: Sequence[Session]) -> None:
    """A line for each ONNX file, of what runs it."""
    if not sessions:
        return
    table = _table("ONNX file", "Run by", "On", "Computes in", "Runs here")
    for each in sessions:
        table.add_row(escape(each.model), f"{RUNTIMES[each.backend]} {each.version}", each.device, each.precision or "–", _RUNS[each.runs])
    out.print()
    out.print(table)


def _show_engines(out: Console, engines: Sequence[Engine]) -> None:
    """A line for each engine, then each reason once, with the engines it is the reason of."""
    if not engines:
        return
    table = _table("Engine", "Type", "Built by", "For", "Size", "Runs here")
    reasons: dict[tuple[str, str, bool | None], list[str]] = {}
    for engine in engines:
        header, plan = engine.header, engine.sidecar
        name = plan.component if plan else Path(engine.path).name
        reasons.setdefault((engine.fit.reason, engine.fit.remedy, engine.fit.runs), []).append(name)
        if header is None:
            table.add_row(escape(name), "–", "–", "–", "–", _RUNS[engine.fit.runs])
            continue
        targets = plan.targets if plan else header.targets
        words = "–" if targets is None else " ".join(targets) or "portable"
        built = f"{product_of(header.flavour)} {plan.version if plan else header.version}"
        table.add_row(escape(name), plan.dtype if plan else "–", built, words, size_words(header.size_bytes), _RUNS[engine.fit.runs])
    out.print()
    out.print(table)
    for (reason, remedy, runs), names in reasons.items():
        if runs and not remedy:
            continue
        out.print(f"\n{escape(', '.join(dict.fromkeys(names)))}: {escape(reason)}", highlight=False)
        _show_remedy(out, remedy)


def _show_remedy(out: Console, remedy: str) -> None:
    if remedy:
        out.print(f"  {escape(remedy)}", soft_wrap=True, highlight=False)  # a command is copied whole


def _shapes(shapes: Shapes | None, dims: Sequence[int | str]) -> tuple[str, str, str]:
    """The three shapes of a profile; one that never changes is said once."""
    if shapes is None or len(set(shapes)) == 1:
        return "", _dims(shapes[0] if shapes else dims), ""
    least, usual, greatest = (_dims(shape) for shape in shapes)
    return least, usual, greatest


def _dims(dims: Sequence[int | str]) -> str:
    return escape("×".join(map(str, dims))) or "scalar"


def _word(value: str | int | bool | None) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


def _table(*columns: str, title: str | None = None) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if column == "Size" else "left", overflow="fold", no_wrap=index == 1)
    return table

"""How results look to people: progress bars on standard error, tables on standard output."""

from __future__ import annotations

__all__ = [
    "Bars",
    "show_build",
    "show_calibration",
    "show_checkpoint",
    "show_comparison",
    "show_diagnosis",
    "show_export",
    "show_paths",
    "show_rebaked",
    "show_times",
    "show_verdict",
    "show_verification",
]

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.status import Status

from nemo_edge.cli.gates import random_words, show_gates, verdict_of
from nemo_edge.cli.screen import Console, show_identity, show_line, table_of
from nemo_edge.system.exits import check_terminated
from nemo_edge.system.progress import Advance, Progress

_WORTH_A_LINE_S, _SILENT_S = 2.0, 60.0
"""Where nobody sees a bar: what a task takes that says one line in the end, and how long one says nothing meanwhile."""
_LEGEND = (
    "p50, p95: half, 95 % of the calls take no longer · ± %: standard deviation over mean · "
    "Of eager's time: round by round, below 1 is faster, in brackets the 95 % interval · Peak MiB: of the whole process"
)
"""Below the tables of times."""
_PHASE = 21
"""Letters of a phase's name that fit beside a bar in a terminal of 80 columns."""


class Bars(Progress):
    """A bar with its ETA for each task, a line for each note, on standard error; where that is no terminal, lines of longer tasks."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._phase: Callable[[str], None] = lambda name: None
        self._shown: Bar | Status | None = None

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Advance]:
        """Show a bar within the context."""
        columns = (
            TextColumn("{task.description:<20}"),
            TextColumn("{task.fields[phase]}", style="dim"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
        )
        started = said = time.monotonic()
        finished = 0
        bar = Bar(*columns, console=self._console, disable=not self._console.is_terminal)
        with self._alone(bar):
            task = bar.add_task(description, total=total, phase="")
            self._phase = lambda name: bar.update(task, phase=escape(name if len(name) <= _PHASE else name[: _PHASE - 1] + "…"))

            def advance(done: int) -> None:
                nonlocal said, finished
                bar.advance(task, done)
                finished, now = finished + done, time.monotonic()
                if not self._console.is_terminal and now - said > _SILENT_S:
                    said = now
                    self.note(f"{description}: {finished} of {total} after {now - started:.0f} s")
                check_terminated()

            yield advance
        self._phase = lambda name: None
        if not self._console.is_terminal and (seconds := time.monotonic() - started) > _WORTH_A_LINE_S:
            self.note(f"{description}: {total} in {seconds:.0f} s")

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Show a mark that turns within the context while no task is open, and nothing where nobody looks."""
        with self._alone(self._console.status(escape(what))):
            yield

    @contextmanager
    def _alone(self, display: Bar | Status) -> Iterator[None]:
        """Show what moves, and take away what does so already meanwhile: a terminal has one last line."""
        former, self._shown = self._shown, display
        if former is not None:
            former.stop()
        try:
            with display:
                yield
        finally:
            self._shown = former
            if former is not None:
                former.start()

    def phase(self, name: str) -> None:
        """Show it beside the bar of the task that is open."""
        self._phase(name)

    def note(self, message: str) -> None:
        """Print one line."""
        self._console.print(escape(message), style="dim", highlight=False, soft_wrap=True)


def show_build(result: Any) -> None:
    """The gates, what became of each memorized prompt, and where the bundle is."""
    out, manifest = Console(), result.manifest
    if result.skipped:
        out.print(f"{escape(result.bundle)} is up to date: nothing has changed, nothing was done.", soft_wrap=True)
    elif manifest.random_weights is None:
        _show_mitigations(out, Path(result.bundle))
    if manifest.random_weights is not None:
        architecture = escape(manifest.random_weights)
        out.print(f"{escape(result.bundle)}: {architecture} with random weights, for measuring and not for shipping", soft_wrap=True)
        out.print(f"what is in it: nemo-edge inspect {escape(result.bundle)}", soft_wrap=True, highlight=False)
        return
    show_gates(out, manifest.gates)
    out.print(f"{escape(result.bundle)}: {verdict_of(manifest)}", soft_wrap=True)
    out.print(f"report: {escape(result.bundle)}/report/index.html", soft_wrap=True, highlight=False)
    show_identity(result.identity)


def show_rebaked(result: Any) -> None:
    """What changed in a bundle's neurons, and what it says of itself now."""
    out, bundle = Console(), escape(result.bundle)
    if not result.changed:
        out.print(f"{bundle} silences these {result.neurons} neurons already: nothing to do.", soft_wrap=True, highlight=False)
    else:
        table = table_of("Value layer", "Before", "Now", "New", "Restored")
        for name, (before, now, new) in result.per_layer.items():
            table.add_row(escape(name.removesuffix(".attn2.to_v")), *map(str, (before, now, new, before - now + new)))
        out.print(table)
        counts = f"{result.neurons} neurons are silenced: {result.silenced} new, {result.restored} have their weights back"
        out.print(f"{counts}; {result.seconds:.1f} s", soft_wrap=True, highlight=False)
    for plan in result.removed:
        out.print(
            f"[yellow]{escape(plan)}[/] was of the former neurons and is gone: build the engine again", soft_wrap=True, highlight=False
        )
    if not result.measured:
        out.print("[red]What was measured was measured with the former neurons: this bundle must not be shipped.[/]")
        out.print(f"measure it again: nemo-edge rebake {bundle} --neurons {bundle}/neurons.json --measure", soft_wrap=True, highlight=False)
        return
    show_gates(out, result.gates)
    out.print(f"{bundle}: {verdict_of(result)}", soft_wrap=True)


def show_calibration(calibration: Any, path: Path) -> None:
    """τ, how many general prompts lie above it, and where the statistics are."""
    table, tau = table_of("τ", "Mean", "Std", "Prompts", "Above τ"), calibration.threshold
    numbers = (f"{tau.value:.3f}", f"{tau.mean:.3f}", f"{tau.std:.3f}", str(calibration.provenance.prompts))
    table.add_row(*numbers, f"{calibration.above} ({calibration.above_rate:.1%})")
    Console().print(table)
    Console().print(f"written to {escape(str(path))}", soft_wrap=True)


def show_export(exported: Sequence[Any], out: Path) -> None:
    """The ONNX files and how they agree with eager."""
    table = table_of("File", "Type", "Opset", "Largest error")
    for e in exported:
        table.add_row(e.model, e.dtype, str(e.opset), f"{max(a.largest_error for a in e.agreement):.1e}")
    Console().print(table)
    Console().print(f"written to {escape(str(out))}", soft_wrap=True)


def show_verification(result: Any) -> None:
    """What is wrong with a bundle's files."""
    out = Console()
    for problem in result.problems:
        out.print(f"[red]{escape(problem)}[/]", soft_wrap=True)
    changed = "refused" if getattr(result, "refused", False) else "not the bundle that was built: build it again"
    state = f"{result.files} files, all as the manifest says" if result.passed else changed
    out.print(f"{escape(result.bundle)}: {state}", soft_wrap=True)
    if result.random_weights is not None:
        out.print(random_words(result.random_weights), soft_wrap=True, highlight=False)


def show_checkpoint(facts: dict[str, Any]) -> None:
    """What a checkpoint holds."""
    out = Console()
    out.print(f"[bold]{escape(facts['source'])}[/] · {facts['pipeline']} · {facts['prediction_type']}", soft_wrap=True)
    table = table_of("Component", "Parameters")
    for name, count in facts["parameters"].items():
        table.add_row(name, f"{count:,}")
    out.print(table)
    table = table_of("Value layer", "Neurons", "Paper's")
    for layer in facts["value_layers"]:
        table.add_row(layer["name"], str(layer["width"]), "yes" if layer["paper"] else "")
    out.print(table)


def show_times(timed: Any, path: Path) -> None:
    """The times that were taken, the gates that follow, and where they are."""
    out = Console()
    _show_latency(out, timed.latency)
    if timed.gates:
        show_gates(out, timed.gates)
        out.print(f"{escape(timed.bundle)}: {verdict_of(timed)}", soft_wrap=True)
    show_paths([path])


def _ms(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.4g}"


def _show_latency(out: Console, found: Any) -> None:
    memory = {c.name: c.peak_memory_mib for c in found.contenders}
    for case in found.cases:
        steps = f", {case.steps} steps" if case.steps else ""
        title = f"{case.target}: batch {case.batch}, {case.height} × {case.width}{steps}"
        table = table_of("", "Runs", "p50 ms", "p95 ms", "± %", "Images/s", "Of eager's time", "Peak MiB", title=title)
        for timing in case.timings:
            ratio = next((r for r in case.ratios if (r.contender, r.reference) == (timing.contender, "eager")), None)
            table.add_row(
                timing.contender,
                str(timing.runs),
                _ms(timing.p50_ms),
                _ms(timing.p95_ms),
                f"[yellow]{timing.variation:.0%}[/]" if timing.noisy else f"{timing.variation:.0%}",
                f"{timing.images_per_s:.3g}",
                f"{ratio.value:.3f} ({ratio.low:.3f}–{ratio.high:.3f})" if ratio else "–",
                f"{memory[timing.contender]:.0f}",
            )
        out.print(table)
        beside = {reference: [r for r in case.ratios if r.reference == reference] for reference in ("eager", "unmitigated")}
        for reference, ratios in beside.items():
            if ratios:
                told = ", ".join(f"{r.contender} {r.words}" for r in sorted(ratios, key=lambda r: r.value))
                out.print(f"beside {reference}: {told}", highlight=False, soft_wrap=True)
    out.print(_LEGEND, style="dim", highlight=False)
    out.print(f"{found.machine.words}; {found.seconds:.0f} s", highlight=False, soft_wrap=True)
    if found.noisy:
        out.print(f"[yellow]noisy, do not trust these alone[/]: {', '.join(found.noisy)}")


def show_comparison(found: Any) -> None:
    """How far two runners are apart, and where the second goes wrong."""
    out, agreement = Console(), found.agreement
    out.print(f"{escape(found.candidate)} against {escape(found.reference)}", soft_wrap=True, highlight=False)
    table = table_of("Step", "t", "One step", "Own output", "Own latents")
    for index, step in enumerate(agreement.steps):
        table.add_row(str(index), f"{step.time:.0f}", f"{step.forced:.1e}", f"{step.output:.1e}", f"{step.latents:.1e}")
    out.print(table)
    lpips = "" if agreement.lpips is None else f", LPIPS {agreement.lpips:.4f}"
    levels = f"{agreement.picture_levels} grey levels"
    out.print(f"pictures: {levels} apart at the most, SSIM {agreement.ssim:.5f}, PSNR {agreement.psnr:.1f} dB{lpips}", soft_wrap=True)
    if found.drift_start is not None:
        out.print(f"the latents drift from step {found.drift_start} on", highlight=False)
    if found.divergence is not None:
        where = found.divergence
        what = f"is off by {where.error:.1e}" if where.finite else "holds an Inf or a NaN"
        place = f"{where.component}, {where.operator} of {where.module or 'the component itself'}"
        out.print(f"[red]first bad tensor:[/] {escape(where.tensor)} ({escape(place)}) {what}", soft_wrap=True)
    verdict = "[green]they agree[/]" if found.passed else "[red]they differ[/]"
    out.print(f"{verdict}: largest error {agreement.largest_error:.1e}, tolerance {found.tolerance:.0e}", soft_wrap=True, highlight=False)


def show_verdict(verdict: Any) -> None:
    """The gates of a bundle that is judged again."""
    out = Console()
    show_gates(out, verdict.gates)
    out.print(
        f"{escape(verdict.bundle)}: {verdict_of(verdict)}{'' if verdict.written else '; the bundle was left as it is'}", soft_wrap=True
    )


def show_diagnosis(diagnosis: Any) -> None:
    """What this machine is, what works on it, and what to do about the rest."""
    out, here = Console(), diagnosis.machine
    out.print(f"nemo-edge {diagnosis.nemo_edge} · Python {here.python} · {escape(here.system)}", highlight=False)
    out.print(f"{escape(here.words)}, {here.memory_gib} GiB memory{'' if here.gpus else ', no NVIDIA GPU'}", highlight=False)
    for gpu in here.gpus:
        told = f"compute capability {gpu.compute_capability}, {gpu.memory_mib} MiB, driver {gpu.driver}"
        out.print(f"{escape(gpu.name)}: {told}", highlight=False)
    sees = f"sees {'a' if diagnosis.torch_sees_gpu else 'no'} GPU"
    linked = f" and TensorRT {diagnosis.onnxruntime_tensorrt}" if diagnosis.onnxruntime_tensorrt else ""
    runtime = f"ONNX Runtime for CUDA {diagnosis.onnxruntime_cuda or '–'}{linked}"
    out.print(f"torch for CUDA {diagnosis.torch_cuda or '–'} ({sees}) · {runtime}\n", highlight=False)
    _show_backends(out, diagnosis.backends)
    for problem in diagnosis.problems:
        colour = "red" if problem.breaks_build else "yellow"
        out.print(f"\n[{colour}]{escape(problem.what)}[/]: {escape(problem.why)}", highlight=False)
    if diagnosis.model is not None:
        _show_footprint(out, diagnosis.model)
    _show_remedies(out, diagnosis)
    if not diagnosis.passed:
        runs = {probe.name for probe in diagnosis.backends if probe.runs}
        but = "" if "torch cpu" in runs or not runs & {"onnxruntime cpu", "openvino"} else ", generate does"
        out.print(f"\n[red]nemo-edge build does not work here[/]{but}: see what to do above")
    elif diagnosis.model is not None and not diagnosis.model.fits:
        out.print("\n[yellow]nemo-edge build works here on the CPU, but the model does not fit[/]")
    else:
        out.print("\n[green]nemo-edge build works here on the CPU[/]")


def show_paths(paths: Sequence[Path]) -> None:
    """One path a line."""
    for path in paths:
        show_line(path)


def _show_backends(out: Console, probes: Sequence[Any]) -> None:
    words = {True: "[green]yes[/]", False: "no", None: "–"}
    table = table_of("Backend", "Version", "Compile", "Run", "Verdict")
    table.columns[-1].header = "Why not"
    for probe in probes:
        name = probe.name + ("" if probe.used_by_build else " *")
        table.add_row(name, probe.version or "–", words[probe.compiles], words[probe.runs], escape(probe.reason))
    out.print(table)
    out.print("* nemo-edge build does not use it", style="dim")


def _show_footprint(out: Console, model: Any) -> None:
    counts = ", ".join(f"{part.name} {part.parameters / 1e6:.1f} M" for part in model.parts)
    room = f"{_gb(model.memory_available_bytes)} of memory, {_gb(model.disk_free_bytes)} of disk in {model.output}"
    out.print(f"\n[bold]{escape(model.model)}[/]: {counts} parameters", highlight=False)
    table = table_of("Recipe", "Localize", "Export", "Measure", "Disk", "Fits")
    for need in model.needs:
        settings = f"{need.dtype}, {'both variants' if need.variants == 2 else 'one variant'}"
        memory = (need.localize_bytes, need.export_bytes, need.measure_bytes)
        sizes = [(size, model.memory_available_bytes) for size in memory] + [(need.disk_bytes, model.disk_free_bytes)]
        cells = [_gb(size) if size <= free else f"[red]{_gb(size)}[/]" for size, free in sizes]
        table.add_row(settings, *cells, "[green]yes[/]" if need.fits else "[red]no[/]")
    out.print(table)
    out.print(f"peaks of memory and the size of the bundle, estimated\nfree: {escape(room)}", style="dim", highlight=False)


def _show_remedies(out: Console, diagnosis: Any) -> None:
    """Each remedy once, with all it mends: a missing driver is behind most of the backends that do not run."""
    found: dict[str, list[str]] = {}
    for probe in diagnosis.backends:
        if probe.remedy:
            found.setdefault(probe.remedy, []).append(probe.name)
    for problem in diagnosis.problems:
        found.setdefault(problem.remedy, []).append(problem.what)
    if diagnosis.model is not None and diagnosis.model.remedy:
        found[diagnosis.model.remedy] = ["the model"]
    if found:
        out.print("\n[bold]What to do[/]")
    for remedy, mended in found.items():
        out.print(f"{escape(', '.join(mended))}:", highlight=False)
        out.print(f"  {escape(remedy)}", soft_wrap=True, highlight=False)  # a command is copied whole


def _gb(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f} GB"


def _show_mitigations(out: Console, bundle: Path) -> None:
    from nemo_edge.measure.bounds import at_most
    from nemo_edge.measure.mitigation import Measurement

    for variant in Measurement.read(bundle).variants:
        title = f"{variant.variant}: before → after, {variant.mitigations[0].seeds} pictures a prompt; ≤ %: copies at the most (95 %)"
        table = table_of("Prompt", "Neurons", "Score", "Copies", "Others", "≤ %", "Random", title=title)
        for m in variant.mitigations:
            copies = f"{m.before.copies} → {m.after.copies}" if m.before.copies is not None else "–"
            others, random = ("–" if count is None else str(count) for count in (m.after.others, m.random.copies))
            bound = at_most(m.after.returned, m.seeds).split()[2] if m.after.compared else "–"
            score = f"{m.score_before:.2f}" + (f" → {m.score_after:.2f}" if m.neurons else "")
            table.add_row(escape(m.prompt), str(m.neurons), score, copies, others, bound, random)
        out.print(table)

"""How what was found in a model looks on a terminal: memorized prompts, detectors, neurons, groups, what attacks bring back."""

from __future__ import annotations

__all__ = ["show_attack", "show_detection", "show_hardened", "show_localizations", "show_smoke"]

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape

from nemo_edge.cli.screen import Console, table_of
from nemo_edge.localization.detectors import PAPER
from nemo_edge.localization.groups import Group
from nemo_edge.localization.localizer import Localization
from nemo_edge.localization.roc import Roc
from nemo_edge.localization.stages import Detected
from nemo_edge.measure.attacks.campaign import Campaign

if TYPE_CHECKING:
    from nemo_edge.hardening.harden import Hardened
    from nemo_edge.release.smoke import Smoke

_PROMPTS = 40
"""Prompts that a table has room for."""


def show_detection(found: Detected, out: Path | None) -> None:
    """The score of each prompt, the highest first where there are many, and how the detectors compare."""
    table, shown = table_of("Prompt", "Score", "Seeds", "Verdict"), list(found.prompts)
    if len(shown) > _PROMPTS:
        shown = sorted(shown, key=lambda each: -each.score)[:_PROMPTS]
    for each in shown:
        verdict = "[red]memorized[/]" if each.memorized else "not memorized"
        table.add_row(escape(each.prompt), f"{each.score:.3f}", str(len(each.seeds)), verdict)
    Console().print(table)
    rest = f"; above, the {_PROMPTS} highest" if len(found.prompts) > _PROMPTS else ""
    Console().print(f"{found.memorized} of {len(found.prompts)} prompts memorized (τ = {found.threshold:.3f}){rest}", highlight=False)
    if found.rocs:
        _show_rocs(found.rocs)
    if out is not None:
        Console().print(f"written to {escape(str(out))}", soft_wrap=True)


def _show_rocs(rocs: Sequence[Roc]) -> None:
    table = table_of("Detector", "Rows", "AUROC", "95 %", "TPR, 1 % FPR", "Paper")
    for each in rocs:
        paper = f"{PAPER[each.detector]:.2f}" if each.detector in PAPER else ""
        table.add_row(each.detector, str(each.rows), f"{each.auroc:.3f}", f"{each.low:.3f}–{each.high:.3f}", f"{each.tpr_at_1:.3f}", paper)
    Console().print(table)


def show_localizations(found: Sequence[Localization], groups: Sequence[Group], out: Path) -> None:
    """The neurons of each prompt, and of each group of them."""
    table = table_of("Prompt", "Score", "Left", "Neurons", "Samples", "s")
    for r in found:
        left = f"{r.refined_score:.3f}" + (" floor" if r.floor else "") if r.memorized else "–"
        numbers = (str(len(r.refined)), str(r.samples), _seconds(r.seconds))
        table.add_row(escape(r.prompt), f"{r.score:.3f}", left, *numbers)
    Console().print(table)
    if groups:
        _show_groups(groups)
    Console().print(f"written to {escape(str(out))}", soft_wrap=True)


def _show_groups(groups: Sequence[Group]) -> None:
    variants = any(group.variants for group in groups)
    table = table_of("Group", "Prompts", "Neurons", *(["Variants", "Leaked", "Now"] if variants else []), "Samples", "s")
    for g in groups:
        leaks = [str(len(each)) for each in (g.variants, g.leaking_before, g.leaking_after)] if variants else []
        prompts = str(sum(not member.variant for member in g.members))
        table.add_row(escape(g.name), prompts, str(len(g.neurons)), *leaks, str(g.samples), _seconds(g.seconds))
    Console().print(table)


def _seconds(took: float | None) -> str:
    """How long it took, where it is known."""
    return "–" if took is None else f"{took:.1f}"


def show_attack(found: Campaign, output: Path) -> None:
    """What came back of each group from each start, by steps, and what may be said of it."""
    table = table_of("Attacked", "With", "Steps", "Returned", "Copies", "Distance")
    for rate in found.rates:
        counts = (f"{rate.count.returned}/{rate.count.of} ({rate.count.bound})", f"{rate.copies}/{rate.drawn}")
        table.add_row(rate.group, rate.way, str(rate.steps or ""), *counts, f"{rate.distance:.3f}")
    out = Console()
    out.print(table)
    pairs = f", of {found.threshold_pairs} unrelated pairs" if found.threshold_pairs else ""
    out.print(f"a copy is at most {found.copy_threshold:.3f} away{pairs}; {found.neurons} neurons silenced; drawn by {found.engine}")
    for level in found.levels:
        out.print(f"[{'red' if level.memories.returned or not level.strong else 'green'}]{escape(level.verdict)}[/]", highlight=False)
    for switch in found.switches:
        out.print(f"[red]{escape(switch.name)}[/] brings every memory back: {escape(switch.who)}", highlight=False)
    out.print(f"written to {escape(str(output))}", soft_wrap=True)


def show_smoke(found: Smoke, output: Path) -> None:
    """That an attack ran at full size, and what it took."""
    out, jobs = Console(), sum(found.attacked.values())
    size = f"{found.height} × {found.width} pixels, a UNet of {found.parameters / 1e6:,.0f} M parameters"
    out.print(f"{jobs} attacks ran on {escape(found.architecture)} with random weights, {size}", highlight=False)
    times = ((found.step_s, "step of an embedding"), (found.batch_s, "batch of a search for text"))
    said = [*(f"{s:.2f} s a {what}" for s, what in times if s is not None), f"{found.peak_memory_gb} GB of memory"]
    out.print(", ".join(said), highlight=False)
    out.print("Nothing is claimed of random weights: they hold no memory.")
    out.print(f"written to {escape(str(output))}", soft_wrap=True)


def show_hardened(found: Hardened, output: Path) -> None:
    """How the attack's loss and that of other pictures went, from the first rounds of each memory to the last."""
    few = min(len(found.rounds), found.prompts)
    table = table_of("Mean loss", f"First {few} rounds", f"Last {few}")
    for name, of in (("of the attack", "attack_loss"), ("of what is forgotten", "forget_loss"), ("of what stays", "keep_loss")):
        losses = [getattr(each, of) for each in found.rounds]
        table.add_row(name, f"{sum(losses[:few]) / few:.4f}", f"{sum(losses[-few:]) / few:.4f}")
    out = Console()
    out.print(table)
    changed = f"{found.changed / 1e6:,.1f} M parameters changed in {len(found.rounds)} rounds"
    out.print(f"{found.neurons} neurons silenced, {changed}", highlight=False)
    out.print("Nothing is claimed yet: `nemo-edge attack` says what comes back.")
    out.print(f"written to {escape(str(output))}", soft_wrap=True)

"""How a dry run looks to people: what a build would be made from, what it would take, what is done already and what would run."""

from __future__ import annotations

__all__ = ["show_plan", "words_of"]

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from nemo_edge.release.build import Plan

_MINUTE_S, _HOUR_S = 60, 3600


def show_plan(plan: Plan) -> None:
    """What a build would do."""
    out = Console()
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, value in _facts(plan):
        facts.add_row(name, value)
    out.print(facts)
    out.print()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("", "Stage", "What it does", "State", "Time"):
        table.add_column(column, overflow="fold")
    for number, stage in enumerate(plan.stages, 1):
        done = plan.up_to_date or stage in plan.done
        state = "[green]done[/]" if done else "would run"
        table.add_row(str(number), stage, escape(plan.forecast.does.get(stage, "")), state, _time(plan, stage, done))
    out.print(table)
    out.print()
    for note in plan.notes:
        out.print(f"note: {escape(note)}", soft_wrap=True, highlight=False)
    out.print(f"{escape(plan.output)}: {_verdict(plan)}", soft_wrap=True, highlight=False)


def words_of(seconds: float) -> str:
    """A time in words: seconds up to two minutes, minutes up to two hours, then hours."""
    if seconds < 2 * _MINUTE_S:
        return f"{seconds:.0f} s"
    return f"{seconds / _MINUTE_S:.0f} min" if seconds < 2 * _HOUR_S else f"{seconds / _HOUR_S:.1f} h"


def _facts(plan: Plan) -> Iterator[tuple[str, str]]:
    found = plan.forecast
    yield "model", escape(os.path.normpath(found.checkpoint))
    if found.room:
        yield "parameters", ", ".join(f"{part} {count / 1e6:,.1f} M" for part, count in found.room.parameters.items())
    if found.memorized:
        pictures = f"{found.with_pictures} with {'its' if found.with_pictures == 1 else 'their'} training picture"
        known = pictures if found.with_pictures else "no training picture known: copies will not be counted"
        yield "prompts", f"{found.memorized} memorized, {known}"
        yield "", f"{found.calibrating} general to calibrate, {found.held_out} to compare"
    if found.height:
        each = f", {found.seeds} of each memorized prompt" if found.memorized else ""
        yield "pictures", f"{found.height} × {found.width} pixels, {found.steps} steps, guidance {found.guidance:g}{each}"
    if found.room:
        stage, peak = max(found.room.memory_bytes.items(), key=lambda item: item[1])
        memory = f"about {_gb(peak)} at the most, to {stage}; {_gb(found.room.memory_free_bytes)} free"
        yield "memory", memory if peak <= found.room.memory_free_bytes else f"[yellow]{memory}[/]"
        disk = f"about {_gb(found.room.disk_bytes)}; {_gb(found.room.disk_free_bytes)} free in {escape(found.room.disk)}"
        yield "disk", disk if found.room.disk_bytes <= found.room.disk_free_bytes else f"[yellow]{disk}[/]"


def _time(plan: Plan, stage: str, done: bool) -> str:
    seconds = plan.forecast.seconds.get(stage)
    if seconds is None:
        return "" if done else "not measured yet"
    return f"took {words_of(seconds)}" if done else f"{words_of(seconds)} last time"


def _verdict(plan: Plan) -> str:
    if plan.up_to_date:
        return "[green]up to date[/], nothing would run"
    left = [stage for stage in plan.stages if stage not in plan.done]
    known = plan.forecast.seconds
    if not left:
        return "every stage is done; it would be put together and judged"
    whole = f", about {words_of(sum(known[s] for s in left))} as last time" if all(stage in known for stage in left) else ""
    return f"would be built, {len(left)} of {len(plan.stages)} stages would run{whole}"


def _gb(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f} GB"

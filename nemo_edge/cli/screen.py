"""The terminal that results are shown on: rich's, on which text from outside is shown as `visible` has it, whatever table it stands in."""

from __future__ import annotations

__all__ = ["Console", "show_identity", "show_line", "size_words", "table_of"]

from rich import console as rich
from rich.segment import Segment
from rich.table import Table

from nemo_edge.system.terminal import visible


class Console(rich.Console):
    """Standard output, or standard error; rich's own colours and movements of the cursor go through."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, force_jupyter=False)  # a notebook shows a terminal's lines; rich's own ways need packages there
        self.push_render_hook(_Hook())


def show_line(text: object) -> None:
    """Print one line as it is, for people and for other programs."""
    print(visible(str(text)))


def show_identity(identity: str) -> None:
    """Print which bundle it is, a line that is the same wherever it is told."""
    show_line(f"identity: {identity}")


def table_of(*columns: str, title: str | None = None) -> Table:
    """Make the table that all results are shown in: the first column is text, the others are numbers and short words."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        left = index == 0 or column in ("Verdict", "sha256")
        table.add_column(column, justify="left" if left else "right", overflow="fold")
    return table


def size_words(size_bytes: float) -> str:
    """Write a size with three digits, in the unit that suits it."""
    for unit in ("B", "kB", "MB"):
        if size_bytes < 999.5:
            return f"{size_bytes:.3g} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.3g} GB"


class _Hook(rich.RenderHook):
    def process_renderables(self, renderables: list[rich.ConsoleRenderable]) -> list[rich.ConsoleRenderable]:
        return [_Shown(each) for each in renderables]


class _Shown:
    """What is printed, each piece of its text as `visible` has it."""

    def __init__(self, renderable: rich.ConsoleRenderable) -> None:
        self._renderable = renderable

    def __rich_console__(self, console: rich.Console, options: rich.ConsoleOptions) -> rich.RenderResult:
        for text, style, control in console.render(self._renderable, options):
            yield Segment(text if control else visible(text), style, control)

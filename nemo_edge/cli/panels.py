"""The groups of commands in the help, and an example of each: one table, in the order of their use.

A command that is not in the table is shown below the groups, without an example. Imports nothing heavy.
"""

from __future__ import annotations

__all__ = ["EXAMPLES", "Panels", "add"]

from collections.abc import Callable
from typing import Any, get_type_hints

import typer
from typer.core import TyperGroup

EXAMPLES: dict[str, dict[str, str]] = {
    "Build": {
        "init": "nemo-edge init ./my-model --prompts memorized.csv --general general.txt",
        "build": "nemo-edge build my-model.toml --dry-run",
        "harden": "nemo-edge harden ./my-model --neurons neurons.json --prompts memorized.csv \\\n    --general general.txt -o ./hardened",
        "export": "nemo-edge export ./my-model --neurons out/neurons.json -o onnx",
        "rebake": "nemo-edge rebake out/my-model --neurons more.json --measure",
        "quantize": "nemo-edge quantize out/my-model --scheme int8 -o out/my-model-int8",
        "compile": "nemo-edge compile out/my-model --backend tensorrt-rtx --target sm86",
    },
    "Find": {
        "calibrate": "nemo-edge calibrate ./my-model general.txt -o statistics.safetensors",
        "detect": "nemo-edge detect ./my-model captions.txt \\\n    --statistics statistics.safetensors -o found",
        "localize": "nemo-edge localize ./my-model memorized.csv \\\n    --statistics statistics.safetensors --mode fast -o out",
    },
    "Engines": {
        "generate": 'nemo-edge generate out/my-model "a red pig" -o pig.png',
        "bench": "nemo-edge bench out/my-model --target unet --batch 1 --batch 4",
        "compare": "nemo-edge compare ./my-model out/my-model:unmitigated",
        "inspect": "nemo-edge inspect out/my-model",
        "verify": "nemo-edge verify out/my-model",
        "sign": "nemo-edge sign out/my-model --key key.pem",
        "revoke": "nemo-edge revoke out/my-model --list revoked.json --key key.pem",
    },
    "Judge": {
        "attack": "nemo-edge attack out/my-model --limit 4 -o attack.json",
        "gate": "nemo-edge gate out/my-model --recipe stricter.toml --junit gates.xml",
        "report": "nemo-edge report out/my-model",
        "audit": "nemo-edge audit http://127.0.0.1:8000 --prompts memorized.csv \\\n    -o audit.json",
    },
    "Serve": {
        "ship": "nemo-edge ship out/my-model --to models",
        "kserve": "nemo-edge kserve models --name pictures --storage s3://bucket/models \\\n    --image triton-nemo-edge",
    },
    "Machine": {"doctor": "nemo-edge doctor --model ./my-model", "clean": "nemo-edge clean out"},
}
"""Group → command → how it may be called; a command that does not fit in a line of 80 goes on as a shell has it."""


class Panels(TyperGroup):
    """The commands in the help under the name of their group, as plain text: what draws boxes takes longer to import than all of it."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The commands in the order of the table; those that are not in it as they were added."""
        added = super().list_commands(ctx)
        listed = [name for examples in EXAMPLES.values() for name in examples if name in added]
        return [*listed, *(name for name in added if name not in listed)]

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write a section for each group, all with the same columns."""
        found = {name: command for name in self.list_commands(ctx) if (command := self.get_command(ctx, name)) and not command.hidden}
        longest = max(map(len, found), default=0)
        sections: dict[str, list[tuple[str, str]]] = {}
        for name, command in found.items():
            panel = getattr(command, "rich_help_panel", None)
            row = (f"{name:<{longest}}", command.get_short_help_str(formatter.width - 6 - longest))
            sections.setdefault(panel if isinstance(panel, str) else "Commands", []).append(row)
        for panel, rows in sections.items():
            with formatter.section(panel):
                formatter.write_dl(rows)


def add(app: typer.Typer, function: Callable[..., Any]) -> None:
    """Put a command into an app, in its group and with its example. What calls itself so not to hide a builtin goes by its first word."""
    function.__annotations__ = get_type_hints(function, include_extras=True)  # typer asks four times, and compiles these texts each time
    name = function.__name__.removesuffix("_engines")
    panel = next((panel for panel, examples in EXAMPLES.items() if name in examples), None)
    example = f"\b\nExample:\n  {EXAMPLES[panel][name]}" if panel else None
    app.command(name, rich_help_panel=panel, epilog=example)(function)

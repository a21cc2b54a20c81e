"""Whether a checkpoint's folder brings code of its own, and how much its configurations ask for: told before diffusers sees the folder.

Some versions of diffusers import a module that lies in a folder before they look whether its class is one of theirs. Names and numbers
alone are read.
"""

from __future__ import annotations

__all__ = ["check_no_code", "unfit_counts"]

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nemo_edge.system.errors import InputError

_CODE = (".py", ".pyc", ".pyd", ".so", ".dll", ".dylib")
_COUNTED = (
    "layers_per_block",
    "transformer_layers_per_block",
    "num_hidden_layers",
    "mid_block_layers",
    "num_attention_heads",
    "up_block_types",
)
_MOST = 256
"""Layers of a block, and blocks: those of XL are 10."""
_WIDEST = 10_000_000
"""Any other number: a vocabulary has 49,408."""


def check_no_code(folder: Path) -> None:
    """Raise `InputError` for a folder in which, or in a part of which (a folder with a configuration), there is a file of code."""
    parts = [folder, *sorted(path for path in folder.iterdir() if any(path.glob("*config.json")))]
    found = next((path for part in parts for path in sorted(part.iterdir()) if path.suffix.lower() in _CODE), None)
    if found is not None:
        raise InputError(
            f"checkpoint {folder}: {found.relative_to(folder)} is code, which nemo-edge does not run and lets no library find: copy the "
            "checkpoint without it"
        )


def unfit_counts(configs: Iterable[Mapping[str, Any]]) -> str:
    """Return what is wrong where a configuration asks for more than a model has, so that making it would not end; nothing else."""
    for config in configs:
        for key, value in config.items():
            most = _MOST if key in _COUNTED else _WIDEST
            if any(number > most for number in _numbers(value)):
                return f"its {key} is {str(value)[:40]}, and nemo-edge takes {most:,} at the most"
    return ""


def _numbers(value: object) -> Iterable[float]:
    """The numbers of a value, in lists too."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, (list, tuple)):
            yield len(one)
            waiting += one
        elif isinstance(one, (int, float)) and not isinstance(one, bool):
            yield one

"""Memory: what this machine has, and how many rows of a UNet and how many pictures work takes together.

How much runs together hangs on the model, the device and the recipe, never on what happens to be free: a matrix product of other rows
may differ in its last bits. What is free only refuses. Knows pixels, no models; torch is imported for CUDA devices alone.
"""

from __future__ import annotations

__all__ = [
    "GB",
    "check_drawing",
    "check_room",
    "learned_rows_at_once",
    "memory_available",
    "pictures_at_once",
    "room_bytes",
    "rows_at_once",
    "search_bytes",
]

import os
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_edge.system.errors import InputError

if TYPE_CHECKING:
    import torch

GB = 10**9
_ROW_EAGER = 950
"""Bytes a pixel of the picture that one row of a UNet's batch takes in eager PyTorch, whose attention keeps no matrix."""
_KEPT_ROW = 610
"""The same of what a search keeps of one row: 159 MB at 512 × 512 (`benchmarks/results/localization.json`)."""
_LEARNED_ROW = 12_000
"""The same of one row that a gradient is taken through: what autograd keeps for it is 2,100 of the demo, 6,000 of Stable Diffusion 1.5 and
10,200 of XL, attention's matrices not counted, which are not kept."""
_ROOM_BYTES = int(2.5 * GB)
"""What rows that run together may take on a CPU, and what is kept of them again: ten rows of 512 × 512, the method's samples."""
_ROOM_SHARE = 4
"""On a CUDA device each may take the part of its whole memory that this divides it into."""
_MOST_ROWS = 64
_BYTES = 3
"""Of a pixel of a finished picture."""
_DRAWN_PIXELS, _DRAWN_AT_MOST = 2 * 512 * 512, 10
"""What a build draws at once, in pixels and in pictures, each of two rows of the UNet with guidance."""


def pictures_at_once(pixels: int) -> int:
    """Return how many pictures of so many pixels a build draws together: two of 512 × 512."""
    return min(_DRAWN_AT_MOST, max(1, _DRAWN_PIXELS // pixels))


def room_bytes(device: torch.device) -> int:
    """Return the bytes that rows which run together may take on a device: the same whatever else runs there."""
    if device.type != "cuda":
        return _ROOM_BYTES
    import torch

    return int(torch.cuda.get_device_properties(device).total_memory) // _ROOM_SHARE


def rows_at_once(pixels: int, room: int = _ROOM_BYTES) -> int:
    """Return how many rows a UNet runs together in eager float32, 1 to 64, for pictures of so many pixels in so many bytes."""
    return max(1, min(_MOST_ROWS, room // (_ROW_EAGER * pixels)))


def learned_rows_at_once(pixels: int, room: int = _ROOM_BYTES) -> int:
    """Return how many rows of a UNet a gradient is taken through together in eager float32: one of 512 × 512 on a CPU, at least one."""
    return max(1, min(_MOST_ROWS, room // (_LEARNED_ROW * pixels)))


def search_bytes(pixels: int, rows: int, kept: int, room: int = _ROOM_BYTES) -> int:
    """Return the bytes that a search takes beside the model: so many rows together, and `kept` rows as far as there is room."""
    return rows * _ROW_EAGER * pixels + min(room, kept * _KEPT_ROW * pixels)


def check_room(device: torch.device, pixels: int, rows: int, kept: int = 0, available: int | None = None) -> None:
    """Raise `InputError` where fewer bytes are free than so many rows take together, and `kept` rows as far as they are kept.

    `available` are the bytes that may be taken, the device's where it is not given.
    """
    if available is None:
        available = _free(device)
    needed = search_bytes(pixels, rows, kept, room_bytes(device))
    if needed > available:
        less = f"set localization.rows below {rows}" + (" and localization.prompts = 1" if kept else "")
        raise InputError(
            f"{rows} rows of the UNet together take about {needed / GB:.1f} GB of memory, and {available / GB:.1f} GB are free on "
            f"{device}: free some, or {less} in the recipe"
        )


def check_drawing(height: int, width: int, together: int, count: int = 0) -> None:
    """Raise `InputError` where fewer bytes are free than `together` pictures of this size take, with guidance, and `count` that are kept.

    What a UNet of many heads takes beside that is not counted: what is refused does not fit, what is let through may still not.
    """
    pixels, free = height * width, memory_available()
    needed = 2 * together * _ROW_EAGER * pixels + max(count, together) * _BYTES * pixels
    if needed > free:
        raise InputError(
            f"{together} pictures of {height} × {width} together take about {needed / GB:.1f} GB of memory or more, and {free / GB:.1f} GB "
            "are free: ask for fewer or smaller ones"
        )


def memory_available(root: Path = Path("/")) -> int:
    """Return the bytes of memory this process may still take: what Linux has available, or less where a control group says so."""
    lines = (_read(root / "proc/meminfo") or "").splitlines()
    limits = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    for limit, used in (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")):
        highest, now = _read(root / "sys/fs/cgroup" / limit), _read(root / "sys/fs/cgroup" / used)
        if highest and now and highest.isdigit() and now.isdigit():
            limits.append(max(int(highest) - int(now), 0))
    if limits:
        return min(limits)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0


def _free(device: torch.device) -> int:
    if device.type != "cuda":
        return memory_available()
    import torch

    return int(torch.cuda.mem_get_info(device)[0])


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None

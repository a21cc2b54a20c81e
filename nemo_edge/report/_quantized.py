"""What was quantized in a bundle, how, and what was left as it is, in rows that people read.

Knows the record that the bundle has of it; nothing of HTML.
"""

from __future__ import annotations

__all__ = ["Kept", "kept_of", "quantized_of"]

from collections.abc import Iterator
from dataclasses import dataclass

from nemo_edge.export.quantization.record import ESTIMATED, Origin, Quantized
from nemo_edge.recipe.quantization import Scheme
from nemo_edge.report._numbers import count, share

_SCHEMES: dict[Scheme, str] = {
    "int8": "weights and activations in 8-bit integers",
    "int8_weights": "weights alone in 8-bit integers",
    "int4_weights": "weights alone in 4-bit integers",
    "fp8": "weights and activations in 8-bit floats (E4M3)",
}
_ENDS = {"least error": "where rounding changes least", "largest": "at the largest value seen"}
_NAMED = 3
"""Modules of a reason that are named."""


@dataclass(frozen=True)
class Kept:
    """Modules that stay in float32 for one reason."""

    why: str
    modules: tuple[str, ...]

    @property
    def named(self) -> str:
        """The first of them."""
        return ", ".join(self.modules[:_NAMED]) + (", …" if len(self.modules) > _NAMED else "")


def quantized_of(record: Quantized) -> tuple[tuple[str, str], ...]:
    """Return the rows, name and value, with what people ask for first at the top."""
    return tuple(_rows(record))


def kept_of(record: Quantized) -> tuple[Kept, ...]:
    """Return what stays in float32 and why, the reason with most modules first."""
    found: dict[str, list[str]] = {}
    for module, why in record.kept.items():
        reason = f"{ESTIMATED} more than {record.settings.error:g}" if why.startswith(ESTIMATED) else why
        found.setdefault(reason, []).append(module)
    ordered = sorted(found.items(), key=lambda each: (-len(each[1]), each[0]))
    return tuple(Kept(why, tuple(modules)) for why, modules in ordered)


def _rows(record: Quantized) -> Iterator[tuple[str, str]]:
    scheme = record.settings.scheme
    yield "Scheme", f"{scheme}: {_SCHEMES[scheme]}"
    yield "Modules", f"{len(record.modules)} quantized, {len(record.kept)} in float32"
    for place, (before, after) in record.sizes_bytes.items():
        yield f"Files of {place}", f"{before / 1e6:,.1f} → {after / 1e6:,.1f} MB ({share(after / before)})"
    for place, error in record.errors.items():
        yield f"What {place} says", f"differs by {share(error)} from the same in float32, on the way to a picture, step by step"
    for place, part in record.integers.items():
        yield f"Work of {place}", f"{share(part)} of its multiplications in integers, in ONNX Runtime on the CPU that quantized it"
    if record.ranges is not None:
        yield "Ranges", _origin(record.ranges)
        end = record.settings.range
        yield "Ranges end", _ENDS.get(end, f"where {end} of the values stay below")


def _origin(origin: Origin) -> str:
    drawn = f"{count(origin.prompts, 'general prompt')} drawn, {origin.steps} steps each, by nemo-edge {origin.version}"
    return f"read of a file: {drawn}" if origin.file else drawn

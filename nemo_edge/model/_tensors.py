"""Whether the files of a folder hold the tensors that its configurations ask for, from the headers alone.

A tensor that is absent is drawn at random by transformers with no more than a warning, and a matrix of whole numbers, quantized with
its scales elsewhere, is taken for the weights themselves: both draw other pictures than the model that was meant.
"""

from __future__ import annotations

__all__ = ["check_tensors", "flat", "unfit_tensors"]

from collections.abc import Mapping, Sequence
from pathlib import Path

from nemo_edge.model._filekinds import read_contents
from nemo_edge.model._opening import quiet, without_weights
from nemo_edge.system.errors import InputError, first_line
from nemo_edge.system.reading import read_json
from nemo_edge.system.weights import WEIGHTED_PARTS, part_entry, weights_of

Shapes = Mapping[str, Sequence[int]]

_FORMER = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
"""What diffusers called the matrices of a VAE's attention before 0.16; it still reads them."""


def check_tensors(folder: Path) -> None:
    """Raise `InputError` unless the parts of a folder that `check_folder` took have each tensor, in its shape and as floats.

    Pickles are left to who loads them: they tell nothing before that.
    """
    index = read_json(folder / "model_index.json", "checkpoint file")
    for part in (part for part in WEIGHTED_PARTS if part_entry(index, part)):
        weights = weights_of(folder / part)
        if weights is None or weights.pickled:
            continue
        held: dict[str, tuple[int, ...]] = {}
        for file in weights.files:
            contents = read_contents(file)
            if contents.quantized:
                raise InputError(f"checkpoint {folder}: {part}/{file.name} is quantized ({contents.quantized}): give the weights as floats")
            held |= contents.shapes
        unfit = unfit_tensors(_wanted(folder, part), {_named(name): shape for name, shape in held.items()})
        if unfit:
            raise InputError(
                f"checkpoint {folder}: its {part} {unfit}, by its config.json: it was not copied whole, or is of another model"
            )


def unfit_tensors(wanted: Shapes, held: Shapes) -> str:
    """Return what is wrong with tensors of these shapes, by name; nothing where each that is wanted is there. More may be there."""
    missing = [name for name in wanted if name not in held]
    if missing:
        return f"lacks {len(missing)} of {len(wanted)} tensors, first {missing[0]}"
    wrong = next((name for name in wanted if tuple(held[name]) != tuple(wanted[name])), None)
    return f"has {wrong} in the shape {tuple(held[wrong])}, expected {tuple(wanted[wrong])}" if wrong else ""


def flat(name: str) -> str:
    """A text encoder's name as all versions of transformers have it."""
    return name.removeprefix("text_model.")


def _wanted(folder: Path, part: str) -> dict[str, tuple[int, ...]]:
    try:
        with quiet():
            module = without_weights(folder, part)
    except InputError:
        raise
    except Exception as error:  # whatever a library makes of a number that it did not expect
        raise InputError(f"checkpoint {folder}: its {part} cannot be made of its config.json: {first_line(error)}") from error
    return {flat(name): tuple(value.shape) for name, value in module.named_parameters()}


def _named(name: str) -> str:
    """A tensor's name today."""
    for former, today in _FORMER.items():
        name = name.replace(former, today) if ".attentions." in name else name
    return flat(name)

"""LoRAs fused into an open pipeline, by diffusers and peft: afterwards the weights are other ones, and the modules the same.

diffusers leaves out without a word what it has no module for; here each layer that a file has must be found.
"""

from __future__ import annotations

__all__ = ["fuse_"]

import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from nemo_edge.model._filekinds import is_lora, read_contents
from nemo_edge.model._opening import quiet
from nemo_edge.recipe.settings import LoraSettings
from nemo_edge.system.errors import InputError, MissingDependency, first_line
from nemo_edge.system.files import check_lora

_PLAIN = re.compile(r"(lora_(up|down)|lora_[AB]|lora\.(up|down)|lora_linear_layer\.(up|down))\.weight$|_lora\.(up|down)\.weight$|\.alpha$")
"""The tensors of a layer: down, up, and the alpha that scales them."""
_DOWN = re.compile(r"(\bdown|lora_down|lora_A)\.weight$")
_UP = re.compile(r"(\bup|lora_up|lora_B)\.weight$")
_FOREIGN = {"dora_scale": "a DoRA", "hada_w": "a LoHa", "lokr_w": "a LoKr", "oft_": "an OFT", "lora_mid": "a LoCon of Tucker form"}


def fuse_(pipeline: Any, loras: Sequence[LoraSettings], parts: Collection[str]) -> None:
    """Add each LoRA, times its scale, to the weights of `parts` ("unet", "text_encoder", "text_encoder_2"), one after the other.

    The other parts have no weights, and are only looked at. Raises `InputError` for a file that is no LoRA, and for one that was made
    for another architecture; `MissingDependency` without peft.
    """
    counts = [_check_kind(lora.path) for lora in loras]
    if loras:
        _check_peft()
    for lora, count in zip(loras, counts, strict=True):
        with quiet():
            try:
                pipeline.load_lora_weights(str(lora.path.parent), weight_name=lora.path.name, local_files_only=True)
                _check_fit(lora.path, count, sum(1 for _ in _layers(pipeline)))
                fused = [part for part in pipeline._lora_loadable_modules if part in parts and getattr(pipeline, part, None) is not None]
                if fused:
                    pipeline.fuse_lora(components=fused, lora_scale=lora.scale)
            except InputError:
                raise
            except Exception as error:  # as of `pipeline_from_folder`
                raise _unfit(lora.path, first_line(error)) from error
            pipeline.unload_lora_weights()


def _check_peft() -> None:
    from diffusers.utils import is_peft_available

    if not is_peft_available():
        raise MissingDependency("checkpoint.loras: LoRAs are fused by peft, which is not here: pip install peft")


def _check_kind(path: Path) -> int:
    """How many layers a LoRA's file has."""
    check_lora(path)
    names = read_contents(path).shapes
    if not is_lora(names):
        raise InputError(f"LoRA {path} is no LoRA: none of its tensors is called one (lora_down, lora_A); a whole model is checkpoint.path")
    foreign = next((words for mark, words in _FOREIGN.items() if any(mark in name for name in names)), "")
    other = next((name for name in names if not _PLAIN.search(name)), "")
    if foreign or other:
        raise InputError(f"LoRA {path} is {foreign or f'no plain one (it holds {other})'}: only LoRAs of two matrices a layer are fused")
    down, up = ({half.sub("", name) for name in names if half.search(name)} for half in (_DOWN, _UP))
    if down != up:
        raise InputError(f"LoRA {path} is not whole: of {sorted(down ^ up)[0]}… it has one matrix of two; copy or download it again")
    return len(down)


def _layers(pipeline: Any) -> Iterator[Any]:
    """Every module that has a LoRA now."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for part in pipeline._lora_loadable_modules:
        module = getattr(pipeline, part, None)
        if module is not None:
            yield from (layer for layer in module.modules() if isinstance(layer, BaseTunerLayer))


def _check_fit(path: Path, there: int, found: int) -> None:
    if found != there:
        raise _unfit(path, f"it has {there} layers, of which the checkpoint has {found}")


def _unfit(path: Path, reason: str) -> InputError:
    return InputError(f"LoRA {path} does not fit the checkpoint: {reason}; it was made for another architecture")

"""What a UNet computes before a value layer, kept from one forward and put back in others.

Forwards that differ only in what a value layer gives out are the same up to it: its modules that had ended by then need not
run again. Which these are is read off one forward, so that it holds for every UNet; what is no module (a sum, a
concatenation) is computed again. Knows modules and names, nothing of prompts or scores.
"""

from __future__ import annotations

__all__ = ["Kept", "Prefix", "answering"]

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


@dataclass
class Kept:
    """What the modules of a UNet gave out in one forward, for all of its rows."""

    outputs: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def joined(cls, parts: Sequence[Kept]) -> Kept:
        """What forwards of some rows each gave out, as that of one forward."""
        if len(parts) == 1:
            return parts[0]
        return cls({name: pytree.tree_map(_joined, *(part.outputs[name] for part in parts)) for name in parts[0].outputs})

    def chosen(self, rows: Tensor) -> Kept:
        """That of some of the rows, [R] int64."""
        return Kept(pytree.tree_map(partial(_picked, rows), self.outputs))

    @property
    def size_bytes(self) -> int:
        """The memory it takes; storage that modules share counts once."""
        tensors = [t for t in pytree.tree_leaves(self.outputs) if isinstance(t, Tensor)]
        return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


class Prefix:
    """The order in which the modules of a UNet run, as far as value layers need it.

    `layers` are the names of the value layers in the order they run; `forward` runs the UNet once, on any input.
    """

    def __init__(self, unet: nn.Module, layers: Sequence[str], forward: Callable[[], object]) -> None:
        self._modules = dict(unet.named_modules())
        starts, ends = self._order(forward)
        self.before = [_outermost([name for name, end in ends.items() if end < starts[layer]]) for layer in layers]
        """For each value layer the outermost modules that have ended when it begins."""
        self._needed = sorted({name for names in self.before for name in names})

    @contextmanager
    def keeping(self, kept: Kept) -> Iterator[None]:
        """Within the context what the modules give out replaces what `kept` has of them."""
        with ExitStack() as stack:
            for name in self._needed:
                stack.callback(self._modules[name].register_forward_hook(partial(_keep, kept, name)).remove)
            yield

    def answers(self, layer: int, parts: Sequence[tuple[Kept, Tensor]]) -> dict[nn.Module, Any]:
        """What the modules before value layer number `layer` gave out, for `answering`.

        `parts` are what was kept, and which of its rows ([R], int64) the forward's next R rows go on from.
        """
        return {self._modules[name]: _rows([(kept.outputs[name], rows) for kept, rows in parts]) for name in self.before[layer]}

    def _order(self, forward: Callable[[], object]) -> tuple[dict[str, int], dict[str, int]]:
        """When each module begins and ends; one that is called twice has no one output, and is left out."""
        starts: dict[str, list[int]] = {}
        ends: dict[str, list[int]] = {}
        clock = iter(range(1 << 62))

        def tick(times: dict[str, list[int]], name: str, *_: object) -> None:
            times.setdefault(name, []).append(next(clock))

        with ExitStack() as stack, torch.no_grad():
            for name, module in self._modules.items():
                if name:
                    stack.callback(module.register_forward_pre_hook(partial(tick, starts, name)).remove)
                    stack.callback(module.register_forward_hook(partial(tick, ends, name)).remove)
            forward()
        once = [name for name, times in ends.items() if len(times) == 1]
        return {name: times[0] for name, times in starts.items()}, {name: ends[name][0] for name in once}


@contextmanager
def answering(answers: dict[nn.Module, Any]) -> Iterator[None]:
    """Within the context these modules compute nothing and give out the answer given for each."""
    own = {module: vars(module)["forward"] for module in answers if "forward" in vars(module)}  # that was compiled
    try:
        for module, value in answers.items():
            module.forward = partial(_given, value)
        yield
    finally:
        for module in answers:
            vars(module).pop("forward", None)  # an interrupt may have come before it was given
        for module, forward in own.items():
            module.forward = forward


def _given(value: Any, *_args: object, **_kwargs: object) -> Any:
    return value


def _keep(kept: Kept, name: str, _module: nn.Module, _args: object, output: Any) -> None:
    kept.outputs[name] = output


def _rows(parts: Sequence[tuple[Any, Tensor]]) -> Any:
    """The chosen rows of each output, one after the other."""
    chosen = [pytree.tree_map(partial(_picked, rows), output) for output, rows in parts]
    return chosen[0] if len(chosen) == 1 else pytree.tree_map(_joined, *chosen)


def _picked(rows: Tensor, output: Any) -> Any:
    """Rows of a tensor; the tensor itself where these are all of its rows."""
    if not isinstance(output, Tensor) or torch.equal(rows, torch.arange(len(output))):
        return output
    return output.index_select(0, rows.to(output.device))


def _joined(*outputs: Any) -> Any:
    return torch.cat(outputs) if isinstance(outputs[0], Tensor) else outputs[0]


def _outermost(names: Sequence[str]) -> tuple[str, ...]:
    """Those that are inside of none of the others."""
    known = set(names)
    return tuple(name for name in names if not any(name[:i] in known for i in range(len(name)) if name[i] == "."))

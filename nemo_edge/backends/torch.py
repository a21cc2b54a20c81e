"""Eager PyTorch: the reference that every engine is compared with."""

from __future__ import annotations

__all__ = ["DTYPES", "TorchRunner", "available", "describe", "open_runner"]

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch

from nemo_edge.backends.feeds import check_feed
from nemo_edge.model.component import Component

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""The recipe's name of a type → PyTorch's."""


class TorchRunner:
    """Runs a component's own module. It holds nothing that must be freed."""

    def __init__(self, component: Component) -> None:
        self.component = component
        self.inputs = {port.name: port.dims for port in component.inputs}
        parameter = next(component.module.parameters())
        self._device = parameter.device
        self._dtypes = {port.name: torch.float32 if port.exact else parameter.dtype for port in component.inputs}

    def __call__(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the module without gradients. Raises `InputError` as `Runner` says."""
        check_feed(feed, self.inputs)
        with torch.no_grad():
            outputs = self.component.module(*(self._tensor(feed[name], self._dtypes[name]) for name in self.inputs))
        return {name: value.float().cpu().numpy() for name, value in zip(self.component.outputs, outputs, strict=True)}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return None

    def _tensor(self, array: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(array)).to(self._device)
        return tensor.to(dtype) if tensor.is_floating_point() else tensor


def open_runner(component: Component) -> TorchRunner:
    """Return a runner of `component` on the device its weights are on."""
    return TorchRunner(component)


def available() -> tuple[str, ...]:
    """The devices PyTorch can use here."""
    return ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


def describe() -> dict[str, Any]:
    """Version and devices, for provenance."""
    return {"backend": "torch", "version": torch.__version__, "devices": available(), "threads": torch.get_num_threads()}

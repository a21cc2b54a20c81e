"""What torch's exporter makes of a module before its weights, kept in the user's cache folder: a fine-tune's graph is its base's.

A graph is kept under all that it hangs on: the modules with their settings, the shapes of their weights, what is asked of the exporter, our
code and the versions of the libraries. It is a shortcut only: a file made of a kept graph is held against eager like any other.
"""

from __future__ import annotations

__all__ = ["forget", "trace_key", "traced"]

import hashlib
import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import onnx
import onnx_ir as ir
import onnxscript
import torch
import transformers
from google.protobuf.message import DecodeError
from onnx_ir.tensor_adapters import TorchTensor
from torch import Tensor, nn

import nemo_edge
from nemo_edge.system.errors import InputError
from nemo_edge.system.files import sha256_json, user_cache, write_atomically
from nemo_edge.system.reading import read_bytes

_KEPT = 48
"""Graphs that are kept, of some MB each; those that were not used for the longest go."""

_ELSEWHERE = "weights"
"""In a kept graph, the file of the weights, which there is none of."""

_NOTES = ("_name_or_path", "name_or_path", "_use_default_values", "_diffusers_version", "transformers_version")
"""Settings that say where a module comes from, which its graph does not hang on."""

_DEPTH = 6
"""How far into objects that hold objects a setting is read."""

_UNFIT = (AttributeError, KeyError, RuntimeError, TypeError, ValueError, DecodeError)
"""What is raised for a file that holds no graph of this module."""

_PLAIN = (bool, int, float, str, bytes, type(None), torch.dtype, torch.Size)


def trace_key(module: nn.Module, asked: object) -> str:
    """What the graph of `module` hangs on, as a hash; `asked` is what the exporter is asked, as JSON."""
    versions = [nemo_edge.__version__, *(library.__version__ for library in (torch, onnx, ir, onnxscript, diffusers, transformers))]
    return sha256_json([versions, asked, list(_structure(module))])


def traced(key: str, module: nn.Module, trace: Callable[[], ir.Model]) -> ir.Model:
    """Return the graph kept under `key` with the weights of `module`, or what `trace` makes of it, which is kept.

    Either is read from the same bytes. A cache that cannot be read or written is as one that is empty.
    """
    kept = _kept(key)
    if kept:
        try:
            return _weighted(kept, module)
        except _UNFIT:
            forget(key)
    content = ir.to_proto(_weightless_(trace(), module)).SerializeToString()
    with suppress(InputError):
        write_atomically(_place(key), content)
        _prune(_place(key).parent)
    return _weighted(content, module)


def _kept(key: str) -> bytes:
    """What is kept under `key`; nothing where there is none, or it cannot be read."""
    content = b""
    with suppress(OSError, InputError):
        content = read_bytes(_place(key), most=2**31)
        with suppress(OSError):  # of a cache that others may only read
            os.utime(_place(key))
    return content


def forget(key: str) -> None:
    """Drop the graph that is kept under `key`, where there is one."""
    with suppress(OSError, InputError):
        _place(key).unlink()


def _weighted(content: bytes, module: nn.Module) -> ir.Model:
    """A graph that was kept, with the weights of `module` by their names."""
    own = _tensors(module)
    model: ir.Model = ir.from_proto(onnx.ModelProto.FromString(content))
    if not model.graph.outputs:
        raise ValueError("an empty file is a graph of nothing")
    for name, value in model.graph.initializers.items():
        if _is_elsewhere(value.const_value):
            value.const_value = TorchTensor(own[name], name=name)
    return model


def _weightless_(model: ir.Model, module: nn.Module) -> ir.Model:
    """Take the weights of `module` out of a graph, but for their names and shapes. Return the same graph."""
    own = _tensors(module)
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if name in own and tensor is not None:
            shape = ir.Shape(own[name].shape)
            value.const_value = ir.ExternalTensor(_ELSEWHERE, None, None, tensor.dtype, shape=shape, name=name, base_dir="")
    return model


def _is_elsewhere(tensor: object) -> bool:
    return isinstance(tensor, ir.ExternalTensor) and tensor.location == _ELSEWHERE


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers(remove_duplicate=False))}


def _place(key: str) -> Path:
    return user_cache("traces") / f"{key[:40]}.onnx"


def _prune(folder: Path) -> None:
    """Leave the graphs that were used last."""
    with suppress(OSError):
        by_age = sorted(folder.glob("*.onnx"), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in by_age[_KEPT:]:
            path.unlink(missing_ok=True)


def _structure(module: nn.Module) -> Iterator[object]:
    """All that a graph can hang on but the weights' values: each part's class, settings and tensors, and our code that is run."""
    names = {id(part): name for name, part in module.named_modules()}
    for name, part in module.named_modules(remove_duplicate=False):
        kind = type(part)
        settings = {key: value for key, value in vars(part).items() if key not in ("_parameters", "_buffers", "_modules", "training")}
        yield [name, f"{kind.__module__}.{kind.__qualname__}", _told(settings, names, 0)]
    for name, tensor in _tensors(module).items():
        yield [name, list(tensor.shape), str(tensor.dtype)]
    for source in sorted({inspect.getfile(type(part)) for part in module.modules() if type(part).__module__.startswith("nemo_edge.")}):
        yield hashlib.sha256(Path(source).read_bytes()).hexdigest()


def _told(value: Any, names: Mapping[int, str], depth: int) -> Any:
    """A setting as JSON that is the same in each process: a module by its name, a tensor by its values, an object by what it holds."""
    if isinstance(value, _PLAIN):
        return repr(value)
    inner = partial(_told, names=names, depth=depth + 1)
    if isinstance(value, nn.Module):
        return ["module", names.get(id(value))]
    if isinstance(value, Tensor):
        return [list(value.shape), str(value.dtype), _told(value.detach().cpu().double().numpy(), names, depth)]
    if isinstance(value, np.ndarray):
        return [list(value.shape), str(value.dtype), hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()]
    if isinstance(value, partial):
        return ["partial", inner(value.func), inner(value.args), inner(value.keywords)]
    if isinstance(value, Mapping):
        return {repr(key): inner(each) for key, each in value.items() if key not in _NOTES}
    if isinstance(value, (list, tuple)):
        return [inner(each) for each in value]
    if isinstance(value, (set, frozenset)):
        return sorted(map(repr, value))
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    return [kind, inner(getattr(value, "__dict__", {}))] if depth < _DEPTH else kind

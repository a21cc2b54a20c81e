"""A checkpoint's components as ONNX files, each run against eager before it counts as exported.

Knows torch's exporter and what an ONNX file of ours must hold (names, dynamic dimensions, provenance); not what runs it later.
"""

from __future__ import annotations

__all__ = ["Disagreement", "export_baked", "export_component"]

import copy
import gc
import hashlib
import logging
import os
import shutil
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import asdict
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.export.dynamic_shapes import refine_dynamic_shapes_from_suggested_fixes

from nemo_edge.backends.torch import DTYPES
from nemo_edge.bundle.manifest import staging
from nemo_edge.export._traces import forget, trace_key, traced
from nemo_edge.export._verification import Reference, answered, first_bad, random_feeds, verify
from nemo_edge.graph.agreement import Agreement, Dtype, Exported
from nemo_edge.graph.onnxfile import SCOPES, open_graph
from nemo_edge.graph.unmasking import without_mask
from nemo_edge.graph.valueweights import SILENCED_ROWS, VALUE_DATA, open_value_weights, rows_of, save_rows, silenced_values
from nemo_edge.model.component import VALUE_MASK, Component
from nemo_edge.model.neurons import NeuronSet, ValueLayer
from nemo_edge.recipe.settings import ExportSettings
from nemo_edge.system.errors import ExportError, InputError, first_line
from nemo_edge.system.files import explain, write_atomically

_LARGEST_TRACED = 63
"""From 64 rows on diffusers' Upsample2D changes the memory layout: a branch of eager's, not of the graph, which takes any batch."""


class Disagreement(ExportError):
    """A graph does not do what eager does; `finite` is whether it yields numbers at all."""

    finite: bool = True


def export_component(
    component: Component,
    folder: Path,
    settings: ExportSettings,
    provenance: Mapping[str, str],
    factor: int = 8,
    reference: Reference | None = None,
    separate: Sequence[ValueLayer] = (),
) -> Exported:
    """Write `folder/model.onnx` (weights beside it) and return how it agrees with eager float32.

    Without a `reference`, `component` is in float32 and is that itself; its weights are copied where the export's type is another.
    With one it is in the export's type, and its weights are given up once they are written. `provenance` goes into the file's
    `metadata_props` as `nemo_edge.<key>`; `factor` is the number of pixels of a latent. The weights of the layers in `separate`
    get a file of their own, unless the exporter merged them with others. Raises `ExportError` when the checker refuses the graph,
    `Disagreement` when it does not agree, `InputError` for a full disk; nothing is left then.
    """
    asked = reference or Reference(answered(component, random_feeds(component, settings, factor)), partial(_itself, component))
    tracing = _Tracing(component, settings, factor)

    def write(path: Path) -> None:
        _write(tracing, path, provenance)
        _finish(component.name, path, separate)
        if reference is not None:
            _give_up(component.module)

    try:
        return _verified(component.name, folder, settings, asked, write)
    except ExportError:
        forget(tracing.key)  # should it be the kept graph's fault, the next export traces anew
        raise


def export_baked(
    masked: Path, neurons: NeuronSet, folder: Path, settings: ExportSettings, provenance: Mapping[str, str], reference: Reference
) -> Exported:
    """Write `folder/model.onnx` of a UNet with `neurons` baked out from `masked`, its file with a mask, in the same type.

    It is the same graph but for the mask, so that nothing is traced again; the layers' weights get a file of their own, and what is baked
    out is kept beside `folder`. Raises as `export_component`, and `InputError` where the mask cannot be taken out or the weights of a
    layer are not its alone.
    """
    weights = open_value_weights(open_graph(masked), neurons.layers)

    def write(path: Path) -> None:
        for data in weights.graph.external_files():
            if data.name not in weights.data:  # which are copied with what is baked; small weights are in the graph itself
                shutil.copyfile(data, path.parent / data.name)
        facts = {f"nemo_edge.{key}": value for key, value in provenance.items()}
        weights.write(silenced_values(weights.values, neurons), path.parent, facts)
        write_atomically(path, without_mask(open_graph(path).model, VALUE_MASK).SerializeToString())
        _finish("unet", path, neurons.layers)

    save_rows(folder.parent / SILENCED_ROWS, rows_of(weights.values, neurons))
    return _verified("unet", folder, settings, reference, write)


def _verified(name: str, folder: Path, settings: ExportSettings, asked: Reference, write: Callable[[Path], None]) -> Exported:
    """Have a file written beside `folder`, hold it against eager's answers, and put it in place."""
    with staging(folder) as staged:
        path, started = staged / "model.onnx", time.monotonic()
        try:
            write(path)
        except OSError as error:
            raise explain(error, folder) from error
        written = time.monotonic()
        agreement = verify(path, asked.cases, settings.dtype)
        wrong = next((a for a in agreement if not a.passed), None)
        if wrong:
            raise _disagreement(name, wrong, path, asked, settings.dtype)
        os.replace(staged, folder)
    return Exported(
        component=name,
        model=f"{folder.name}/model.onnx",
        dtype=settings.dtype,
        opset=settings.opset,
        agreement=agreement,
        write_s=round(written - started, 2),
        verify_s=round(time.monotonic() - written, 2),
    )


def _finish(name: str, path: Path, separate: Sequence[ValueLayer]) -> None:
    """Give the weights of some layers their own file, and have the whole checked."""
    if separate:
        with suppress(InputError):  # such a bundle takes no other neurons, which `nemo-edge rebake` says
            open_value_weights(open_graph(path), separate).separate(VALUE_DATA)
    try:
        onnx.checker.check_model(str(path), full_check=False)
    except onnx.checker.ValidationError as error:
        raise ExportError(f"the ONNX checker refuses {name}: {error}") from error


def _give_up(module: nn.Module) -> None:
    """Let go of a module's weights, whoever holds its parameters: onnxscript's rewrite rules keep the last graph they saw."""
    for parameter in module.parameters():
        parameter.data = parameter.new_zeros(()).expand(parameter.shape)
    module.to("meta")
    gc.collect()


def _itself(component: Component) -> Component:
    return component


def _disagreement(name: str, wrong: Agreement, path: Path, reference: Reference, dtype: Dtype) -> Disagreement:
    where = first_bad(reference.eager(), path, next(case for case in reference.cases if case.name == wrong.case), dtype)
    remedy = "export.opset = 18" if dtype == "fp32" else f"export.fp32 = [{name!r}] or export.opset = 18"
    error = Disagreement(
        f"{name}: output {wrong.output} at {wrong.case} is off by {wrong.largest_error:.2g} (largest value "
        f"{wrong.largest_value:.2g}, tolerance {wrong.tolerance:.0e}); {where}: try {remedy}"
    )
    error.finite = wrong.finite
    return error


class _Tracing:
    """A component as torch's exporter is asked for it, and under what its graph before the weights is kept."""

    def __init__(self, component: Component, settings: ExportSettings, factor: int) -> None:
        self.component, self.settings = component, settings
        self.module, self.pinned = _Typed(component, DTYPES[settings.dtype]), settings.pinned(component.sizes, factor)
        self._sizes = {"batch": 2, **_traced_sizes(component), **self.pinned}
        asked = [[[*asdict(port).values()] for port in component.inputs], component.outputs, self._sizes, self.pinned, component.multiples]
        own = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
        self.key = trace_key(self.module, [asked, settings.opset, settings.dtype, own])

    def graph(self) -> ir.Model:
        """What the exporter makes of it before it optimizes."""
        component, settings = self.component, self.settings
        io_dtype = torch.float32 if settings.dtype == "bf16" else DTYPES[settings.dtype]
        example = component.example(**self._sizes)
        arguments = tuple(_tensor(example[port.name], torch.float32 if port.exact else io_dtype) for port in component.inputs)
        free = [{axis: d for axis, d in enumerate(port.dims) if isinstance(d, str) and d not in self.pinned} for port in component.inputs]
        program = torch.onnx.export(
            _trace(self.module, arguments, free, component.multiples),
            dynamo=True,
            opset_version=settings.opset,
            input_names=[port.name for port in component.inputs],
            output_names=list(component.outputs),
            dynamic_shapes=(tuple(free),),
            external_data=True,
            optimize=False,
        )
        assert program is not None
        _strip_(program.model)
        return program.model


def _write(tracing: _Tracing, path: Path, provenance: Mapping[str, str]) -> None:
    component = tracing.component
    try:
        with _quiet():
            program = torch.onnx.ONNXProgram(traced(tracing.key, tracing.module, tracing.graph), None)
            program.optimize()
    except Exception as error:  # the exporter and what it traces raise errors of any class
        raise ExportError(
            f"PyTorch {torch.__version__} cannot export {component.name}: {first_line(error)}; "
            "try export.opset = 18, or pin export.height, export.width and export.batch"
        ) from error
    if "batch" not in tracing.pinned:
        _broadcast(program.model.graph, component)
    _strip_(program.model)
    program.model.metadata_props.update({f"nemo_edge.{key}": value for key, value in provenance.items()})
    program.model.producer_name = "nemo-edge"
    program.save(str(path), external_data=True)
    for value in program.model.graph.initializers.values():
        value.const_value = None  # as `_give_up` says; these are the weights that were transposed


def _strip_(model: ir.Model) -> None:
    """Take out what the exporter notes, in functions and subgraphs too, but for `SCOPES`.

    Its notes are paths of this machine, the code that was traced, and sets in an order that is another in every process.
    """
    functions = tuple(model.functions.values())
    graphs = (*model.graphs(), *(f.graph for f in functions), *(inner for f in functions for inner in f.subgraphs()))
    for graph in graphs:
        for node in graph:
            scopes = node.metadata_props.get(SCOPES)
            _forget_(node, *node.outputs)
            if scopes is not None:
                node.metadata_props[SCOPES] = scopes
        weights = graph.initializers.values()
        _forget_(graph, *graph.inputs, *graph.outputs, *weights, *(w.const_value for w in weights if w.const_value is not None))
    _forget_(model, *functions)


def _forget_(*things: Any) -> None:
    for thing in things:
        thing.metadata_props.clear()
        if thing.doc_string:  # what was read from a file has none, and takes none
            thing.doc_string = None


def _broadcast(graph: ir.Graph, component: Component) -> None:
    """Let an input of one number a row, the time step, be given once for all rows, as diffusers and optimum give it.

    The exporter drops diffusers' own `expand`, since both sizes are named "batch"; and ONNX Runtime, which takes values of
    the same named size to be of the same size, then fails where it reuses the memory of one for the other.
    """
    ports = {value.name: value for value in graph.inputs}
    wide = [ports[port.name] for port in component.inputs if port.dims[0] == "batch" and len(port.dims) > 1]
    for value in (ports[port.name] for port in component.inputs if port.dims == ("batch",) and wide):
        users = tuple(value.uses())
        rows = ir.Value(name=f"{value.name}_rows", shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.INT64))
        each = ir.Value(name=f"{value.name}_of_each_row", shape=value.shape, type=value.type)
        count = ir.node("Shape", wide[:1], {"start": 0, "end": 1}, outputs=[rows], name=f"node_{rows.name}")
        graph.insert_before(graph[0], [count, ir.node("Expand", [value, rows], outputs=[each], name=f"node_{each.name}")])
        for node, index in users:
            node.replace_input_with(index, each)


def _traced_sizes(component: Component) -> dict[str, int]:
    """Sizes to trace with: twice the multiple at least, since the exporter takes a factor of 1 for a constant."""
    found = {name: (size, component.multiples.get(name, 1)) for name, size in component.sizes.items()}
    return {name: max(size // multiple, 2) * multiple for name, (size, multiple) in found.items()}


def _trace(module: nn.Module, arguments: tuple[Tensor, ...], names: Sequence[Mapping[int, str]], multiples: Mapping[str, int]) -> Any:
    """The program of a module whose dimensions `names` are free.

    Given a dimension without its bounds, `torch.onnx.export` traces twice, and a UNet takes most of its time; so does this
    when `multiples` are not all there is to know.
    """

    def free(name: str) -> Any:
        if name == "batch":
            return torch.export.Dim(name, max=_LARGEST_TRACED)
        multiple = multiples.get(name, 1)
        return torch.export.Dim(name) if multiple == 1 else multiple * torch.export.Dim(f"{name}_{multiple}")

    dims = {name: free(name) for axes in names for name in axes.values()}
    shapes = (tuple({axis: dims[name] for axis, name in axes.items()} for axes in names),)
    try:
        return torch.export.export(module, arguments, dynamic_shapes=shapes, strict=False)
    except torch._dynamo.exc.UserError as error:
        refined = refine_dynamic_shapes_from_suggested_fixes(error.msg, shapes)
        return torch.export.export(module, arguments, dynamic_shapes=refined, strict=False)


def _tensor(array: np.ndarray, dtype: torch.dtype) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


class _Typed(nn.Module):
    """A component's module in a dtype, a cast copy of its weights where it has another; bf16 keeps float32 at its borders, and time steps
    are float32 in any."""

    def __init__(self, component: Component, dtype: torch.dtype) -> None:
        super().__init__()
        module = component.module
        self.exact = tuple(port.exact for port in component.inputs)
        self.module = module if next(module.parameters()).dtype == dtype else copy.deepcopy(module).to(dtype)
        self.dtype = dtype

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        if self.dtype != torch.bfloat16:
            return tuple(self.module(*inputs))
        cast = (x.is_floating_point() and not exact for x, exact in zip(inputs, self.exact, strict=True))
        outputs = self.module(*(x.to(self.dtype) if narrow else x for x, narrow in zip(inputs, cast, strict=True)))
        return tuple(x.float() for x in outputs)


@contextmanager
def _quiet() -> Any:
    """The exporter's advice off: it prints to standard output, warns, and logs."""
    names: Sequence[str] = ("torch.onnx", "torch.export", "onnxscript", "torch.onnx._internal.exporter")
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)

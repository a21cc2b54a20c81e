"""How large the activations of a graph become on the way from noise to pictures: it draws them, and counts as it goes.

No activation is kept: the graph itself thins each out and takes its largest value, right after it is made, so that memory grows neither
with the number of prompts nor with the size of pictures.
"""

from __future__ import annotations

__all__ = ["Observed", "observe"]

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from nemo_edge.backends.onnxruntime import OnnxRuntimeRunner
from nemo_edge.export.quantization.ranges import APART, COUNTED, Histogram
from nemo_edge.graph.onnxfile import Graph
from nemo_edge.recipe.settings import SamplingSettings
from nemo_edge.sampling.loop import Pipeline, denoise
from nemo_edge.system.errors import InputError
from nemo_edge.system.files import write_atomically
from nemo_edge.system.progress import Progress

_SOME, _LARGEST = "_some", "_largest"
"""What is told of a tensor: ends of the names of outputs."""
_FLAT, _FIRST, _LAST, _AT_MOST, _ONE, _ZERO = (f"nemo_edge_{name}" for name in ("flat", "first", "last", "at_most", "one", "zero"))
_THIRTY, _APART = "nemo_edge_thirty", "nemo_edge_apart"


class Observed:
    """A runner of a graph that counts what some of its tensors hold; `tensors` maps each to what it is told by."""

    def __init__(self, graph: Graph, tensors: Mapping[str, str], threads: int | None) -> None:
        self._given = {port.name for port in graph.model.graph.input}
        self._outputs = {port.name for port in graph.model.graph.output}
        model = _thinning(graph.model, [name for name in tensors if name not in self._given])
        self._runner = OnnxRuntimeRunner(graph.path, threads=threads, graph=model.SerializeToString(), in_order=True)
        self._tensors = tensors
        self.histograms = {name: Histogram() for name in tensors}

    @property
    def inputs(self) -> Mapping[str, tuple[int | str | None, ...]]:
        """As `Runner` says."""
        return self._runner.inputs

    def __call__(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once and count. Raises `InputError` for what is not finite, told by its module."""
        found = self._runner(feed)
        for name, histogram in self.histograms.items():
            try:
                if name in self._given:
                    histogram.add(feed[name])
                else:
                    histogram.add_some(found[name + _SOME], float(found[name + _LARGEST].max()))
            except ValueError as error:
                raise InputError(f"{self._tensors[name]}: {error}, so that no range holds it") from error
        return {name: found[name] for name in self._outputs}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._runner.__exit__(kind, error, trace)


def _thinning(model: onnx.ModelProto, tensors: Sequence[str]) -> onnx.ModelProto:
    """A graph that has, of each of some tensors, every n-th value and the largest magnitude as outputs, too."""
    changed, wanted = onnx.ModelProto(), {*tensors}
    changed.CopyFrom(model)
    nodes = [each for node in model.graph.node for each in (node, *(n for name in node.output if name in wanted for n in _some_of(name)))]
    changed.graph.ClearField("node")
    changed.graph.node.extend(nodes)
    constants = {_FLAT: [1, -1], _FIRST: [0], _LAST: [np.iinfo(np.int64).max], _AT_MOST: [COUNTED], _ONE: [1]}
    constants |= {_THIRTY: [30], _APART: [*APART]}
    changed.graph.initializer.extend(numpy_helper.from_array(np.array(value, np.int64), name) for name, value in constants.items())
    changed.graph.initializer.append(numpy_helper.from_array(np.float32(0), _ZERO))
    changed.graph.output.extend(
        helper.make_tensor_value_info(name + kind, TensorProto.FLOAT, [1, "some"] if kind == _SOME else [1])
        for name in tensors
        for kind in (_SOME, _LARGEST)
    )
    return changed


def _some_of(name: str) -> Iterator[NodeProto]:
    """The nodes that thin out a tensor: every n-th value, in one row, n as `step_of` has it; and the largest magnitude,
    which is made not a number where any value is not finite, as a maximum would not tell."""

    def node(kind: str, inputs: Sequence[str], output: str, **attributes: int) -> NodeProto:
        return helper.make_node(kind, inputs, [name + output], f"{name}{output}", **attributes)

    yield node("Reshape", [name, _FLAT], "_flat")
    yield node("Size", [name], "_size")
    yield node("Div", [f"{name}_size", _AT_MOST], "_times")
    yield node("Add", [f"{name}_times", _ONE], "_least")
    yield node("Mod", [f"{name}_least", _THIRTY], "_rest")
    yield node("Gather", [_APART, f"{name}_rest"], "_more")
    yield node("Add", [f"{name}_least", f"{name}_more"], "_step")
    yield node("Slice", [f"{name}_flat", _FIRST, _LAST, _ONE, f"{name}_step"], _SOME)
    yield node("Abs", [f"{name}_flat"], "_magnitudes")
    yield node("ReduceMax", [f"{name}_magnitudes", _ONE], "_maximum", keepdims=0)
    yield node("Mul", [f"{name}_flat", _ZERO], "_zeros")
    yield node("ReduceSum", [f"{name}_zeros", _ONE], "_finite", keepdims=0)
    yield node("Add", [f"{name}_maximum", f"{name}_finite"], _LARGEST)


def observe(
    pipeline: Pipeline, unet: Observed, prompts: Sequence[str], seed: int, settings: SamplingSettings, kept: Path, progress: Progress
) -> None:
    """Draw a picture of each prompt, one after the other, and count in `unet`; what is counted is `kept` after each, and gone on from.

    Prompt i is drawn from seed `seed` + i. Raises `InputError` where a value is not finite, with the prompt and the step.
    """
    done = _restored(unet, kept)
    watched = replace(pipeline, unet=unet)
    with progress.task("find the ranges of activations", len(prompts)) as advance:
        advance(done)
        for index in range(done, len(prompts)):
            step = 0
            try:
                for each in denoise(watched, [prompts[index]], [seed + index], settings):
                    step = each.index + 1
            except InputError as error:
                raise InputError(f"{error} (step {step + 1} of {prompts[index]!r})") from error
            _save(unet, index + 1, kept)
            advance(1)


def _save(unet: Observed, done: int, kept: Path) -> None:
    content = BytesIO()
    counts = np.stack([histogram.counts for histogram in unet.histograms.values()])
    largest = np.array([histogram.largest for histogram in unet.histograms.values()])
    np.savez_compressed(content, done=done, counts=counts, largest=largest)
    write_atomically(kept, content.getvalue())


def _restored(unet: Observed, kept: Path) -> int:
    if not kept.is_file():
        return 0
    with np.load(kept) as saved:
        for histogram, counts, largest in zip(unet.histograms.values(), saved["counts"], saved["largest"], strict=True):
            histogram.counts, histogram.largest = counts.copy(), float(largest)
        return int(saved["done"])

"""How large the activations of a graph become on the way from noise to pictures: it draws them, and counts as it goes.

No activation is kept: each forward's are counted and dropped, so that memory does not grow with the number of prompts.
"""

from __future__ import annotations

__all__ = ["Observed", "observe"]

from collections.abc import Mapping, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import onnx

from nemo_edge.backends.onnxruntime import OnnxRuntimeRunner
from nemo_edge.export.quantization.ranges import Histogram
from nemo_edge.graph.onnxfile import Graph
from nemo_edge.recipe.settings import SamplingSettings
from nemo_edge.sampling.loop import Pipeline, denoise
from nemo_edge.system.errors import InputError
from nemo_edge.system.files import write_atomically
from nemo_edge.system.progress import Progress


class Observed:
    """A runner of a graph that counts what some of its tensors hold; `tensors` maps each to what it is told by."""

    def __init__(self, graph: Graph, tensors: Mapping[str, str], threads: int | None) -> None:
        model = onnx.ModelProto()
        model.CopyFrom(graph.model)
        self._given, outputs = {port.name for port in model.graph.input}, {port.name for port in model.graph.output}
        inside = [name for name in tensors if name not in self._given | outputs]
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inside)
        self._runner = OnnxRuntimeRunner(graph.path, threads=threads, graph=model.SerializeToString())
        self._tensors, self._outputs = tensors, outputs
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
                histogram.add(feed[name] if name in self._given else found[name])
            except ValueError as error:
                raise InputError(f"{self._tensors[name]}: {error}, so that no range holds it") from error
        return {name: found[name] for name in self._outputs}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._runner.__exit__(kind, error, trace)


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

"""Whether an exported graph does what eager float32 does: on random feeds, and along a denoising trajectory.

What eager answers is a value that can be kept, so that the model in float32 and the graph need not be in memory together.
"""

from __future__ import annotations

__all__ = [
    "Case",
    "Reference",
    "answered",
    "check_finite",
    "first_bad",
    "largest_values",
    "prompt_feeds",
    "random_feeds",
    "read_cases",
    "trajectory",
    "verify",
    "write_cases",
]

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import inf, isnan
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import onnx
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

from nemo_edge.backends.onnxruntime import OnnxRuntimeRunner
from nemo_edge.backends.torch import open_runner
from nemo_edge.graph.agreement import TOLERANCES, Agreement, Dtype
from nemo_edge.graph.onnxfile import module_path
from nemo_edge.measure.divergence import EagerProbe, GraphProbe, first_divergence, first_not_finite
from nemo_edge.model.component import Component
from nemo_edge.model.configuration import Configuration
from nemo_edge.recipe.settings import ExportSettings, SamplingSettings
from nemo_edge.sampling.loop import Pipeline, denoise, guided
from nemo_edge.system.errors import InputError

_STEPS = 3
"""Time steps of the trajectory, from noise to picture: activations are largest at other times in other layers."""
_PROMPT = "a photograph of an astronaut riding a horse"
_GUIDANCE = 7.0
_LATENTS = 24
"""Height and width of the trajectory's latents, at the most; a small picture tells as much of the weights as a large one."""
_SMALLEST = 8
"""Height of the latents of random feeds, where sizes are free and halved twice at the most; the width is half as much again, so that
they are not mistaken."""

Feed = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """A feed and what eager float32 answers to it."""

    name: str
    feed: Feed
    expected: Feed


@dataclass(frozen=True)
class Reference:
    """What a graph is held against: cases, and how to open the component itself in float32 when it fails one."""

    cases: Sequence[Case]
    eager: Callable[[], Component]


def random_feeds(component: Component, settings: ExportSettings, factor: int, batches: Sequence[int] = (1, 3)) -> dict[str, Feed]:
    """Some batch sizes, or the one that is pinned, of small latents where sizes are free."""
    sizes = {name: _small(size, component.multiples.get(name, 1), name == "width") for name, size in component.sizes.items()}
    sizes |= {name: size for name, size in settings.pinned(component.sizes, factor).items() if name != "batch"}
    asked = (settings.batch,) if settings.batch else batches
    return {f"batch {batch}": component.example(batch, seed=batch, **sizes) for batch in asked}


def _small(size: int, multiple: int, wide: bool) -> int:
    least = max(_SMALLEST // multiple, 2) * multiple
    return size if size <= least else least * 3 // 2 // multiple * multiple if wide else least


def prompt_feeds(config: Configuration) -> tuple[Feed, ...]:
    """What each text encoder is fed for the trajectory: the empty prompt, and one of our own."""
    return tuple({"input_ids": ids} for ids in config.token_ids(["", _PROMPT]))


def trajectory(config: Configuration, texts: Sequence[Case], unet: Component, settings: ExportSettings) -> tuple[list[Case], Feed]:
    """Eager's way to one picture, and what the decoder is fed at its end; `texts` are the answers to `prompt_feeds`.

    All time steps are one case, a row each with and without the prompt; a pinned batch of as many rows takes them one by one,
    another takes none. Pinned sizes are kept; of free ones a small picture is made.
    """
    height, width = (min(size, _LATENTS) * config.factor for size in config.latent_shape[1:])
    height, width = settings.height or height, settings.width or width
    sampling = SamplingSettings(scheduler="ddim", steps=_STEPS, guidance=_GUIDANCE, height=height, width=width)
    if settings.batch not in (None, 2 if guided(config, sampling) else 1):
        return [], {}
    runner = open_runner(unet)
    pipeline = Pipeline(config, tuple(_Recorded(case) for case in texts), runner, runner)
    steps = list(denoise(pipeline, [_PROMPT], [0], sampling))
    latents = pipeline.decoder_feed(steps[-1].latents_BCHW)
    if settings.batch is not None:
        return [Case(f"time {step.time:.0f}", step.feed, {unet.outputs[0]: step.output_RCHW}) for step in steps], {}
    feed = {name: np.concatenate([step.feed[name] for step in steps]) for name in steps[0].feed}
    expected = {unet.outputs[0]: np.concatenate([step.output_RCHW for step in steps])}
    return [Case("the trajectory", feed, expected)], latents


class _Recorded:
    """A runner that gives the answers of a case again."""

    def __init__(self, case: Case) -> None:
        self.inputs: Mapping[str, tuple[int | str | None, ...]] = {name: array.shape for name, array in case.feed.items()}
        self._answer = case.expected

    def __call__(self, feed: Mapping[str, np.ndarray]) -> Feed:
        return self._answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return None


def answered(component: Component, feeds: Mapping[str, Feed]) -> list[Case]:
    """Run eager on each feed."""
    runner = open_runner(component)
    return [Case(name, feed, runner(feed)) for name, feed in feeds.items()]


def check_finite(component: str, cases: Sequence[Case]) -> None:
    """Raise `InputError` where eager gives no finite numbers itself: no graph can be held against that."""
    for case in cases:
        bad = next((name for name, array in case.expected.items() if not np.isfinite(array).all()), None)
        if bad is not None:
            raise InputError(
                f"{component}: the checkpoint itself gives numbers in {bad} that are not finite, in eager float32 ({case.name}); no file "
                "is made of it: check that diffusers draws with this checkpoint, or take another"
            )


@contextmanager
def largest_values(module: nn.Module) -> Iterator[dict[str, float]]:
    """Within the context, note the largest value (NaN is the largest) that each module inside of one yields, by path, in order."""
    found: dict[str, float] = {}

    def noted(path: str) -> Callable[..., None]:
        def hook(_module: object, _inputs: object, output: object) -> None:
            if isinstance(output, Tensor) and output.is_floating_point():
                value = max(abs(float(end)) for end in output.aminmax())
                found[path] = max(found.get(path, 0.0), inf if isnan(value) else value)

        return hook

    with ExitStack() as stack:
        for name, part in module.named_modules():
            if module_path(name):
                stack.callback(part.register_forward_hook(noted(module_path(name))).remove)
        yield found


def write_cases(path: Path, cases: Sequence[Case]) -> None:
    """Keep cases in a safetensors file."""
    arrays = {
        f"{index}|{case.name}|{kind}|{name}": np.ascontiguousarray(array)
        for index, case in enumerate(cases)
        for kind, arrays in (("feed", case.feed), ("expected", case.expected))
        for name, array in arrays.items()
    }
    save_file(arrays, path)


def read_cases(path: Path) -> list[Case]:
    """Read what `write_cases` wrote."""
    found: dict[int, Case] = {}
    for key, array in load_file(path).items():
        index, name, kind, port = key.split("|")
        case = found.setdefault(int(index), Case(name, {}, {}))
        (case.feed if kind == "feed" else case.expected)[port] = array
    return [found[index] for index in sorted(found)]


def verify(path: Path, cases: Sequence[Case], dtype: Dtype) -> tuple[Agreement, ...]:
    """Run an ONNX file in ONNX Runtime on every case; return how far each output is from eager's.

    A graph in fp16 is run as it is: optimized for a CPU, its weights would be widened to float32, thrice the memory. The
    operators compute in float32 all the same, and hand it on to each other, so that what is too large for fp16 between them
    is not noticed: see `largest_values`.
    A bf16 graph is run with its types widened to float32, its weights as they are, since ONNX Runtime's CPU provider has
    no bf16 kernels.
    """
    with _openable(path, dtype) as openable, OnnxRuntimeRunner(openable, optimized=dtype == "fp32") as runner:
        return tuple(a for case in cases for a in _agreements(case, runner(case.feed), TOLERANCES[dtype]))


def first_bad(component: Component, path: Path, case: Case, dtype: Dtype) -> str:
    """Say which tensor of a graph is the first that is not finite or off by more than the tolerance; `component` is in float32."""
    with _openable(path, dtype) as openable:
        candidate = GraphProbe(openable, case.feed)
        found = first_not_finite(component.name, candidate)
        found = found or first_divergence(component.name, EagerProbe(component, case.feed), candidate, TOLERANCES[dtype])
    if found is None:
        return "no tensor inside of it is off by that much"
    what = f"is off by {found.error:.2g}" if found.finite and found.error is not None else "is not finite"
    return f"the first tensor that {what} is {found.tensor} ({found.operator} of {found.module or 'the model itself'})"


def _agreements(case: Case, got: Feed, tolerance: float) -> Iterator[Agreement]:
    for name, expected in case.expected.items():
        same = expected.shape == got[name].shape
        error = float(np.abs(expected.astype(np.float64) - got[name]).max()) if same else inf
        value = float(np.abs(expected).max())
        yield Agreement(case=case.name, output=name, largest_error=error, largest_value=value, tolerance=tolerance)


@contextmanager
def _openable(path: Path, dtype: Dtype) -> Iterator[Path]:
    """The file itself; for bf16 a temporary copy whose bfloat16 types are float32."""
    if dtype != "bf16":
        yield path
        return
    model = onnx.load(str(path))
    _widen(model.graph)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        wide = Path(folder) / "model.onnx"
        onnx.save(model, str(wide), save_as_external_data=True, location="weights")
        yield wide


def _widen(graph: onnx.GraphProto) -> None:
    wide, narrow = onnx.TensorProto.FLOAT, onnx.TensorProto.BFLOAT16
    for tensor in [*graph.initializer, *(a.t for node in graph.node for a in node.attribute if a.HasField("t"))]:
        if tensor.data_type == narrow:
            values = onnx.numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype") and attribute.i == narrow:
                attribute.i = wide
    for value in [*graph.input, *graph.output, *graph.value_info]:
        if value.type.tensor_type.elem_type == narrow:
            value.type.tensor_type.elem_type = wide

"""New value weights into a TensorRT engine that takes some, in place of building it anew, once it is known to have taken them.

An engine that answers almost as it did may have ignored weights: silencing a few neurons changes less than fp16 rounds. So it
must agree with ONNX Runtime on the new graph, and must have changed as that has. Where it cannot be told, it is built anew.
"""

from __future__ import annotations

__all__ = ["changed_weights", "refit", "took_weights"]

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from nemo_edge.backends.onnxruntime import OnnxRuntimeRunner
from nemo_edge.backends.tensorrt.backend import refit_engine
from nemo_edge.backends.tensorrt.flavours import fit_here
from nemo_edge.backends.tensorrt.plans import PlanFile
from nemo_edge.backends.tensorrt.profiles import random_feed
from nemo_edge.graph.agreement import TOLERANCES
from nemo_edge.graph.onnxfile import open_graph
from nemo_edge.graph.valueweights import open_value_weights
from nemo_edge.model.configuration import Configuration
from nemo_edge.model.neurons import ValueLayer
from nemo_edge.system.errors import ExportError, InputError, MissingDependency, first_line
from nemo_edge.system.progress import Progress

_SHARE = 0.2
"""How much more or less than it should an engine's output may change by new weights; rounding averages out over the output."""


def refit(bundle: Path, former: Path, plan: PlanFile, layers: Sequence[ValueLayer], progress: Progress) -> bool:
    """Give an engine of a bundle that is being made the value weights of its graph, which are not those of the `former` bundle's.

    False where it does not take them, here or at all: it is to be built anew then, and is as it was.
    """
    if not _takes_weights(bundle, plan):
        return False
    weights = changed_weights(former / plan.model, bundle / plan.model, layers)
    if not weights:
        return False
    feed = random_feed(plan.profiles[0])
    expected = [_answer(folder / plan.model, feed, plan.dtype) for folder in (former, bundle)]

    def judge(before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]) -> bool:
        names = plan.outputs
        return all(took_weights(expected[0][n], expected[1][n], before[n], after[n], TOLERANCES[plan.dtype]) for n in names)

    try:
        done = refit_engine(bundle, plan, weights, feed, judge, Configuration.load(bundle, tokenizers=False).factor)
    except (InputError, ExportError, MissingDependency) as error:
        progress.note(f"{plan.plan} cannot be refitted, and is built anew: {error}")
        return False
    except RuntimeError as error:  # PyTorch's: the GPU has no room for the engine's buffers beside what else is on it
        progress.note(f"{plan.plan} cannot be refitted, and is built anew: {first_line(error)}")
        return False
    if done is None:
        progress.note(f"{plan.plan} does not answer as its graph does with the new weights, and is built anew")
    return done is not None


def changed_weights(former: Path, graph: Path, layers: Sequence[ValueLayer]) -> dict[str, np.ndarray]:
    """Return the value weights of a graph that are not those of its `former` self, by their names."""
    before, now = (open_value_weights(open_graph(path), layers).by_name() for path in (former, graph))
    return {name: value for name, value in now.items() if before[name].tobytes() != value.tobytes()}


def took_weights(expected_before: np.ndarray, expected: np.ndarray, before: np.ndarray, after: np.ndarray, tolerance: float) -> bool:
    """Whether an engine answers as it should with new weights, and has changed as it should by them."""
    if expected.shape != after.shape:
        return False
    wanted, after = expected.astype(np.float64), after.astype(np.float64)
    if not np.abs(wanted - after).max() <= tolerance * max(float(np.abs(wanted).max()), 1.0):  # NaN is not
        return False
    change, own = (wanted - expected_before).ravel(), (after - before).ravel()
    size = float(change @ change)
    return size == 0 or bool(abs(float(own @ change) / size - 1) <= _SHARE)


def _takes_weights(bundle: Path, plan: PlanFile) -> bool:
    """Whether an engine's weights can be changed on this machine; ONNX Runtime runs no bf16 on a CPU to hold it against."""
    flags = set(plan.flags)
    refittable = bool(plan.refittable) or "REFIT" in flags
    if plan.backend != "tensorrt" or not refittable or plan.dtype == "bf16" or "VERSION_COMPATIBLE" in flags:
        return False
    return fit_here(bundle, plan).runs is True


def _answer(model: Path, feed: Mapping[str, np.ndarray], dtype: str) -> dict[str, np.ndarray]:
    with OnnxRuntimeRunner(model, optimized=dtype == "fp32") as runner:
        return runner(feed)

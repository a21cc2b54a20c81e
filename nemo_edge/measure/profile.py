"""Where an engine's time goes: its slowest operators by module of the checkpoint, and the time beside what the machine can do at best.

The runtime's own profiler says what an operator takes; the graph says of which module it is. Needs no PyTorch.
"""

from __future__ import annotations

__all__ = ["Profile", "Row", "integer_share", "profile_engine"]

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from nemo_edge.backends import onnxfiles
from nemo_edge.backends.base import Operator, Runner
from nemo_edge.bundle.manifest import open_verified
from nemo_edge.graph.onnxfile import Graph, open_graph
from nemo_edge.measure._rates import Rates, measure_rates
from nemo_edge.model.configuration import Configuration
from nemo_edge.recipe.components import UNET_FOLDERS
from nemo_edge.recipe.recipe import kept_recipe
from nemo_edge.recipe.settings import SamplingSettings
from nemo_edge.recipe.targets import EngineSettings
from nemo_edge.sampling.generate import choose_variant
from nemo_edge.sampling.loop import Pipeline, denoise
from nemo_edge.sampling.pipelines import open_pipeline
from nemo_edge.system.environment import Machine, cores, importable, machine
from nemo_edge.system.errors import InputError
from nemo_edge.system.progress import Advance, Progress

RUNS = 10
_PROMPT = "a"


class Row(BaseModel):
    """An operator of an engine."""

    model_config = ConfigDict(frozen=True)

    module: str
    """Path of the checkpoint's module that it is of; empty for what the runtime made by itself, as the parts of a normalization."""
    operator: str
    """The runtime's kind."""
    ms: float
    share: float
    """Of all operators' time."""


class Profile(BaseModel):
    """An engine's time for one call, by operator, and at best."""

    model_config = ConfigDict(frozen=True)

    schema_version: Literal[1] = 1
    machine: Machine
    component: str
    backend: str
    precision: str
    threads: int
    shapes: dict[str, tuple[int, ...]]
    latency_ms: float
    """The median of calls without the profiler."""
    rows: tuple[Row, ...]
    """The slowest first."""
    gflops: float | None
    """Of matrix products, convolutions and attention, in 10⁹ operations; None where ONNX Runtime is not installed, which counts them."""
    integers: float | None
    """The share of these that the engine does in integers; None where they are not counted."""
    weights_mb: float
    rates: Rates
    limit_ms: float | None
    """What a call takes at best: the products at the measured rate, or the weights read once, whichever is longer.
    None where they are not counted, and where some are of integers, whose rate is not measured."""

    @property
    def of_limit(self) -> float | None:
        """The best time as a share of the latency: 1 is as fast as the machine."""
        return None if self.limit_ms is None else self.limit_ms / self.latency_ms


def profile_engine(
    bundle: Path,
    target: str = "unet",
    *,
    variant: str | None = None,
    batch: int = 1,
    size: tuple[int, int] | None = None,
    threads: int | None = None,
    runs: int = RUNS,
    progress: Progress | None = None,
) -> Profile:
    """Profile a component of a bundle as its recipe's engine runs it, on what a picture's first step feeds it.

    `target` is "text_encoder", "unet" or "vae_decoder"; `size` height and width in pixels. Raises `InputError` for engines of
    TensorRT, whose profiler needs a GPU and is in NVIDIA's own tools, `BundleError` for a bundle that was changed.
    """
    manifest = open_verified(bundle)
    recipe = kept_recipe(manifest.recipe, bundle)
    engine = recipe.engine.model_copy(update={"threads": threads or recipe.engine.threads})
    if engine.flavour is not None:
        raise InputError("TensorRT's engines are profiled by NVIDIA's own tools: `trtexec --loadEngine=PLAN --dumpProfile`, or Nsight")
    chosen = choose_variant(manifest, variant, masked=False)
    sampling = recipe.sampling.model_copy(update={"height": size[0], "width": size[1]} if size else {})
    place = UNET_FOLDERS[chosen] if target == "unet" else target
    with ExitStack() as stack, (progress or Progress()).task("profile", 4) as advance:
        pipeline = open_pipeline(Configuration.load(bundle), bundle, engine, chosen, stack)
        runner, feed = _fed(pipeline, target, batch, sampling)
        latency_ms = _median_ms(runner, feed, runs)
        advance(1)
        found = _profiled(bundle / place / "model.onnx", engine, feed, runs, advance)
    return Profile(
        machine=machine(),
        component=place,
        backend=engine.backend,
        precision=recipe.computed_in,
        threads=engine.threads or cores(),
        shapes={name: tuple(array.shape) for name, array in feed.items()},
        latency_ms=round(latency_ms, 3),
        **found,
    )


def _profiled(model: Path, engine: EngineSettings, feed: Mapping[str, np.ndarray], runs: int, advance: Advance) -> dict[str, Any]:
    """What a profile says of an ONNX file by itself, and of the machine."""
    operators = onnxfiles.profile(model, engine, feed, runs)
    advance(1)
    counted = _macs(model, feed)
    macs = None if counted is None else sum(counted.values())
    advance(1)
    integers = None if counted is None else _share(counted, operators)
    rates = measure_rates(engine)
    advance(1)
    graph = open_graph(model)
    weights = sum(graph.external_files().values()) or model.stat().st_size
    return {
        "rows": tuple(_rows(graph, operators)),
        "gflops": None if macs is None else round(2 * macs / 1e9, 3),
        "integers": integers,
        "weights_mb": round(weights / 1e6, 1),
        "rates": rates,
        "limit_ms": None if macs is None or integers else round(rates.limit_ms(2 * macs, weights), 3),
    }


def _fed(pipeline: Pipeline, target: str, batch: int, sampling: SamplingSettings) -> tuple[Runner, dict[str, np.ndarray]]:
    """A component's runner, and what it is fed for the first step of a picture."""
    prompts = [_PROMPT] * batch
    if target == "text_encoder":
        return pipeline.text[0], {"input_ids": pipeline.config.token_ids(prompts)[0]}
    first = next(denoise(pipeline, prompts, range(batch), sampling))
    if target == "unet":
        return pipeline.unet, first.feed
    if target == "vae_decoder":
        return pipeline.vae, pipeline.decoder_feed(first.latents_BCHW)
    raise InputError(f"{target} is not profiled: take text_encoder, unet or vae_decoder")


def _median_ms(runner: Runner, feed: Mapping[str, np.ndarray], runs: int) -> float:
    times = []
    for _ in range(runs + 1):
        started = time.perf_counter()
        runner(feed)
        times.append((time.perf_counter() - started) * 1e3)
    return statistics.median(times[1:])


def integer_share(model: Path, engine: EngineSettings, feed: Mapping[str, np.ndarray]) -> float | None:
    """Return the share, 0 to 1, of an ONNX file's multiplications that a runtime does in integers: of products, convolutions, attention.

    What the runtime made of an operator is known by its name; one that it hides in another counts as no integers. None where ONNX Runtime,
    which counts, is not installed. Raises as `onnxfiles.open_runner` does.
    """
    counted = _macs(model, feed)
    return None if counted is None else _share(counted, onnxfiles.profile(model, engine, feed, 1))


def _macs(model: Path, feed: Mapping[str, np.ndarray]) -> dict[str, int] | None:
    """Of a call, counted in ONNX Runtime operator by operator as the file has them, by their names in it."""
    if not importable("onnxruntime"):
        return None
    from nemo_edge.backends import onnxruntime

    return {each.name: each.macs for each in onnxruntime.profile(model, "cpu", None, feed, 1, optimized=False) if each.macs}


def _share(counted: Mapping[str, int], operators: Sequence[Operator]) -> float:
    total, names = sum(counted.values()), {name: name for name in counted}
    found = {names.get(each.name) or _within(each.name, names) for each in operators if each.integers}
    return round(sum(counted.get(name, 0) for name in found) / total, 4) if total else 0.0


def _rows(graph: Graph, operators: Sequence[Operator]) -> Iterator[Row]:
    """The operators with the modules they are of, the slowest first."""
    modules, total = graph.modules_of_nodes(), sum(operator.ms for operator in operators)
    for operator in sorted(operators, key=lambda each: -each.ms):
        module = modules.get(operator.name) or _within(operator.name, modules)
        yield Row(module=module, operator=operator.kind, ms=round(operator.ms, 4), share=round(operator.ms / total, 6))


def _within(name: str, nodes: Mapping[str, str]) -> str:
    """What `nodes` has for an operator that a runtime made of others and named after one of them."""
    return nodes.get(max((node for node in nodes if node and node in name), key=len, default=""), "")

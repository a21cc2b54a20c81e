"""Times eager PyTorch and the engines of a bundle side by side, each in a process of its own, taking turns round by round.

A process opens its model once and keeps it, unless memory is short for all of them at once: then it is closed after every turn.
"""

from __future__ import annotations

__all__ = ["Runnable", "bench", "runnables"]

import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from nemo_edge.environment import machine
from nemo_edge.errors import InputError, MissingDependency, NemoEdgeError
from nemo_edge.latency import Case, Clock, Contender, Latency, Ratio, Timing, Visit, ratio_of, timing_of, visit, wall_clock, warm_up
from nemo_edge.progress import Progress
from nemo_edge.recipe import LatencySettings, Recipe, SamplingSettings, Target

_SHARED: tuple[Target, ...] = ("text_encoder", "vae_decoder")
"""Components that all variants of a bundle have in common: one of them is timed."""

_PROMPT = "a photograph of an astronaut riding a horse"
_OVERHEAD = 1.5
"""Memory of an open model, relative to its weights, as this is estimated before it is opened."""


@dataclass(frozen=True)
class Runnable:
    """One way to run the model, as a process of its own can open it."""

    name: str
    kind: Literal["eager", "compiled", "engine"]
    place: str
    """The checkpoint of "eager" and "compiled", the bundle of an "engine"."""
    provider: str = "cpu"
    threads: int | None = None
    dtype: str = "fp32"
    allow_pickle: bool = False
    channels_last: bool = False
    weights_mib: float = 0.0
    targets: tuple[Target, ...] = ("text_encoder", "unet", "vae_decoder", "pipeline")
    """What it is timed in."""
    variant: str = ""
    """Which engines of the bundle; those of its name where it is not given."""


@dataclass(frozen=True)
class _Setup:
    """One case for one contender: what is called."""

    target: Target
    batch: int
    sampling: SamplingSettings


def runnables(bundle: Path, recipe: Recipe, settings: LatencySettings, checkpoint: str | None) -> tuple[Runnable, ...]:
    """Return the contenders of a bundle in the order of their turns: eager, compiled, unmitigated, and its variants.

    `checkpoint` is where eager's weights are; None leaves eager out.
    """
    from nemo_edge.pipelines import UNMITIGATED, has_unmitigated

    engine, export = recipe.engine, recipe.export
    common: dict[str, Any] = {"provider": engine.provider, "threads": settings.threads or engine.threads}
    found = []
    if settings.compiled and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise MissingDependency("torch.compile needs a C++ compiler: install g++, or set latency.compiled = false")
    for name, wanted in (("eager", settings.eager), ("compiled", settings.compiled)):
        if wanted and checkpoint is not None:
            size = _mib(Path(checkpoint), (".safetensors", ".bin", ".ckpt"))
            kind: Literal["eager", "compiled"] = "eager" if name == "eager" else "compiled"
            dtype = "fp32" if engine.provider == "cpu" else export.dtype
            found.append(
                Runnable(name, kind, checkpoint, **common, dtype=dtype, allow_pickle=recipe.checkpoint.allow_pickle, weights_mib=size)
            )
    names = [*([UNMITIGATED] if has_unmitigated(export.variants) else []), *export.variants]
    size = _mib(bundle, (".data", ".onnx")) / max(1, len(export.variants))
    for name in names:
        targets = tuple(t for t in settings.targets if t not in _SHARED or name == export.variants[0])
        if targets:
            found.append(Runnable(name, "engine", str(bundle), **common, dtype=export.dtype, weights_mib=size, targets=targets))
    return tuple(found)


def bench(
    contenders: Sequence[Runnable], sampling: SamplingSettings, settings: LatencySettings, progress: Progress | None = None
) -> Latency:
    """Time every contender in every case, in turns, and return the times with their ratios.

    Raises `InputError` for a size that an engine does not take, `MissingDependency` for a provider or compiler that is not here.
    """
    started, before = time.monotonic(), machine()
    setups = [
        _Setup(target, batch, sampling.model_copy(update={"height": height, "width": width, "steps": settings.steps or sampling.steps}))
        for target in settings.targets
        for batch in settings.batches
        for height, width in settings.sizes or ((sampling.height, sampling.width),)
    ]
    resident = sum(c.weights_mib for c in contenders) * _OVERHEAD < _free_mib()
    with ExitStack() as stack:
        workers = {c.name: stack.enter_context(_worker(c, settings, resident)) for c in contenders}
        for worker in workers.values():
            worker.ask("open")
        shapes = [worker.answer() for worker in workers.values()]
        turns = sum(len(_taking_part(contenders, setup)) for setup in setups) * (settings.runs + 1)
        with (progress or Progress()).task("latency", turns) as advance:
            cases = [
                _case([workers[c.name] for c in _taking_part(contenders, setup)], setup, settings, shapes[0], advance) for setup in setups
            ]
        measured = tuple(worker.call("describe") for worker in workers.values())
    return Latency(
        machine=before,
        after=machine(),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=time.monotonic() - started,
        settings=settings,
        contenders=measured,
        cases=tuple(cases),
    )


def _taking_part(contenders: Sequence[Runnable], setup: _Setup) -> list[Runnable]:
    return [c for c in contenders if setup.target in c.targets]


def _case(
    workers: Sequence[_Worker], setup: _Setup, settings: LatencySettings, shape: tuple[int, int], advance: Callable[[int], None]
) -> Case:
    """Warm every contender up, then let them take turns: A B A B."""
    warm = []
    for worker in workers:
        warm.append(worker.call("warm_up", setup))
        advance(1)
    visits: list[list[Visit]] = [[] for _ in workers]
    for _ in range(settings.runs):
        for worker, found in zip(workers, visits, strict=True):
            found.append(worker.call("visit", setup))
            advance(1)
    timings = tuple(timing_of(w.name, v, setup.batch, heat, settings) for w, v, heat in zip(workers, visits, warm, strict=True))
    return Case(
        target=setup.target,
        batch=setup.batch,
        height=setup.sampling.height or shape[0],
        width=setup.sampling.width or shape[1],
        steps=setup.sampling.steps if setup.target == "pipeline" else None,
        timings=timings,
        ratios=tuple(_ratios(timings)),
    )


def _ratios(timings: Sequence[Timing]) -> Iterator[Ratio]:
    """Every contender against each that stands before it."""
    for place, contender in enumerate(timings):
        for reference in timings[:place]:
            yield ratio_of(contender, reference)


@dataclass
class _Worker:
    """The process of one contender, asked one thing at a time."""

    name: str
    process: Any
    pipe: Any

    def ask(self, what: str, *arguments: object) -> None:
        with suppress(OSError):  # the pipe to a process that was killed; `answer` tells it
            self.pipe.send((what, arguments))

    def answer(self) -> Any:
        try:
            done, value = self.pipe.recv()
        except (EOFError, OSError) as error:
            self.process.join()
            code = self.process.exitcode
            raise InputError(
                f"the process of {self.name} was killed (exit code {code}): is there enough memory? Try fewer targets"
            ) from error
        if not done:
            raise value
        return value

    def call(self, what: str, *arguments: object) -> Any:
        self.ask(what, *arguments)
        return self.answer()


@contextmanager
def _worker(contender: Runnable, settings: LatencySettings, resident: bool) -> Iterator[_Worker]:
    """A fresh process for one contender; leaving the context ends it."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(contender, settings, resident, there), daemon=True)
    process.start()
    there.close()
    try:
        yield _Worker(contender.name, process, here)
    finally:
        process.terminate()
        process.join()


def _serve(contender: Runnable, settings: LatencySettings, resident: bool, pipe: Any) -> None:
    """The life of a process: do what is asked for until it is ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted too, and ends this process
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    stand = _Stand(contender, settings, resident)
    while True:
        try:
            what, arguments = pipe.recv()
            answer = (True, getattr(stand, what)(*arguments))
        except EOFError:
            return
        except NemoEdgeError as error:
            answer = (False, error)
        except Exception as error:  # noqa: BLE001  it is raised again in the parent
            answer = (False, RuntimeError(f"{contender.name}: {type(error).__name__}: {error}"))
        pipe.send(answer)


@dataclass
class _Stand:
    """A contender inside its process."""

    contender: Runnable
    settings: LatencySettings
    resident: bool
    idle_mib: float = 0.0
    device_mib: float | None = None
    pipeline: Any = None
    stack: ExitStack = field(default_factory=ExitStack)
    calls: dict[_Setup, Callable[[], object]] = field(default_factory=dict)

    def open(self) -> tuple[int, int]:
        """Open the model; return the height and width of its own pictures, in pixels."""
        import torch

        from nemo_edge import pipelines  # noqa: F401  what it imports is no part of the model's memory

        self.idle_mib = self.idle_mib or _memory_mib("VmRSS")
        cuda = self.contender.provider != "cpu" and torch.cuda.is_available()
        free = torch.cuda.mem_get_info()[0] if cuda else 0
        self.pipeline = _opened(self.contender, self.stack)
        if cuda:
            self.device_mib = (free - torch.cuda.mem_get_info()[0]) / 2**20
        size: tuple[int, int] = self.pipeline.config.pixel_size
        if not self.resident:
            self._close()
        return size

    def warm_up(self, setup: _Setup) -> tuple[int, bool]:
        """Warm up; return the number of calls and whether their times became stable."""
        found: tuple[int, bool] = self._at_work(setup, lambda call: warm_up(call, self.settings, _clock(self.contender)))
        return found

    def visit(self, setup: _Setup) -> Visit:
        seconds = self.settings.seconds / self.settings.runs
        found: Visit = self._at_work(setup, lambda call: visit(call, seconds, _clock(self.contender)))
        return found

    def describe(self) -> Contender:
        from nemo_edge.backends import onnxruntime
        from nemo_edge.backends import torch as eager

        engine = self.contender.kind == "engine"
        about = onnxruntime.describe() if engine else eager.describe()
        return Contender(
            name=self.contender.name,
            backend=f"{about['backend']} {about['version']}",
            provider=self.contender.provider,
            threads=self.contender.threads or _cores(),
            dtype=self.contender.dtype,
            idle_memory_mib=self.idle_mib,
            peak_memory_mib=_memory_mib("VmHWM"),
            device_memory_mib=self.device_mib,
        )

    def _at_work(self, setup: _Setup, work: Callable[[Callable[[], object]], Any]) -> Any:
        if self.pipeline is None:
            self.pipeline = _opened(self.contender, self.stack)
        if setup not in self.calls:
            self.calls[setup] = _call(self.pipeline, setup)
        found = work(self.calls[setup])
        if not self.resident:
            self._close()
        return found

    def _close(self) -> None:
        self.calls.clear()
        self.pipeline = None
        self.stack.close()


def _opened(contender: Runnable, stack: ExitStack) -> Any:
    from nemo_edge import pipelines
    from nemo_edge.configuration import Configuration

    if contender.kind == "engine":
        bundle, variant = Path(contender.place), contender.variant or contender.name
        return pipelines.open_pipeline(Configuration.load(bundle), bundle, contender.provider, variant, stack, contender.threads)
    import torch

    from nemo_edge.checkpoint import open_checkpoint

    torch.set_num_threads(contender.threads or _cores())
    device = "cpu" if contender.provider == "cpu" else "cuda"
    checkpoint = open_checkpoint(contender.place, device=device, allow_pickle=contender.allow_pickle)
    for module in (checkpoint.unet, checkpoint.vae, *checkpoint.text_encoders) if contender.dtype != "fp32" else ():
        module.to({"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[contender.dtype])
    if contender.channels_last:
        for module in (checkpoint.unet, checkpoint.vae):
            module.to(memory_format=torch.channels_last)
    return pipelines.eager_pipeline(checkpoint, compiled=contender.kind == "compiled")


def _call(pipeline: Any, setup: _Setup) -> Callable[[], object]:
    """What is timed: one component on what the pipeline would feed it, or the pipeline as a whole."""
    from nemo_edge.sampling import denoise, generate

    prompts, seeds, sampling = [_PROMPT] * setup.batch, range(setup.batch), setup.sampling
    if setup.target == "pipeline":
        return lambda: generate(pipeline, prompts, seeds, sampling)
    if setup.target == "text_encoder":
        return lambda: pipeline.encode(prompts, pipeline.config.pixel_size)
    first = next(denoise(pipeline, prompts, seeds, sampling))
    if setup.target == "unet":
        return lambda: pipeline.unet(first.feed)
    feed = pipeline.decoder_feed(first.latents_BCHW)
    return lambda: pipeline.vae(feed)


def _mib(place: Path, suffixes: tuple[str, ...]) -> float:
    files = [place] if place.is_file() else place.rglob("*")
    return sum(p.stat().st_size for p in files if p.suffix in suffixes and p.is_file()) / 2**20


def _free_mib() -> float:
    """Memory that is free for use."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines() if Path("/proc/meminfo").exists() else ():
        if line.startswith("MemAvailable"):
            return float(line.split()[1]) / 2**10
    return float("inf")


def _memory_mib(entry: str) -> float:
    """Memory of this process: resident now (VmRSS) or at the most (VmHWM). NaN where the system does not tell."""
    path = Path("/proc/self/status")
    for line in path.read_text(encoding="ascii").splitlines() if path.exists() else ():
        if line.startswith(entry):
            return float(line.split()[1]) / 2**10
    return float("nan")


def _clock(contender: Runnable) -> Clock:
    """Wall-clock time; on a GPU between two synchronisations, with CUDA events around the call."""
    import torch

    if contender.provider == "cpu" or not torch.cuda.is_available():
        return wall_clock

    def clock(call: Callable[[], object]) -> tuple[float, float]:
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        started = time.perf_counter()
        first.record()
        call()
        last.record()
        torch.cuda.synchronize()
        return (time.perf_counter() - started) * 1e3, first.elapsed_time(last)

    return clock


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

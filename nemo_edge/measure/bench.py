"""Times eager PyTorch and the engines of a bundle side by side, each in a process of its own, taking turns round by round.

A process opens its model once and keeps it, unless memory is short for all of them at once: then it is closed after every turn.
"""

from __future__ import annotations

__all__ = ["bench", "runnables", "unfit"]

import multiprocessing
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nemo_edge.bundle.identity import PLANS
from nemo_edge.measure._contender import OpenContender, Runnable, Setup
from nemo_edge.measure.latency import Case, Latency, Ratio, Timing, Visit, ratio_of, timing_of
from nemo_edge.model.compilation import check_compiler
from nemo_edge.recipe.recipe import Recipe
from nemo_edge.recipe.settings import LatencySettings, SamplingSettings, Target
from nemo_edge.recipe.targets import EngineSettings
from nemo_edge.system.environment import bf16_instructions, gpus, machine
from nemo_edge.system.errors import InputError, NemoEdgeError
from nemo_edge.system.files import weight_bytes
from nemo_edge.system.memory import memory_available
from nemo_edge.system.progress import Progress

_SHARED: tuple[Target, ...] = ("text_encoder", "vae_decoder")
"""Components that all variants of a bundle have in common: one of them is timed."""

_OVERHEAD = 1.5
"""Memory of an open model, relative to its weights, as this is estimated before it is opened."""


def runnables(bundle: Path, recipe: Recipe, settings: LatencySettings, checkpoint: str | None) -> tuple[Runnable, ...]:
    """Return the contenders of a bundle in the order of their turns: eager, compiled, those beside, unmitigated, and its variants.

    `checkpoint` is where eager's weights are; None leaves eager out. Raises `MissingDependency` for a compiler or a runtime that is not
    here.
    """
    from nemo_edge.sampling.pipelines import UNMITIGATED, has_unmitigated

    export = recipe.export
    engine = recipe.engine.model_copy(update={"threads": settings.threads or recipe.engine.threads})
    found = list(_eagers(recipe, settings, engine, checkpoint)) if checkpoint is not None else []
    found += _others(bundle, recipe, settings, engine)
    names = [*([UNMITIGATED] if has_unmitigated(export.variants, engine) else []), *export.variants]
    size = _mib(bundle, PLANS if engine.flavour else (".data", ".onnx")) / max(1, len(export.variants))
    for name in names:
        targets = tuple(t for t in settings.targets if t not in _SHARED or name == export.variants[0])
        if targets:
            found.append(Runnable(name, "engine", str(bundle), engine, dtype=recipe.computed_in, weights_mib=size, targets=targets))
    return tuple(found)


def _eagers(recipe: Recipe, settings: LatencySettings, engine: EngineSettings, checkpoint: str) -> Iterator[Runnable]:
    if settings.compiled:
        check_compiler("latency.compiled")
    size, own = weight_bytes(checkpoint) / 2**20, recipe.checkpoint
    plain = "fp32" if engine.torch_device == "cpu" else recipe.export.dtype
    source: dict[str, Any] = {"allow_pickle": own.allow_pickle, "loras": own.loras, "clip_skip": own.clip_skip}
    if settings.eager:
        yield Runnable("eager", "eager", checkpoint, engine, plain, weights_mib=size, **source)
    if settings.eager and "eager bf16" in settings.beside and plain != "bf16" and not unfit("eager bf16", engine):
        yield Runnable("eager bf16", "eager", checkpoint, engine, "bf16", weights_mib=size / 2, **source)
    if settings.compiled:
        yield Runnable("compiled", "compiled", checkpoint, engine, plain, weights_mib=size, **source)


def _others(bundle: Path, recipe: Recipe, settings: LatencySettings, engine: EngineSettings) -> Iterator[Runnable]:
    """Other runtimes with the files of the first variant, on the CPU."""
    from nemo_edge.backends import onnxfiles

    size = _mib(bundle, (".data", ".onnx")) / max(1, len(recipe.export.variants))
    for name in settings.beside:
        backend, _, precision = name.partition(" ")
        if backend == "eager" or unfit(name, engine):
            continue
        other = EngineSettings(backend=backend, precision=precision or "fp32", threads=engine.threads)  # type: ignore[arg-type]
        onnxfiles.probe(other)
        dtype = recipe.model_copy(update={"engine": other}).computed_in
        yield Runnable(
            name, "engine", str(bundle), other, dtype, weights_mib=size, targets=settings.targets, variant=recipe.export.variants[0]
        )


def unfit(name: str, engine: EngineSettings) -> str:
    """Say why a contender beside a recipe's own would say nothing here: a type that the hardware only imitates. Empty where it would.

    Raises `MissingDependency` where OpenVINO is asked for and not installed.
    """
    backend, _, precision = name.partition(" ")
    if backend == "openvino":
        from nemo_edge.backends.openvino import capabilities

        able = precision in capabilities("cpu")
    else:
        able = precision != "bf16" or engine.torch_device != "cpu" or bf16_instructions()
    return "" if able else f"this CPU has no instructions for {precision}"


def bench(
    contenders: Sequence[Runnable], sampling: SamplingSettings, settings: LatencySettings, progress: Progress | None = None
) -> Latency:
    """Time every contender in every case, in turns, and return the times with their ratios.

    Raises `InputError` for a size that an engine does not take, `MissingDependency` for a provider or compiler that is not here.
    """
    progress, started, before = progress or Progress(), time.monotonic(), machine()
    setups = [
        Setup(target, batch, sampling.model_copy(update={"height": height, "width": width, "steps": settings.steps or sampling.steps}))
        for target in settings.targets
        for batch in settings.batches
        for height, width in settings.sizes or ((sampling.height, sampling.width),)
    ]
    asked = [name for name in settings.beside if settings.eager or name != "eager bf16"]
    left_out: dict[str, str] = {name: why for name in asked for why in (unfit(name, contenders[0].engine),) if why}
    for name, why in left_out.items():
        progress.note(f"{name} is not timed: {why}")
    resident = sum(c.weights_mib for c in contenders) * _OVERHEAD * 2**20 < memory_available()
    with ExitStack() as stack:
        workers = {c.name: stack.enter_context(_worker(c, settings, resident)) for c in contenders}
        shapes = list(_open(workers.values(), at_once=resident and all(c.engine.torch_device == "cpu" for c in contenders)))
        turns = sum(len(_taking_part(contenders, setup)) for setup in setups) * (settings.runs + 1)
        with progress.task("latency", turns) as advance:
            cases = [
                _case([workers[c.name] for c in _taking_part(contenders, setup)], setup, settings, shapes[0], advance) for setup in setups
            ]
        measured = tuple(worker.call("describe") for worker in workers.values())
    return Latency(
        machine=before,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=time.monotonic() - started,
        settings=settings,
        left_out=left_out,
        contenders=measured,
        cases=tuple(cases),
    )


def _open(workers: Iterable[_Worker], at_once: bool) -> Iterator[tuple[int, int]]:
    """Have every contender open its model, all `at_once` or, for want of memory or to tell what each takes, one after the other."""
    if at_once:
        for worker in workers:
            worker.ask("open")
    for worker in workers:
        yield worker.answer() if at_once else worker.call("open")


def _taking_part(contenders: Sequence[Runnable], setup: Setup) -> list[Runnable]:
    return [c for c in contenders if setup.target in c.targets]


def _case(
    workers: Sequence[_Worker], setup: Setup, settings: LatencySettings, shape: tuple[int, int], advance: Callable[[int], None]
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
    state = gpus()  # still warm: clocks, and what throttles them
    timings = tuple(timing_of(w.name, v, setup.batch, heat, settings) for w, v, heat in zip(workers, visits, warm, strict=True))
    return Case(
        target=setup.target,
        batch=setup.batch,
        height=setup.sampling.height or shape[0],
        width=setup.sampling.width or shape[1],
        steps=setup.sampling.steps if setup.target == "pipeline" else None,
        timings=timings,
        ratios=tuple(_ratios(timings)),
        gpus=state,
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
    opened = OpenContender(contender, settings, resident)
    while True:
        try:
            what, arguments = pipe.recv()
            answer = (True, getattr(opened, what)(*arguments))
        except EOFError:
            return
        except NemoEdgeError as error:
            answer = (False, error)
        except Exception as error:  # noqa: BLE001  it is raised again in the parent
            answer = (False, RuntimeError(f"{contender.name}: {type(error).__name__}: {error}"))
        pipe.send(answer)


def _mib(place: Path, suffixes: tuple[str, ...]) -> float:
    files = [place] if place.is_file() else place.rglob("*")
    return sum(p.stat().st_size for p in files if p.suffix in suffixes and p.is_file()) / 2**20

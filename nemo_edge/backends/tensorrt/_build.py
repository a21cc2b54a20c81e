"""Builds one plan, in a process of its own: parses an ONNX file, lets TensorRT work, writes the plan.

A process, because a build cannot be interrupted otherwise: TensorRT asks whether it shall stop only between its steps, and
the longest of them, minutes for a large UNet, is one; and because what it took of memory is given back. Knows neither
recipes nor bundles, and of the two products only the name of their module: a `Job` says it all.
"""

from __future__ import annotations

__all__ = ["Built", "Job", "Phases", "construct", "make_logger", "run_job"]

import importlib
import multiprocessing
import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemo_edge.backends.tensorrt.plans import Shapes
from nemo_edge.system.errors import ExportError, InputError, MissingDependency, NemoEdgeError
from nemo_edge.system.files import explain, write_atomically
from nemo_edge.system.processes import why_ended
from nemo_edge.system.progress import Advance, Progress

_SCALE = 100
"""Units of the bar."""
_LONGEST = 400


@dataclass(frozen=True)
class Job:
    """What is built from what, in TensorRT's own words."""

    title: str
    module: str
    model: Path
    output: Path
    profiles: tuple[Mapping[str, Shapes], ...]
    capabilities: tuple[str, ...] = ()
    """Members of `ComputeCapability`."""
    flags: tuple[str, ...] = ()
    """Members of `BuilderFlag`."""
    cleared: tuple[str, ...] = ()
    """Members of `BuilderFlag` that are set by default, and shall not be."""
    hardware_compatibility: str | None = None
    """Member of `HardwareCompatibilityLevel`."""
    optimization_level: int | None = None
    timing_cache: Path | None = None
    refittable: tuple[str, ...] = ()
    """Weights that can be changed in the finished engine."""


@dataclass(frozen=True)
class Built:
    """What the build was, as TensorRT tells it."""

    version: str
    flags: tuple[str, ...]
    attentions: int
    """Attention operators, which were let fall apart where no kernel does the whole of one (fp32)."""
    notes: tuple[str, ...] = ()


@dataclass
class Phases:
    """Nested phases as one number that only grows: a step of a phase is as much as all of the phases inside of it."""

    _open: dict[str, tuple[str | None, int, int]] = field(default_factory=dict)
    """Phase → its parent, its steps, and those that are done."""
    _reached: float = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase begins."""
        self._open[name] = (parent, max(steps, 1), 0)

    def step(self, name: str, step: int) -> None:
        """Step number `step` of a phase, counted from 0, is done."""
        if name in self._open:
            parent, steps, _ = self._open[name]
            self._open[name] = (parent, steps, step + 1)
            self._reached = max(self._reached, self._fraction(name))

    def finish(self, name: str) -> None:
        """A phase ends, with all its steps or without."""
        if name in self._open:
            self.step(name, self._open[name][1] - 1)
            self._open.pop(name, None)

    @property
    def innermost(self) -> str:
        """The phase that began last of those that have not ended."""
        return next(reversed(self._open), "")

    @property
    def fraction(self) -> float:
        """How much is done, from 0 to 1."""
        return min(self._reached, 1.0)

    def _fraction(self, name: str) -> float:
        parent, steps, done = self._open[name]
        within = min(done / steps, 1.0)
        while parent in self._open:
            parent, steps, done = self._open[parent]
            within = min((done + within) / steps, 1.0)
        return within


def run_job(job: Job, description: str, progress: Progress) -> Built:
    """Build in a process of its own and return what was built; `job.output` is whole then, and not there after any error.

    Raises `InputError` for an ONNX file that cannot be read and for a process that was killed, as Linux does for want of memory,
    `ExportError` for a file that cannot be compiled, `MissingDependency` for a driver that is too old. An interruption ends the
    process at once.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(job, there), daemon=True)
    finished = False
    try:
        process.start()
        there.close()
        with progress.task(description, _SCALE) as advance:
            built = _follow(here, advance, progress)
        finished = True
    except EOFError as error:
        process.join()
        remedy = "most often for want of memory: free some, compile one component at a time, or take smaller profiles"
        raise why_ended(process.exitcode, f"compile {job.model}", remedy) from error
    finally:
        if process.pid is not None:
            process.kill() if not finished else None
            process.join()
        if not finished:
            with suppress(OSError):
                job.output.unlink()
    for note in built.notes:
        progress.note(note)
    return built


def _follow(pipe: Any, advance: Advance, progress: Progress) -> Built:
    """Pass on what the process tells until it has built."""
    done = 0
    while True:
        message = pipe.recv()
        if isinstance(message, BaseException):
            raise message
        if isinstance(message, Built):
            advance(_SCALE - done)
            return message
        reached, phase = message
        advance(reached - done)
        progress.phase(phase)
        done = reached


def _serve(job: Job, pipe: Any) -> None:
    """The life of the process: build, and tell."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted too, and ends this process
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _silence()
    try:
        answer: object = _build(job, pipe)
    except NemoEdgeError as error:
        answer = error
    except OSError as error:
        answer = explain(error, job.output)
    except Exception as error:  # noqa: BLE001  it is raised again in the parent
        answer = RuntimeError(f"{job.title}: {type(error).__name__}: {error}")
    with suppress(OSError):  # the parent is gone
        pipe.send(answer)


def _silence() -> None:
    """Native code prints its errors past the logger, and standard output is for results."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


def _build(job: Job, pipe: Any) -> Built:
    trt: Any = importlib.import_module(job.module)
    logger = make_logger(trt)
    builder = construct(trt, "Builder", job.title, logger)
    network = _parse(trt, builder, logger, job)
    attentions = _allow_decomposition(trt, network)
    for name in job.refittable:
        if not network.mark_weights_refittable(name):
            raise ExportError(f"{job.title} cannot make {name} of {job.model} refittable: set tensorrt.refit = 'all' or 'none'")
    config, notes = _configure(trt, builder, network, job)
    monitor = _make_monitor(trt, pipe)
    config.progress_monitor = monitor
    flags = tuple(name for name, flag in trt.BuilderFlag.__members__.items() if config.get_flag(flag))
    logger.errors.clear()  # a timing cache of another version is complained of, and is no cause of what follows
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ExportError(f"{job.title} {trt.__version__} cannot compile {job.model}: {_build_complaint(logger.errors)}")
    if job.timing_cache:
        write_atomically(job.timing_cache, bytes(config.get_timing_cache().serialize()))
    with job.output.open("xb") as file:
        file.write(plan)
    return Built(trt.__version__, flags, attentions, notes)


def _parse(trt: Any, builder: Any, logger: Any, job: Job) -> Any:
    """The network of an ONNX file, strongly typed: each tensor has the type it has in the file."""
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(1 << int(typed) if typed is not None else 0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(job.model)):
        said = logger.errors or [parser.get_error(i).desc() for i in range(parser.num_errors)]
        raise InputError(f"{job.title} {trt.__version__} cannot read {job.model}: {_line(said)}; export it again, or at export.opset = 18")
    if network.num_outputs == 0 or network.num_inputs == 0:  # what the parser makes of a file that is no ONNX
        raise InputError(f"{job.model} is not an ONNX file with inputs and outputs: export it again")
    return network


def _allow_decomposition(trt: Any, network: Any) -> int:
    """Let attention fall apart into its parts where no kernel does the whole, as for fp32; return how many there are.

    Where there is such a kernel it is taken all the same: the plans of an fp16 UNet are of the same size with this and without.
    """
    kind = getattr(trt.LayerType, "ATTENTION_INPUT", None)
    found = 0
    for layer in map(network.get_layer, range(network.num_layers)):
        if kind is not None and layer.type == kind:
            layer.__class__ = trt.IAttentionInputLayer  # the bindings hand out the base class
            layer.attention.decomposable = True
            found += 1
    return found


def _configure(trt: Any, builder: Any, network: Any, job: Job) -> tuple[Any, tuple[str, ...]]:
    config = builder.create_builder_config()
    for name in job.flags:
        config.set_flag(getattr(trt.BuilderFlag, name))
    for name in job.cleared:
        config.clear_flag(getattr(trt.BuilderFlag, name))
    if job.hardware_compatibility:
        config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, job.hardware_compatibility)
    if job.optimization_level is not None:
        config.builder_optimization_level = job.optimization_level
    if job.capabilities:
        config.num_compute_capabilities = len(job.capabilities)
        for index, name in enumerate(job.capabilities):
            if not config.set_compute_capability(getattr(trt.ComputeCapability, name), index):
                raise InputError(f"{job.title} {trt.__version__} does not compile for {name.lower()}: choose other targets")
    for shapes in job.profiles:
        config.add_optimization_profile(_profile(builder, network, shapes, job))
    return config, _use_timing_cache(config, job) if job.timing_cache else ()


def _profile(builder: Any, network: Any, shapes: Mapping[str, Shapes], job: Job) -> Any:
    profile = builder.create_optimization_profile()
    for tensor in map(network.get_input, range(network.num_inputs)):
        if tensor.name not in shapes:
            raise InputError(f"{job.model} has the input {tensor.name!r}, of which the profile says nothing: it gives {', '.join(shapes)}")
        given = shapes[tensor.name]
        own = tuple(tensor.shape)
        if any(len(s) != len(own) or any(a not in (-1, b) for a, b in zip(own, s, strict=True)) for s in given):
            raise InputError(f"input {tensor.name!r} of {job.model} is {list(own)} (-1: any size), but the profile gives {list(given)}")
        profile.set_shape(tensor.name, *given)
    return profile


def _use_timing_cache(config: Any, job: Job) -> tuple[str, ...]:
    """Set the cache of a former build, or a new one where there is none or it is of another version or GPU."""
    assert job.timing_cache is not None
    former = job.timing_cache.read_bytes() if job.timing_cache.is_file() else b""
    cache = config.create_timing_cache(former) if former else None
    if cache and config.set_timing_cache(cache, False):
        return ()
    config.set_timing_cache(config.create_timing_cache(b""), False)
    return (f"{job.timing_cache} is of another version or GPU, and is made anew",) if former else ()


def construct(trt: Any, kind: str, title: str, logger: Any) -> Any:
    """Return a `Builder` or `Runtime` of TensorRT's. Raises `MissingDependency` where there is none to have, as with an old driver."""
    try:
        return getattr(trt, kind)(logger)
    except TypeError as error:  # pybind11's, for a factory that returned nullptr
        raise MissingDependency(
            f"{title} {trt.__version__} does not start: {_line(logger.errors)}; most often the NVIDIA driver is too old for it: update it"
        ) from error


def make_logger(trt: Any) -> Any:
    """Return a logger of TensorRT's that keeps its error messages in `errors` and says nothing."""
    wrong = (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR)

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in wrong:
                self.errors.append(message)

    return Logger()


def _make_monitor(trt: Any, pipe: Any) -> Any:
    """What tells the parent how far a build is, and ends the build when the parent is gone."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.phases, self.sent, self.alone = Phases(), (0, ""), False

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            self.phases.start(name, parent, steps)
            self.tell()

        def phase_finish(self, name: str) -> None:
            self.phases.finish(name)
            self.tell()

        def step_complete(self, name: str, step: int) -> bool:
            self.phases.step(name, step)
            self.tell()
            return not self.alone

        def tell(self) -> None:
            reached = int(self.phases.fraction * _SCALE), self.phases.innermost
            if reached != self.sent and not self.alone:
                self.sent = reached
                try:
                    pipe.send(reached)
                except OSError:
                    self.alone = True

    return Monitor()


def _build_complaint(errors: list[str]) -> str:
    said = _line(errors)
    if "Could not find any implementation" in said:
        return f"{said}; most often the GPU has too little free memory: free some, or take smaller profiles"
    if "FP32 GEMM is not supported" in said:
        return f"{said}; give its graph another export.dtype than fp32, leave it out of components, or leave sm75 out of targets"
    return f"{said}; try export.opset = 18, or other profiles or targets"


def _line(errors: list[str]) -> str:
    """The first error on one line: it is the cause, those after it what came of it."""
    words = " ".join((errors or ["it gives no reason"])[0].split())
    return words if len(words) <= _LONGEST else words[: _LONGEST - 1] + "…"

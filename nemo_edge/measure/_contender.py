"""One contender inside its own process: it opens its model, warms it up, and takes its turns.

Heavy imports are inside the functions, so that the memory of a process before its model is known.
"""

from __future__ import annotations

__all__ = ["Runnable", "Setup", "OpenContender"]

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from nemo_edge.measure.latency import Clock, Contender, Visit, visit, wall_clock, warm_up
from nemo_edge.recipe.settings import LatencySettings, LoraSettings, SamplingSettings, Target
from nemo_edge.recipe.targets import EngineSettings
from nemo_edge.system.environment import cores

_PROMPT = "a photograph of an astronaut riding a horse"


@dataclass(frozen=True)
class Runnable:
    """One way to run the model, as a process of its own can open it."""

    name: str
    kind: Literal["eager", "compiled", "engine"]
    place: str
    """The checkpoint of "eager" and "compiled", the bundle of an "engine"."""
    engine: EngineSettings = field(default_factory=EngineSettings)
    """What runs the bundle; eager runs on the same device, with as many threads."""
    dtype: str = "fp32"
    allow_pickle: bool = False
    loras: tuple[LoraSettings, ...] = ()
    """What is fused into the checkpoint's weights."""
    clip_skip: int = 0
    """How many of its text encoders' last layers a prompt is read without."""
    channels_last: bool = False
    weights_mib: float = 0.0
    targets: tuple[Target, ...] = ("text_encoder", "unet", "vae_decoder", "pipeline")
    """What it is timed in."""
    variant: str = ""
    """Which engines of the bundle; those of its name where it is not given."""


@dataclass(frozen=True)
class Setup:
    """One case for one contender: what is called."""

    target: Target
    batch: int
    sampling: SamplingSettings


@dataclass
class OpenContender:
    """A contender inside its process."""

    contender: Runnable
    settings: LatencySettings
    resident: bool
    idle_mib: float = 0.0
    device_mib: float | None = None
    pipeline: Any = None
    stack: ExitStack = field(default_factory=ExitStack)
    calls: dict[Setup, Callable[[], object]] = field(default_factory=dict)

    def open(self) -> tuple[int, int]:
        """Open the model; return the height and width of its own pictures, in pixels."""
        from nemo_edge.sampling import pipelines  # noqa: F401  what it imports is no part of the model's memory

        self.idle_mib = self.idle_mib or _memory_mib("VmRSS")
        self._on_device(self._open)
        size: tuple[int, int] = self.pipeline.config.pixel_size
        if not self.resident:
            self._close()
        return size

    def warm_up(self, setup: Setup) -> tuple[int, bool]:
        """Warm up; return the number of calls and whether their times became stable."""
        found: tuple[int, bool] = self._at_work(setup, lambda call: warm_up(call, self.settings, _clock(self.contender)))
        return found

    def visit(self, setup: Setup) -> Visit:
        """Take one turn."""
        seconds = self.settings.seconds / self.settings.runs
        found: Visit = self._at_work(setup, lambda call: visit(call, seconds, _clock(self.contender)))
        return found

    def describe(self) -> Contender:
        """Say what was run, and the memory it took."""
        from nemo_edge.backends import onnxfiles
        from nemo_edge.backends import torch as eager
        from nemo_edge.backends.tensorrt import backend as tensorrt

        engine, runs = self.contender.engine, self.contender.kind == "engine"
        own = tensorrt.describe(engine.flavour) if engine.flavour else onnxfiles.describe(engine)
        about = own if runs else eager.describe()
        return Contender(
            name=self.contender.name,
            backend=f"{about['backend']} {about['version']}",
            provider=own.get("device", engine.provider) if runs and not engine.flavour else engine.torch_device,
            threads=engine.threads or cores(),
            dtype=self.contender.dtype,
            idle_memory_mib=self.idle_mib,
            peak_memory_mib=_memory_mib("VmHWM"),
            device_memory_mib=self.device_mib,
        )

    def _at_work(self, setup: Setup, work: Callable[[Callable[[], object]], Any]) -> Any:
        if self.pipeline is None:
            self._open()
        if setup not in self.calls:
            self.calls[setup] = _call(self.pipeline, setup)
        if not self.resident:
            self.calls[setup]()  # what was just opened is cold
        found = self._on_device(lambda: work(self.calls[setup]))
        if not self.resident:
            self._close()
        return found

    def _open(self) -> None:
        self.pipeline = _opened(self.contender, self.stack)

    def _on_device(self, work: Callable[[], Any]) -> Any:
        """Do some work; what the GPU's memory lost by it is this contender's, since the others rest meanwhile."""
        import torch

        if self.contender.engine.torch_device == "cpu" or not torch.cuda.is_available():
            return work()
        free = torch.cuda.mem_get_info()[0]
        done = work()
        self.device_mib = (self.device_mib or 0.0) + max(0, free - torch.cuda.mem_get_info()[0]) / 2**20
        return done

    def _close(self) -> None:
        self.calls.clear()
        self.pipeline = None
        self.stack.close()


def _opened(contender: Runnable, stack: ExitStack) -> Any:
    from nemo_edge.model.configuration import Configuration
    from nemo_edge.sampling import pipelines

    if contender.kind == "engine":
        bundle, variant = Path(contender.place), contender.variant or contender.name
        return pipelines.open_pipeline(Configuration.load(bundle), bundle, contender.engine, variant, stack)
    import torch

    from nemo_edge.backends.torch import DTYPES
    from nemo_edge.model.checkpoint import open_checkpoint

    torch.set_num_threads(contender.engine.threads or cores())
    source: dict[str, Any] = {"allow_pickle": contender.allow_pickle, "loras": contender.loras, "clip_skip": contender.clip_skip}
    checkpoint = open_checkpoint(contender.place, device=contender.engine.torch_device, **source)
    for module in (checkpoint.unet, checkpoint.vae, *checkpoint.text_encoders) if contender.dtype != "fp32" else ():
        torch.nn.Module.to(module, DTYPES[contender.dtype])  # diffusers' own warns of modules that it keeps, of which there are none
    if contender.channels_last:
        for module in (checkpoint.unet, checkpoint.vae):
            module.to(memory_format=torch.channels_last)
    return pipelines.eager_pipeline(checkpoint, compiled=contender.kind == "compiled")


def _call(pipeline: Any, setup: Setup) -> Callable[[], object]:
    """What is timed: one component on what the pipeline would feed it, or the pipeline as a whole."""
    from nemo_edge.sampling.loop import denoise, generate

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

    if contender.engine.torch_device == "cpu" or not torch.cuda.is_available():
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

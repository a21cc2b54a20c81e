"""How long something takes: samples, their statistics, and ratios with intervals. Knows calls, not models.

Times are wall-clock milliseconds of calls that return when their work is done.
"""

from __future__ import annotations

__all__ = [
    "FEWEST_ROUNDS",
    "Case",
    "Clock",
    "Contender",
    "Latency",
    "Ratio",
    "Timing",
    "Visit",
    "ratio_of",
    "timing_of",
    "visit",
    "wall_clock",
    "warm_up",
]

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from nemo_edge.recipe.settings import LatencySettings
from nemo_edge.system.environment import Gpu, Machine

Clock = Callable[[Callable[[], object]], tuple[float, float | None]]
"""Calls once; returns milliseconds of wall-clock time, and of the device's own where there is one."""

_RESAMPLES = 2000
FEWEST_ROUNDS = 5
_WIDEST = 0.2
"""An interval wider than this share of its ratio says too little."""

_WINDOW = 3


class _Result(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Contender(_Result):
    """One way to run the model: eager PyTorch, its compiled form, or the engines of a variant."""

    name: str
    """"eager", "compiled", one of `Rival`, "unmitigated", or a variant: "baked", "masked"."""
    backend: str
    provider: str
    threads: int
    dtype: str
    idle_memory_mib: float
    """Resident memory of its process before the model was opened."""
    peak_memory_mib: float
    """Highest resident memory of its process."""
    device_memory_mib: float | None = None
    """Memory it took on the GPU; None without one."""


class Timing(_Result):
    """One contender in one case. `samples_ms` holds the measured calls of each round, in order."""

    contender: str
    runs: int
    warmup_runs: int
    stable: bool
    """Whether the warm-up ended because the times had become stable, and not because its time was up."""
    mean_ms: float
    std_ms: float
    min_ms: float
    max_ms: float
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    images_per_s: float
    """Pictures a second at the mean: of a whole pipeline's, or of this component alone."""
    variation: float
    """Coefficient of variation, standard deviation over mean."""
    noisy: bool
    """Whether the variation is above the recipe's limit."""
    overhead: float
    """Time of the measuring itself as a share of the time measured."""
    device_ms: float | None = None
    """Mean time between two events on the GPU around a call; None without one."""
    samples_ms: tuple[tuple[float, ...], ...]


class Ratio(_Result):
    """Time of a contender over time of a reference: below 1 it is faster. The interval is of 95 %."""

    contender: str
    reference: str
    value: float
    low: float
    high: float
    rounds: int

    @property
    def words(self) -> str:
        """What it means for people: how many times as fast, or as long; neither where the interval has 1 in it."""
        if self.low <= 1 <= self.high:
            return "no difference seen"
        return f"{1 / self.value:.3g}× as fast" if self.value < 1 else f"{self.value:.3g}× as long"

    def problem(self, limit: float) -> str:
        """Say why it is uncertain whether this ratio is at or below `limit`; empty when it is not.

        It is not where the whole interval lies on one side of the limit, however wide it is.
        """
        if self.rounds < FEWEST_ROUNDS:
            return f"{self.rounds} rounds are too few for an interval: latency.runs = {FEWEST_ROUNDS} or more"
        if limit < self.low or self.high <= limit or self.high - self.low <= _WIDEST * self.value:
            return ""
        return f"the interval of {self.low:.3f} to {self.high:.3f} is too wide: time it again on a quiet machine"


class Case(_Result):
    """One target at one batch and size, every contender in it side by side."""

    target: Literal["text_encoder", "unet", "vae_decoder", "pipeline"]
    batch: int
    """Pictures; the UNet's rows are twice as many with guidance."""
    height: int
    width: int
    """Pixels."""
    steps: int | None
    """Denoising steps of the pipeline; None for a component, which runs once."""
    timings: tuple[Timing, ...]
    ratios: tuple[Ratio, ...]
    gpus: tuple[Gpu, ...] = ()
    """The GPUs right after the last call: their clocks, and what throttled them."""

    @property
    def words(self) -> str:
        """The case in a few words."""
        return f"{self.target}, batch {self.batch}, {self.height} × {self.width}"


class Latency(_Result):
    """What `nemo-edge bench` measured, in one run on one machine."""

    schema_version: Literal[1] = 1
    machine: Machine
    date: str
    seconds: float
    settings: LatencySettings
    left_out: dict[str, str] = {}
    """What the settings ask for and this machine would only imitate: the contender's name, and why."""
    contenders: tuple[Contender, ...]
    cases: tuple[Case, ...]

    @property
    def noisy(self) -> tuple[str, ...]:
        """Which timings vary more than the settings allow, each as "target: contender"."""
        found = (f"{case.target}: {timing.contender}" for case in self.cases for timing in case.timings if timing.noisy)
        return tuple(dict.fromkeys(found))

    def ratios(self, target: str, contender: str, reference: str) -> dict[str, Ratio]:
        """Return the ratio of two contenders in each case of a target where both were timed, by the case in words."""
        return {
            case.words: ratio
            for case in self.cases
            for ratio in case.ratios
            if (case.target, ratio.contender, ratio.reference) == (target, contender, reference)
        }

    def noise(self, target: str, contender: str, reference: str) -> dict[str, str]:
        """Say which of two contenders' timings are noisy in each case of a target where one is, by the case in words."""
        found = {}
        for case in self.cases:
            loud = [t for t in case.timings if t.noisy and case.target == target and t.contender in (contender, reference)]
            if loud:
                whose = " and ".join(f"{t.contender} ({100 * t.variation:.0f} %)" for t in loud)
                found[case.words] = f"the times of {whose} vary too much: time it again on a quiet machine"
        return found

    def ratio(self, target: str, contender: str, reference: str) -> Ratio | None:
        """Return the ratio of two contenders in the first case of a target, or None when it was not measured."""
        return next(iter(self.ratios(target, contender, reference).values()), None)


@dataclass(frozen=True)
class Visit:
    """What one visit to a contender gave: its samples, and the wall time of the measured part of the visit."""

    samples_ms: tuple[float, ...]
    wall_ms: float
    device_ms: tuple[float, ...] = ()


def wall_clock(call: Callable[[], object]) -> tuple[float, None]:
    """Time one call that returns when its work is done."""
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1e3, None


def warm_up(call: Callable[[], object], settings: LatencySettings, clock: Clock = wall_clock) -> tuple[int, bool]:
    """Call until the medians of two neighbouring windows of three calls agree, or the time for it is up.

    Return the number of calls and whether they became stable.
    """
    times: list[float] = []
    started = time.perf_counter()
    while True:
        times.append(clock(call)[0])
        if len(times) >= 2 * _WINDOW:
            before, now = np.median(times[-2 * _WINDOW : -_WINDOW]), np.median(times[-_WINDOW:])
            if abs(now - before) <= settings.stability * before:
                return len(times), True
        if time.perf_counter() - started >= settings.warmup_s and len(times) >= 2:
            return len(times), False


def visit(call: Callable[[], object], seconds: float, clock: Clock = wall_clock) -> Visit:
    """Measure calls for `seconds`, one at least. What is quicker is called once before, untimed, to settle."""
    started = time.perf_counter()
    found = [clock(call)]
    if found[0][0] < seconds * 1e3:
        started = time.perf_counter()
        found = [clock(call)]
    while time.perf_counter() - started < seconds:
        found.append(clock(call))
    wall_ms = (time.perf_counter() - started) * 1e3
    return Visit(tuple(wall for wall, _ in found), wall_ms, tuple(device for _, device in found if device is not None))


def timing_of(contender: str, visits: Sequence[Visit], batch: int, warmup: tuple[int, bool], settings: LatencySettings) -> Timing:
    """Summarize the visits to one contender."""
    samples = np.array([s for v in visits for s in v.samples_ms])
    p50, p90, p95, p99 = np.percentile(samples, [50, 90, 95, 99])
    device = [d for v in visits for d in v.device_ms]
    mean, std = float(samples.mean()), float(samples.std(ddof=1)) if len(samples) > 1 else 0.0
    return Timing(
        contender=contender,
        runs=len(samples),
        warmup_runs=warmup[0],
        stable=warmup[1],
        mean_ms=mean,
        std_ms=std,
        min_ms=float(samples.min()),
        max_ms=float(samples.max()),
        p50_ms=float(p50),
        p90_ms=float(p90),
        p95_ms=float(p95),
        p99_ms=float(p99),
        images_per_s=batch * 1e3 / mean,
        variation=std / mean,
        noisy=std / mean > settings.variation,
        overhead=max(0.0, sum(v.wall_ms for v in visits) / float(samples.sum()) - 1),
        device_ms=float(np.mean(device)) if device else None,
        samples_ms=tuple(v.samples_ms for v in visits),
    )


def ratio_of(contender: Timing, reference: Timing, seed: int = 0) -> Ratio:
    """Return the ratio of two timings that took turns, round by round, with its bootstrap interval.

    The ratio is the median over the rounds of the quotient of the rounds' medians, so that what slows both for a while cancels;
    the interval resamples the rounds (percentile bootstrap, Efron 1979).
    """
    pairs = zip(contender.samples_ms, reference.samples_ms, strict=True)
    quotients = np.array([np.median(a) / np.median(b) for a, b in pairs])
    rng = np.random.default_rng(seed)
    resampled = np.median(quotients[rng.integers(0, len(quotients), (_RESAMPLES, len(quotients)))], axis=1)
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Ratio(
        contender=contender.contender,
        reference=reference.contender,
        value=float(np.median(quotients)),
        low=float(low),
        high=float(high),
        rounds=len(quotients),
    )

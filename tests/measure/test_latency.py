"""Samples, their statistics, and ratios with intervals. Nothing here asserts how long something takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, repeat

import numpy as np
import pytest

from nemo_edge.measure.latency import Case, Clock, Contender, Latency, Ratio, Timing, Visit, ratio_of, timing_of, visit, wall_clock, warm_up
from nemo_edge.recipe.settings import LatencySettings
from nemo_edge.system.environment import machine

SETTINGS = LatencySettings()


def fake(times_ms: Iterable[float]) -> tuple[Clock, list[float]]:
    """A clock that calls, and says that it took the next of `times_ms`; and the list of what it said."""
    said: list[float] = []
    following = iter(times_ms)

    def clock(call: Callable[[], object]) -> tuple[float, None]:
        call()
        said.append(next(following))
        return said[-1], None

    return clock, said


def timing(rounds: Sequence[Sequence[float]], contender: str = "a", batch: int = 1, settings: LatencySettings = SETTINGS) -> Timing:
    return timing_of(contender, [Visit(tuple(samples), sum(samples)) for samples in rounds], batch, (6, True), settings)


def noisy(true: float, rounds: int, seed: int, sigma: float = 0.05) -> Timing:
    rng = np.random.default_rng(seed)
    return timing([(true * np.exp(sigma * rng.standard_normal(3))).tolist() for _ in range(rounds)], f"of {true}")


def busy(seconds: float) -> None:
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


def test_statistics_are_numpys() -> None:
    rounds = np.random.default_rng(0).gamma(4, 5, (3, 5)).tolist()
    got, samples = timing(rounds, batch=4), np.ravel(rounds)
    assert (got.runs, got.warmup_runs, got.stable) == (15, 6, True)
    assert [got.p50_ms, got.p90_ms, got.p95_ms, got.p99_ms] == pytest.approx(np.percentile(samples, [50, 90, 95, 99]), rel=1e-12)
    assert (got.min_ms, got.max_ms) == (samples.min(), samples.max())
    assert got.mean_ms == pytest.approx(samples.mean(), rel=1e-12)
    assert got.std_ms == pytest.approx(np.std(samples, ddof=1), rel=1e-12)
    assert got.images_per_s == pytest.approx(4000 / samples.mean(), rel=1e-12)
    assert got.variation == pytest.approx(np.std(samples, ddof=1) / samples.mean(), rel=1e-12)
    assert got.samples_ms == tuple(map(tuple, rounds))


def test_one_sample_has_no_spread() -> None:
    got = timing([[5.0]])
    assert (got.runs, got.std_ms, got.variation, got.noisy, got.p99_ms) == (1, 0, 0, False, 5)


@pytest.mark.parametrize(("limit", "expected"), [(0.2, True), (0.3, False)])
def test_a_timing_is_noisy_above_the_limit(limit: float, expected: bool) -> None:
    assert timing([[8.0, 12.0]], settings=LatencySettings(variation=limit)).noisy is expected  # std 2.83 of mean 10


def test_overhead_is_the_rest_of_the_wall_time() -> None:
    visits = [Visit((10.0, 10.0), 22.0), Visit((20.0,), 20.0)]
    assert timing_of("a", visits, 1, (6, True), SETTINGS).overhead == pytest.approx(2 / 40)
    assert timing_of("a", [Visit((10.0,), 9.0)], 1, (6, True), SETTINGS).overhead == 0  # a clock of lower resolution


def test_device_time_is_the_mean_of_the_events() -> None:
    assert timing_of("a", [Visit((1.0,), 1.0, (0.5,)), Visit((1.0,), 1.0, (0.7,))], 1, (6, True), SETTINGS).device_ms == pytest.approx(0.6)
    assert timing([[1.0]]).device_ms is None


def test_the_warm_up_ends_when_two_windows_agree() -> None:
    clock, said = fake(chain([900, 500, 300, 200, 150, 120], repeat(100)))
    calls = []
    runs, stable = warm_up(lambda: calls.append(1), LatencySettings(warmup_s=60), clock)
    assert (runs, stable, len(calls)) == (len(said), True, len(said))
    before, now = np.median(said[-6:-3]), np.median(said[-3:])
    assert abs(now - before) <= SETTINGS.stability * before
    earlier = [(np.median(said[i - 6 : i - 3]), np.median(said[i - 3 : i])) for i in range(6, len(said))]
    assert all(abs(b - a) > SETTINGS.stability * a for a, b in earlier)  # and not before


def test_six_calls_are_the_shortest_stable_warm_up() -> None:
    assert warm_up(lambda: None, LatencySettings(warmup_s=60), fake(repeat(3.0))[0]) == (6, True)


def test_the_warm_up_ends_when_its_time_is_up() -> None:
    growing = (1.06**i for i in range(10_000))
    started = time.perf_counter()
    runs, stable = warm_up(lambda: None, LatencySettings(warmup_s=0.02), fake(growing)[0])
    assert not stable
    assert runs >= 2
    assert time.perf_counter() - started >= 0.02
    assert warm_up(lambda: None, LatencySettings(warmup_s=0), fake(repeat(1.0))[0]) == (2, False)


def test_a_visit_covers_its_seconds() -> None:
    calls = []
    made = visit(lambda: calls.append(busy(0.001)), 0.02)
    assert made.wall_ms >= 20
    assert sum(made.samples_ms) <= made.wall_ms
    assert len(made.samples_ms) == len(calls) - 1 > 1  # the first is called to settle


@pytest.mark.parametrize("seconds", [0.0, 0.001])
def test_a_slow_call_is_its_only_sample(seconds: float) -> None:
    calls = []
    made = visit(lambda: calls.append(busy(0.005)), seconds)
    assert len(made.samples_ms) == len(calls) == 1
    assert made.samples_ms[0] >= 5


def test_a_visit_keeps_the_device_s_times() -> None:
    def clock(call: Callable[[], object]) -> tuple[float, float]:
        call()
        return 2.0, 1.5

    assert visit(lambda: busy(0.002), 0.001, clock).device_ms[0] == 1.5
    assert visit(lambda: None, 0.0).device_ms == ()


def test_measuring_costs_little_beside_calls_of_a_millisecond() -> None:
    def overhead() -> float:
        return timing_of("a", [visit(lambda: busy(0.001), 0.05)], 1, (6, True), SETTINGS).overhead

    assert min(overhead() for _ in range(3)) < 0.05


def test_the_wall_clock_holds_the_call() -> None:
    inside = []

    def call() -> None:
        started = time.perf_counter()
        busy(0.002)
        inside.append((time.perf_counter() - started) * 1e3)

    wall, device = wall_clock(call)
    assert wall >= inside[0] >= 2
    assert device is None


def test_the_ratio_of_constant_times_is_exact() -> None:
    got = ratio_of(timing([[3.0, 3.0]] * 6, "a"), timing([[4.0]] * 6, "b"))
    assert (got.contender, got.reference, got.rounds) == ("a", "b", 6)
    assert (got.low, got.value, got.high) == (0.75, 0.75, 0.75)
    assert got.problem(1.0) == ""


def test_a_ratio_and_its_reverse_are_reciprocal() -> None:
    a, b = noisy(3.0, 11, 0), noisy(4.0, 11, 1)
    there, back = ratio_of(a, b), ratio_of(b, a)
    assert there.value == pytest.approx(1 / back.value, rel=1e-12)
    assert (there.low, there.high) == pytest.approx((1 / back.high, 1 / back.low), rel=0.02)
    assert ratio_of(a, a).model_dump(include={"low", "value", "high"}) == {"low": 1, "value": 1, "high": 1}


def test_the_interval_holds_the_true_ratio() -> None:
    found = [ratio_of(noisy(3.0, 12, 2 * seed), noisy(4.0, 12, 2 * seed + 1)) for seed in range(100)]
    assert all(r.low <= r.value <= r.high for r in found)
    held = sum(r.low <= 0.75 <= r.high for r in found)
    assert 85 <= held < 100  # of 95 %; one that always holds it would be too wide
    assert not any(r.low <= 0.85 <= r.high for r in found)


def test_what_slows_both_for_a_while_cancels() -> None:
    slower = np.linspace(1, 3, 7)
    a, b = (timing([[factor * middle] * 2 for factor in slower], name) for name, middle in (("a", 3.0), ("b", 4.0)))
    got = ratio_of(a, b)
    assert (got.low, got.value, got.high) == pytest.approx((0.75, 0.75, 0.75), rel=1e-12)
    assert a.variation > SETTINGS.variation


def test_one_round_of_bad_luck_does_not_move_the_ratio() -> None:
    rounds = [[3.0]] * 9
    assert ratio_of(timing([*rounds, [300.0]]), timing([[4.0]] * 10)).value == 0.75


def test_timings_that_did_not_take_turns_have_no_ratio() -> None:
    with pytest.raises(ValueError, match="longer"):
        ratio_of(timing([[3.0]] * 5), timing([[4.0]] * 6))


@pytest.mark.parametrize(
    ("value", "low", "high", "words"),
    [
        (0.48, 0.45, 0.51, "2.08× as fast"),
        (0.1, 0.09, 0.11, "10× as fast"),
        (1.3, 1.2, 1.4, "1.3× as long"),
        (0.98, 0.9, 1.02, "no difference seen"),
        (1.0, 1.0, 1.0, "no difference seen"),
    ],
)
def test_a_ratio_is_told_in_words(value: float, low: float, high: float, words: str) -> None:
    assert Ratio(contender="a", reference="b", value=value, low=low, high=high, rounds=10).words == words


def test_a_ratio_of_few_rounds_or_a_wide_interval_is_a_problem() -> None:
    assert "4 rounds are too few" in ratio_of(timing([[3.0]] * 4), timing([[4.0]] * 4)).problem(1.0)
    wide = ratio_of(noisy(3.0, 10, 0, sigma=1.0), noisy(4.0, 10, 1, sigma=1.0))
    assert "is too wide" in wide.problem(wide.value)
    limits = {"contender": "a", "reference": "b", "value": 1.0, "rounds": 5}
    assert Ratio(low=0.91, high=1.1, **limits).problem(1.05) == ""  # type: ignore[arg-type]
    assert Ratio(low=0.89, high=1.1, **limits).problem(1.05)  # type: ignore[arg-type]


def test_an_interval_on_one_side_of_the_limit_is_clear_however_wide() -> None:
    slow = Ratio(contender="a", reference="b", value=1.6, low=1.35, high=1.75, rounds=10)
    assert slow.problem(1.05) == ""
    assert slow.problem(1.8) == ""
    assert "is too wide" in slow.problem(1.5)


def case(target: str, *timings: Timing, batch: int = 1) -> Case:
    ratios = [ratio_of(timings[-1], t) for t in timings[:-1]]
    place = {"target": target, "batch": batch, "height": 8, "width": 8, "steps": None}
    return Case.model_validate({**place, "timings": timings, "ratios": tuple(ratios)})


def test_a_latency_finds_its_ratios_and_its_noise_and_survives_json() -> None:
    calm, wild = timing([[3.0]] * 5, "calm"), timing([[1.0, 9.0]] * 5, "wild")
    here = Contender(name="calm", backend="torch", provider="cpu", threads=1, dtype="fp32", idle_memory_mib=1, peak_memory_mib=2)
    cases = (case("unet", wild, calm), case("unet", calm, wild, batch=2), case("vae_decoder", calm, calm))
    found = Latency(machine=machine(), date="d", seconds=1, settings=SETTINGS, contenders=(here,), cases=cases)
    assert found.noisy == ("unet: wild",)
    ratio = found.ratio("unet", "calm", "wild")
    assert ratio is not None
    assert ratio.value == 3 / 5
    assert list(found.ratios("unet", "wild", "calm")) == ["unet, batch 2, 8 × 8"]
    assert found.ratio("pipeline", "calm", "wild") is None
    assert Latency.model_validate_json(found.model_dump_json()) == found

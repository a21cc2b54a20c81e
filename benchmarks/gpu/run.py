"""Measures on this machine's GPU all that there is time for, what is worth most first.

    python -m benchmarks.gpu.run --minutes 9 --out DIR [--work DIR] [--only TEXT ...] [--smoke]

Needs what `prepare.py` gathers, or an environment with nemo-edge. Every task and every contender has a process and a time limit of
its own; what fails, runs out of memory or crashes costs its own row. A result is a JSON file in DIR/each as soon as it is there, and
DIR/<gpu>.json holds all of them, for `benchmarks/results`; what is there already and did not fail is not measured again. `--smoke`
runs the same plan with tiny models, on a CPU too.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.contender import WARM_UPS, serve
from benchmarks.gpu.plan import REFERENCE, Case, Task, full_plan, smoke_plan
from benchmarks.gpu.tasks import alone
from benchmarks.shared import ROOT, here
from nemo_edge.measure.latency import Timing, Visit, ratio_of, timing_of
from nemo_edge.recipe.settings import LatencySettings
from nemo_edge.system.environment import cores, gpus

ROUNDS, RUNS = 5, 10
LANES = 2
"""Tasks that prepare files, at once, beside what is timed."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0, help="what has not begun by then is not measured")
    parser.add_argument("--out", type=Path, required=True, help="where the results go")
    parser.add_argument("--work", type=Path, help="where weights and engines go, 40 GB; OUT/work otherwise")
    parser.add_argument("--only", nargs="*", default=[], help="only what has one of these in its name, and what that needs")
    parser.add_argument("--smoke", action="store_true", help="tiny models, few runs")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    run = Run(given.out.resolve(), (given.work or given.out / "work").resolve(), given.minutes * 60, given.smoke)
    plan = smoke_plan() if given.smoke else full_plan()
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    if given.smoke:
        os.environ["OMP_NUM_THREADS"] = "1"  # processes that wait for each other's threads take ten times as long
    try:
        run.everything(chosen(plan, given.only))
    finally:
        run.close()
    return 0 if run.measured else 1


def chosen(plan: list[Task | Case], words: list[str]) -> list[Task | Case]:
    """What has one of the words in its name, with what it needs."""
    if not words:
        return plan
    wanted = {item.key for item in plan if any(word in item.key for word in words)}
    while True:
        more = {need for item in plan if item.key in wanted for need in item.needs} - wanted
        if not more:
            return [item for item in plan if item.key in wanted]
        wanted |= more


def fresh() -> Any:
    """What starts a process.

    Where there is no GPU it is forked from a server that has imported the libraries, which takes ten seconds of a slow core. Where there
    is one it begins from nothing: diffusers asks for the GPU as it is imported, and no process that is forked after that can use it.
    """
    if gpus():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.gpu.preload"])
    return context


class Worker:
    """The process of one contender."""

    def __init__(self, name: str, work: Path, smoke: bool) -> None:
        context = fresh()
        self.pipe, there = context.Pipe()
        self.process = context.Process(target=serve, args=(name, work, smoke, there))
        self.process.start()
        there.close()

    def ask(self, what: str, *arguments: Any) -> None:
        try:
            self.pipe.send((what, arguments))
        except OSError:
            return  # it died; `answer` says so

    def answer(self, seconds: float) -> tuple[bool, Any]:
        """Whether it did what it was asked, and its answer or why not; a process that is late is ended."""
        try:
            if self.pipe.poll(max(seconds, 0)):
                found: tuple[bool, Any] = self.pipe.recv()
                return found
        except (EOFError, OSError):
            self.process.join(5)
            return False, f"its process died (exit code {self.process.exitcode})"
        self.end()
        return False, f"not ready after {seconds:.0f} s"

    @property
    def alive(self) -> bool:
        return bool(self.process.is_alive())

    def end(self) -> None:
        self.process.kill()
        self.process.join()


class Run:
    """One run of a plan: what is measured, what prepares files beside it, and the processes of the contenders."""

    def __init__(self, out: Path, work: Path, seconds: float, smoke: bool) -> None:
        self.out, self.work, self.smoke = out, work, smoke
        self.started = time.monotonic()
        self.until = self.started + seconds
        self.workers: dict[str, Worker] = {}
        self.aside: dict[str, tuple[Task, Any, float]] = {}
        self.found: dict[str, dict[str, Any]] = {}
        work.mkdir(parents=True, exist_ok=True)
        (out / "each").mkdir(parents=True, exist_ok=True)
        gpu = next((gpu.name for gpu in gpus()), "cpu")
        self.merged = out / f"{_slug(gpu)}.json"
        for path in sorted((out / "each").glob("*.json")):
            result = json.loads(path.read_text())
            if "failed" not in result and not any("failed" in row for row in result.get("rows", [])):
                self.found[result["key"]] = result

    @property
    def measured(self) -> bool:
        return any("failed" not in result for result in self.found.values())

    def everything(self, plan: list[Task | Case]) -> None:
        """Each item as soon as what it needs is there, in the plan's order otherwise."""
        files = {key for key in self.found if key.startswith(("weights", "export"))}
        for key in files if not (self.work / "weights").is_dir() else ():
            del self.found[key]  # those files are gone
        waiting = [item for item in plan if item.key not in self.found]
        while waiting and time.monotonic() < self.until:
            self._look_aside()
            for item in [i for i in waiting if self._lost(i)]:
                waiting.remove(item)
                self._keep(item, {"failed": f"{self._lost(item)} is not there"})
            ready = [item for item in waiting if all(need in self.found for need in item.needs)]
            for task in [i for i in ready if isinstance(i, Task) and i.aside][: max(0, LANES - len(self.aside))]:
                waiting.remove(task)
                ready.remove(task)
                self.aside[task.key] = (task, self._start(task, max(1, cores() // (LANES + 1))), time.monotonic())
            chosen = next((i for i in ready if not (isinstance(i, Task) and i.aside)), None)
            if chosen is None:
                time.sleep(0.2)
                continue
            waiting.remove(chosen)
            self._keep(chosen, self._case(chosen) if isinstance(chosen, Case) else self._task(chosen))
        while self.aside and time.monotonic() < self.until:
            self._look_aside()
            time.sleep(0.2)
        for item in [*waiting, *(task for task, _, _ in self.aside.values())]:
            self._keep(item, {"failed": "not measured: no time was left"})

    def close(self) -> None:
        """End every process."""
        for worker in self.workers.values():
            worker.end()
        for _, process, _ in self.aside.values():
            _end(process)

    def _lost(self, item: Task | Case) -> str:
        """What an item needs and does not get."""
        return next((need for need in item.needs if "failed" in self.found.get(need, {})), "")

    def _keep(self, item: Task | Case, result: dict[str, Any]) -> None:
        beside = sorted(self.aside)
        whole = {"key": item.key, **result, **({"beside": beside} if beside and "failed" not in result else {})}
        self.found[item.key] = whole
        (self.out / "each" / f"{_slug(item.key)}.json").write_text(json.dumps(whole, indent=1) + "\n")
        about = {**here(), "seconds": round(time.monotonic() - self.started, 1), "smoke": self.smoke}
        merged = {**about, "results": list(self.found.values())}
        draft = self.merged.with_suffix(".draft")
        draft.write_text(json.dumps(merged, indent=1) + "\n")
        draft.replace(self.merged)
        failed = [result.get("failed"), *(f"{row['contender']}: {row['failed']}" for row in result.get("rows", []) if "failed" in row)]
        said = "; ".join(filter(None, failed)) or "done"
        print(f"{time.monotonic() - self.started:6.1f} s  {item.key}: {said[:400]}", flush=True)

    def _start(self, task: Task, threads: int | None = None) -> Any:
        (self.work / f".{task.key}.json").unlink(missing_ok=True)
        process = fresh().Process(target=alone, args=(task, self.work, self.smoke, threads))
        process.start()
        return process

    def _look_aside(self) -> None:
        """Keep what has been prepared; end what takes too long."""
        for key, (task, process, started) in list(self.aside.items()):
            late = time.monotonic() - started > task.seconds
            if process.exitcode is not None or late:
                _end(process)
                del self.aside[key]
                self._keep(task, self._outcome(task, late))

    def _task(self, task: Task) -> dict[str, Any]:
        process = self._start(task)
        process.join(min(task.seconds, max(self.until - time.monotonic(), 1)))
        late = process.exitcode is None
        _end(process)
        return self._outcome(task, late)

    def _outcome(self, task: Task, late: bool) -> dict[str, Any]:
        path = self.work / f".{task.key}.json"
        if path.is_file():
            found: dict[str, Any] = json.loads(path.read_text())
            return found
        said = [line for line in (self.work / f"{task.key}.log").read_text(errors="replace").splitlines() if line.strip()]
        return {"failed": "its time was up" if late else (said[-1][:400] if said else "it died without a word")}

    def _case(self, case: Case) -> dict[str, Any]:
        """Open every contender at once, then let those that opened take turns."""
        limit = time.monotonic() + min(case.seconds, self.until - time.monotonic())
        refused = self._refused(case)
        for name in [n for n in case.contenders if n not in refused]:
            if name not in self.workers or not self.workers[name].alive:
                self.workers[name] = Worker(name, self.work, self.smoke)
            self.workers[name].ask("open", case)
        opened: dict[str, tuple[bool, Any]] = {
            n: (False, refused[n]) if n in refused else self.workers[n].answer(limit - time.monotonic()) for n in case.contenders
        }
        failed = {name: answer for name, (done, answer) in opened.items() if not done}
        taking = [name for name in case.contenders if name not in failed]
        visits: dict[tuple[str, str], list[Visit]] = {}
        rounds, runs = (2, 2) if self.smoke else (ROUNDS, RUNS)
        for _ in range(rounds):
            for name in [n for n in taking if n not in failed]:
                self.workers[name].ask("turn", runs)
                done, answer = self.workers[name].answer(60)
                if not done:
                    failed[name] = answer
                    continue
                for variant, samples in answer.items():
                    visits.setdefault((name, variant), []).append(Visit(tuple(round(s, 4) for s in samples), sum(samples)))
        state = [gpu.model_dump(mode="json") for gpu in gpus()]  # right after the last turn: clocks, and what throttles them
        for name in set(self.workers) - set(failed):
            if self.workers[name].alive:
                self.workers[name].ask("close")
                self.workers[name].answer(30)
        timings = {
            key: timing_of(", ".join(key), own, case.batch, (2 if self.smoke else WARM_UPS, True), LatencySettings())
            for key, own in visits.items()
            if key[0] not in failed
        }
        rows = [self._row(case, key, timings, opened[key[0]][1]) for key in timings]
        rows += [{"contender": name, "failed": why} for name, why in failed.items()]
        about = {name: getattr(case, name) for name in ("model", "dtype", "batch", "latents", "group")}
        return {**about, "rows": rows, "gpus": state}

    def _refused(self, case: Case) -> dict[str, str]:
        """Contenders that have said already that they do not run on this GPU, and their words."""
        plans: dict[str, Any] = next((r["plans"] for key, r in self.found.items() if key.startswith("answer") and "plans" in r), {})
        portable = plans.get("portable", {"runs": True})
        return {} if portable["runs"] or "TensorRT-RTX" not in case.contenders else {"TensorRT-RTX": portable["says"]}

    def _row(self, case: Case, key: tuple[str, str], timings: dict[tuple[str, str], Timing], opened: dict[str, Any]) -> dict[str, Any]:
        name, variant = key
        own = timings[key]
        row: dict[str, Any] = {"contender": name, "variant": variant, "runs": own.runs}
        row |= {field: round(getattr(own, field), 4) for field in ("p50_ms", "p95_ms", "mean_ms", "std_ms", "min_ms")}
        for label, other in (("to_reference", (REFERENCE, "baked")), ("to_baked", (name, "baked"))):
            if other in timings and other != key:
                ratio = ratio_of(own, timings[other])
                row[label] = {"value": round(ratio.value, 4), "low": round(ratio.low, 4), "high": round(ratio.high, 4)}
        error = self._error(case, name, variant)
        return {**row, **opened, **({} if error is None else {"error": error})}

    def _error(self, case: Case, name: str, variant: str) -> float | None:
        """Largest difference of the answer to the reference's, relative to the largest value there."""
        paths = [self.work / "answers" / f"{case.key} {n} {variant}.npy" for n in (name, REFERENCE)]
        if name == REFERENCE or not all(path.is_file() for path in paths):
            return None
        own, reference = (np.load(path) for path in paths)
        return float(f"{np.abs(own - reference).max() / np.abs(reference).max():.3g}")


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower())


def _end(process: Any) -> None:
    """End a task and all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()  # where it had no group of its own yet
    process.join()


if __name__ == "__main__":
    sys.exit(main())

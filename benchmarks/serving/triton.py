"""The demo bundle on a real Triton server: what the server adds to the library's time, what several clients get, and hot updates.

    python -m benchmarks.serving.triton [--bundle engines/out/demo] [--environment .venv-triton]

Writes `benchmarks/results/serving.json`. Pictures of the library and of the servers, masked and baked, take turns, each as often behind
each of the others: for some milliseconds after a picture, the threads that drew it still look for work. Nothing else may run, for six
minutes. `make demo` and `make triton` first.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import cycle, islice, permutations, product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.shared import DEMO_BUNDLE, ROOT, here, keep
from nemo_edge.bundle.manifest import amend, open_bundle
from nemo_edge.bundle.policies import POLICIES, Policies
from nemo_edge.measure.latency import Timing, Visit, ratio_of, timing_of
from nemo_edge.model.configuration import Configuration
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.recipe.recipe import Recipe
from nemo_edge.recipe.settings import LatencySettings
from nemo_edge.sampling.loop import generate
from nemo_edge.sampling.pipelines import open_pipeline
from nemo_edge.serving.golden import LEVELS, Golden, ask, check_golden, make_golden, request
from nemo_edge.serving.hotupdate import ship_masks
from nemo_edge.serving.repository import ship
from nemo_edge.serving.server import Environment, Server, find_environment, serve

PROMPT = "saxophone falafel jubilee"
CLIENTS = (1, 2, 4, 8, 16)
STEPS = (2, 10)
"""The difference of their times is that of their steps."""
TURNS = 240
PICTURES = 32
UPDATES = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=DEMO_BUNDLE)
    parser.add_argument("--environment", type=Path, default=ROOT / ".venv-triton")
    args = parser.parse_args()
    found: dict[str, Any] = here()
    environment = find_environment(args.environment)
    with tempfile.TemporaryDirectory() as folder:
        for name, part in (("overhead", overhead), ("clients", clients), ("update", update)):
            place = Path(folder) / name
            place.mkdir()
            found[name] = part(args.bundle, place, environment)
            print(name, json.dumps(found[name]), flush=True)
    keep("serving", found)


def start(stack: ExitStack, bundle: Path, folder: Path, environment: Environment, variant: str) -> Server:
    """A server of a variant, which has given the golden picture."""
    ship(bundle, folder / variant, variant=variant)
    golden = make_golden(bundle, PROMPT)
    return stack.enter_context(serve(folder / variant, environment, lambda server: check_golden(golden, server.grpc)))


def overhead(bundle: Path, folder: Path, environment: Environment) -> dict[str, Any]:
    """Seconds a picture, of each number of steps, by the library and by a server of each variant, in turns."""
    manifest, neurons = open_bundle(bundle), NeuronSet.load(bundle / "neurons.json")
    recipe = Recipe.model_validate(manifest.recipe)
    with ExitStack() as stack:
        pipeline = open_pipeline(Configuration.load(bundle), bundle, recipe.engine, "masked", stack)

        def library(steps: int) -> None:
            generate(pipeline, [PROMPT], [0], recipe.sampling.model_copy(update={"steps": steps}), neurons.mask())

        def served(server: Server) -> Callable[[int], object]:
            return lambda steps: ask(server.grpc, request(prompt=PROMPT, steps=steps))

        servers = {variant: start(stack, bundle, folder, environment, variant) for variant in ("masked", "baked")}
        ways = {"library": library, **{variant: served(server) for variant, server in servers.items()}}
        seconds: dict[str, dict[int, list[float]]] = {name: {steps: [] for steps in STEPS} for name in ways}
        for draw in ways.values():
            draw(STEPS[0])  # warms up
        for order in islice(cycle(permutations(ways)), TURNS):
            for steps, name in product(STEPS, order):
                seconds[name][steps].append(time_of(partial(ways[name], steps)))
    return {"steps": STEPS, "seconds": seconds, **compared(seconds)}


def compared(seconds: dict[str, dict[int, list[float]]]) -> dict[str, Any]:
    """Medians of the differences within a turn, and the ratio of masked to baked with its interval."""

    def more(steps: int) -> list[float]:
        return [server - library for server, library in zip(seconds["masked"][steps], seconds["library"][steps], strict=True)]

    few, many = STEPS

    def timing(name: str) -> Timing:
        visits = [Visit((1e3 * each,), 1e3 * each) for each in seconds[name][many]]
        return timing_of(name, visits, 1, (1, True), LatencySettings())

    per_step = [(b - a) / (many - few) for a, b in zip(more(few), more(many), strict=True)]
    return {
        "library_s": statistics.median(seconds["library"][many]),
        "more_per_picture_s": statistics.median(more(many)),
        "more_per_step_s": statistics.median(per_step),
        "masked_over_baked": ratio_of(timing("masked"), timing("baked")).model_dump(),
    }


def clients(bundle: Path, folder: Path, environment: Environment) -> dict[int, float]:
    """Pictures a second of the masked server, by the number of clients that ask without a pause."""
    with ExitStack() as stack:
        server = start(stack, bundle, folder, environment, "masked")
        return {count: PICTURES / time_of(partial(together, server, count)) for count in CLIENTS}


def together(server: Server, count: int) -> None:
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(lambda seed: ask(server.grpc, request(prompt=PROMPT, seed=seed)), range(PICTURES)))


def update(bundle: Path, folder: Path, environment: Environment) -> dict[str, Any]:
    """Seconds from the start of an update, by the library and by the command, to the first picture that has it."""
    former = shutil.copytree(bundle, folder / "former")
    none, policies = NeuronSet.empty(NeuronSet.load(former / "neurons.json").layers), Policies.load(former / POLICIES)

    def change(staged: Path) -> None:
        none.save(staged / "neurons.json")
        policies.of_neurons(none).save(staged / POLICIES)

    amend(former, open_bundle(former), change)
    goldens = [(each, make_golden(each, PROMPT)) for each in (former, bundle)]
    repository = folder / "repository"
    ship(bundle, repository)
    with serve(repository, environment, lambda server: check_golden(goldens[1][1], server.grpc)) as server:
        command = [sys.executable, "-m", "nemo_edge.cli", "ship", "--to", str(repository), "--masks-only"]
        ways: dict[str, Callable[[Path], object]] = {
            "library": lambda each: ship_masks(each, repository),
            "command": lambda each: subprocess.run([*command, str(each)], check=True, capture_output=True),
        }
        return {
            "picture_s": statistics.median(time_of(lambda: ask(server.grpc, goldens[1][1].tensors)) for _ in range(UPDATES)),
            **{f"{name}_s": [updated(server, put, *goldens[turn % 2]) for turn in range(UPDATES)] for name, put in ways.items()},
        }


def updated(server: Server, put: Callable[[Path], object], bundle: Path, golden: Golden) -> Sequence[float]:
    """Seconds until the update is put there, and until the picture after it, which must have it."""
    begun = time.perf_counter()
    put(bundle)
    there = time.perf_counter() - begun
    picture = ask(server.grpc, golden.tensors)["image"]
    drawn = time.perf_counter() - begun
    off = int(np.abs(picture.astype(int) - golden.picture).max())
    if off > LEVELS:
        sys.exit(f"the picture after an update is {off} grey levels off")
    return there, drawn


def time_of(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()

"""TensorRT and TensorRT-RTX: compiles an ONNX file of a bundle into a plan with a sidecar, and opens a plan.

One way for both: file → plan → runner; what is different is in `flavours`, the process that builds in `_build`, the open
engine in `_run`. TensorRT's own API is used and not Polygraphy's: Polygraphy takes one of the two products for the whole
process, by an environment variable read when it is imported, and says of its runner that it is not for production.
"""

from __future__ import annotations

__all__ = [
    "TensorRtRunner",
    "available",
    "compile_engine",
    "describe",
    "find_plan",
    "open_engine",
    "plan_files",
    "refit_engine",
    "refit_weights",
    "runtime_cache_path",
]

import os
import platform
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from nemo_edge.backends.tensorrt._build import Built, Job, run_job
from nemo_edge.backends.tensorrt._run import TensorRtRunner, refit_weights, runtime_cache_path, serialize
from nemo_edge.backends.tensorrt.flavours import (
    FLAVOURS,
    builder_flags,
    check,
    check_runtime,
    load_product,
    product_version,
    runtime_settings,
    this_capability,
)
from nemo_edge.backends.tensorrt.plans import PlanFile, Shapes, Tensor, open_plan_file
from nemo_edge.graph.onnxfile import Graph, open_graph
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.recipe.targets import Flavour, PlanSettings, TensorRtRtxSettings, TensorRtSettings, target_name
from nemo_edge.system.errors import InputError, MissingDependency
from nemo_edge.system.files import explain, write_atomically
from nemo_edge.system.progress import Progress

Judge = Callable[[Mapping[str, np.ndarray], Mapping[str, np.ndarray]], bool]
_UNETS = ("unet", "unet_masked")
_ROUNDS = ("TF32",)
"""Set by default: fp32 factors are rounded to 10 bits, ten times the error that the gate on an fp32 engine allows."""


def compile_engine(
    bundle: Path,
    place: str,
    model: str,
    flavour: Flavour,
    settings: PlanSettings,
    profiles: Sequence[Mapping[str, Shapes]],
    dtype: Literal["fp32", "fp16", "bf16"],
    progress: Progress | None = None,
    out: Path | None = None,
    source: Path | None = None,
) -> PlanFile:
    """Compile the bundle's ONNX file `model`, or another form of it at `source`, and write `engines/<place>.<flavour>.<target>` with its
    sidecar of the same name, into the bundle or into `out`.

    Both files are whole or absent, after an interruption too. Raises `MissingDependency` before anything is read when the
    product or the GPU it needs is not here, `InputError` for a graph that cannot be read or a profile that does not fit it,
    `ExportError` for one that does not compile.
    """
    check(flavour, settings)
    started, product = time.monotonic(), FLAVOURS[flavour]
    graph = open_graph(source or bundle / model)
    graph.check_files()
    gpu = None if product.builds_without_gpu else this_capability()
    targets = _targets(settings, gpu[0] if gpu else None)
    folder = out or bundle
    path = folder / "engines" / f"{place}.{flavour}.{_target(settings, targets)}{product.suffix}"
    job = replace(_job(bundle, path, place, graph, flavour, settings, profiles), cleared=_ROUNDS if dtype == "fp32" else ())
    built, size = _build_into(job, path, f"{place} {path.name.split('.')[-2]}", progress or Progress())
    inputs, outputs = graph.ports()
    plan = PlanFile(
        component=place,
        backend=flavour,
        version=built.version,
        plan=path.relative_to(folder).as_posix(),
        size_bytes=size,
        model=model,
        graph_hash=open_graph(bundle / model).content_hash(),
        targets=targets,
        built_on=gpu[1] if gpu else None,
        hardware_compatibility=job.hardware_compatibility,
        system=product.systems or platform.system(),
        dtype=dtype,
        inputs={name: Tensor(dtype=port.dtype, dims=port.dims) for name, port in inputs.items()},
        outputs={name: Tensor(dtype=port.dtype, dims=port.dims) for name, port in outputs.items()},
        profiles=tuple(dict(profile) for profile in profiles),
        flags=built.flags,
        settings={**runtime_settings(settings), "decomposable_attentions": built.attentions},
        refittable=job.refittable,
        reproducible=product.reproducible,
        build_s=round(time.monotonic() - started, 3),
    )
    write_atomically(path.with_suffix(".json"), plan.model_dump_json(indent=1) + "\n")
    return plan


def _build_into(job: Job, path: Path, description: str, progress: Progress) -> tuple[Built, int]:
    """Build to a temporary name beside `path`, then rename; a sidecar never lies beside a plan that is not its own."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        built = run_job(job, description, progress)
        size = job.output.stat().st_size
        with suppress(FileNotFoundError):
            path.with_suffix(".json").unlink()
        os.replace(job.output, path)
    except OSError as error:
        raise explain(error, path) from error
    finally:
        with suppress(OSError):
            job.output.unlink()
    return built, size


def _job(
    bundle: Path, path: Path, place: str, graph: Graph, flavour: Flavour, settings: PlanSettings, profiles: Sequence[Mapping[str, Shapes]]
) -> Job:
    product = FLAVOURS[flavour]
    refittable = _value_weights(bundle, graph) if getattr(settings, "refit", "none") == "value_weights" and place in _UNETS else ()
    common = Job(
        title=product.title,
        module=product.module,
        model=graph.path,
        output=path.with_name(f".{path.name}.{secrets.token_hex(4)}"),
        profiles=tuple(dict(profile) for profile in profiles),
        flags=builder_flags(settings, bool(refittable)),
        refittable=refittable,
    )
    if isinstance(settings, TensorRtRtxSettings):
        return replace(common, capabilities=tuple(target.upper() for target in settings.targets))
    assert isinstance(settings, TensorRtSettings)
    return replace(
        common,
        hardware_compatibility=settings.hardware_compatibility.upper(),
        optimization_level=settings.optimization_level,
        timing_cache=settings.timing_cache,
    )


def _targets(settings: PlanSettings, capability: str | None) -> tuple[str, ...]:
    if isinstance(settings, TensorRtRtxSettings):
        return settings.targets
    return (capability,) if capability else ()


def _target(settings: PlanSettings, targets: Sequence[str]) -> str:
    """The part of a plan's name that says which GPUs it is for."""
    level = settings.hardware_compatibility if isinstance(settings, TensorRtSettings) else "none"
    return target_name(targets) + (f"-{level}" if level != "none" else "")


def _value_weights(bundle: Path, graph: Graph) -> tuple[str, ...]:
    """The names, in the graph, of the weights of the value layers that the bundle's neurons are in."""
    layers = [layer.name for layer in NeuronSet.load(bundle / "neurons.json").layers]
    return tuple(name for names in graph.weights(layers).values() for name in names)


def plan_files(bundle: Path, place: str, flavour: Flavour) -> tuple[PlanFile, ...]:
    """Return the sidecars of a component's plans. Raises `InputError` where there is none."""
    product = FLAVOURS[flavour]
    paths = sorted((bundle / "engines").glob(f"{place}.{flavour}.*.json"))
    if not paths:
        raise InputError(f"the bundle {bundle} has no {product.title} engine of {place}: build it with [{product.table}] in the recipe")
    return tuple(open_plan_file(path) for path in paths)


def find_plan(bundle: Path, place: str, flavour: Flavour, capability: str | None = None) -> PlanFile:
    """Return the sidecar of a component's plan; of several the one that is for GPUs of `capability` (`sm89`), else the portable one.

    Raises `InputError` where there is none, or none for this GPU.
    """
    product, found = FLAVOURS[flavour], plan_files(bundle, place, flavour)
    meant = [plan for plan in found if capability in plan.targets] or [plan for plan in found if _runs_elsewhere(plan)]
    if meant or capability is None:
        return (meant or found)[0]
    targets = ", ".join(target_name(plan.targets) for plan in found)
    raise InputError(
        f"the {product.title} engine of {place} in {bundle} is for {targets}, this GPU is {capability}: build one for it, "
        f"in the recipe's [{product.table}]"
    )


def _runs_elsewhere(plan: PlanFile) -> bool:
    return not plan.targets or plan.hardware_compatibility == "AMPERE_PLUS"


def open_engine(
    bundle: Path, place: str, flavour: Flavour, settings: PlanSettings | None = None, factor: int = 8, weight_budget: int | None = None
) -> TensorRtRunner:
    """Open a component's plan on the first GPU, run as its sidecar says or as `settings` do; `factor`: pixels of a latent.

    `weight_budget` is the number of bytes of GPU memory for the weights of a plan that streams them; as many as have room where
    it is not given. Verify a bundle before its plans are opened: a plan is native code. Raises `InputError` where there is no
    plan for this GPU or the budget is refused, `MissingDependency` where the product, a GPU that PyTorch sees or a driver new
    enough is not here, or the plan is of another version.
    """
    capability, _ = check_runtime(flavour)
    plan = find_plan(bundle, place, flavour, capability)
    return TensorRtRunner(bundle, plan, settings, factor, weight_budget)


def refit_engine(
    bundle: Path, plan: PlanFile, weights: Mapping[str, np.ndarray], feed: Mapping[str, np.ndarray], judge: Judge, factor: int = 8
) -> PlanFile | None:
    """Change weights of a plan on disk, by their names in the ONNX file; return its new sidecar, which is written too.

    The plan that is written is opened again, and `judge` gets its answer to `feed` after that of the former: where it says no,
    nothing is written, and None returned. Raises as `open_engine` and `refit_weights` do; the plan is as it was then.
    """
    check_runtime(plan.backend)
    started, path = time.monotonic(), bundle / plan.plan
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with TensorRtRunner(bundle, plan, None, factor, None) as runner:
        before = runner(feed)
        refit_weights(runner, weights)
        content, again = serialize(runner)
    changes: dict[str, Any] = {"size_bytes": len(content), "graph_hash": open_graph(bundle / plan.model).content_hash()}
    if not again:
        changes |= {"refittable": (), "flags": tuple(flag for flag in plan.flags if not flag.startswith("REFIT"))}
    changed = plan.model_copy(update={**changes, "build_s": round(time.monotonic() - started, 3)})
    try:
        draft.write_bytes(content)
        written = changed.model_copy(update={"plan": draft.relative_to(bundle).as_posix()})
        with TensorRtRunner(bundle, written, None, factor, None) as runner:
            if not judge(before, runner(feed)):
                return None
        path.with_suffix(".json").unlink(missing_ok=True)
        os.replace(draft, path)
    except OSError as error:
        raise explain(error, path) from error
    finally:
        draft.unlink(missing_ok=True)
    write_atomically(path.with_suffix(".json"), changed.model_dump_json(indent=1) + "\n")
    return changed


def available() -> tuple[Flavour, ...]:
    """The flavours whose package is installed here and can be imported."""
    found: list[Flavour] = []
    for flavour in FLAVOURS:
        with suppress(MissingDependency):
            load_product(flavour)
            found.append(flavour)
    return tuple(found)


def describe(flavour: Flavour) -> dict[str, Any]:
    """Version, for provenance."""
    return {"backend": flavour, "version": product_version(flavour)}

"""Single measurements: each is a function of what it is asked for, run in a process of its own, and answers with what goes into JSON."""

from __future__ import annotations

import json
import os
import resource
import shutil
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu.contender import device, eager, feed_of, opened, plan_of, timed
from benchmarks.gpu.plan import Case, Task, full_plan, smoke_plan
from benchmarks.shared import CALIBRATED, DEMO_RECIPE, general, memorized

CANDIDATES = (1, 2, 4, 6)
"""Sets of neurons that one forward tries, each on ten seeds: 60 rows at the most."""


PINNED = {"height": 64, "width": 64}
"""Pixels of a smoke run's pictures: a graph for one size alone is exported in two thirds of the time, on a CPU most of the run."""


def alone(task: Task, work: Path, smoke: bool, threads: int | None) -> None:
    """The life of a task's process: it leaves its answer in `work/.<key>.json`, and what it prints in `work/<key>.log`."""
    os.setsid()  # so that it can be ended with all that it starts
    with (work / f"{task.key}.log").open("wb") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)
    found = TASKS[task.name](work, smoke, *task.arguments)
    (work / f".{task.key}.json").write_text(json.dumps(found, indent=1) + "\n")


def card(_work: Path, smoke: bool) -> dict[str, Any]:
    """What the card can do: rate of a large matrix product in each type, and of a copy, both on random numbers."""
    import torch

    where, size = device(), 256 if smoke else 8192
    rates = {}
    for name, dtype in {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}.items():
        a, b = (torch.randn(size, size, device=where).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        times = sorted(timed(partial(torch.matmul, a, b, out=out), 3 if smoke else 20))
        rates[name] = 2 * size**3 / (times[len(times) // 2] / 1e3)
    source = torch.randn(1 << (16 if smoke else 29), device=where)
    target = torch.empty_like(source)
    times = sorted(timed(lambda: target.copy_(source), 3 if smoke else 20))
    return {
        "flop_per_s": rates,
        "bytes_per_s": 2 * source.nbytes / (times[len(times) // 2] / 1e3),
        "matrix": size,
        "copied_bytes": source.nbytes,
    }


def limits(_work: Path, smoke: bool) -> dict[str, Any]:
    """FLOPs of each case's UNet, counted operator by operator, and the bytes it cannot but move: weights, inputs, output once."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from nemo_edge.model.architectures import modules

    found: dict[str, dict[str, int]] = {}
    unets: dict[str, Any] = {}
    for case in smoke_plan() if smoke else full_plan():
        if not isinstance(case, Case):
            continue
        if case.model not in unets:
            unets[case.model] = modules(str(shrunk(_work, case.model)) if smoke else case.model)["unet"].eval()
        unet, rows = unets[case.model], 2 * case.batch
        wide, text = int(unet.config.cross_attention_dim), 77
        with torch.device("meta"):
            sample = torch.empty(rows, 4, case.latents, case.latents)
            states = torch.empty(rows, text, wide)
            added = None
            if unet.config.addition_embed_type == "text_time":
                ids = 6
                pooled = unet.config.projection_class_embeddings_input_dim - ids * unet.config.addition_time_embed_dim
                added = {"text_embeds": torch.empty(rows, pooled), "time_ids": torch.empty(rows, ids)}
            counter = FlopCounterMode(display=False)
            with counter, torch.no_grad():
                unet(sample, torch.empty(rows), states, added_cond_kwargs=added)
        size = {"fp32": 4, "fp16": 2, "bf16": 2}[case.dtype]
        numbers = sum(p.numel() for p in unet.parameters()) + 2 * sample.numel() + states.numel()
        found[case.key] = {"flops": counter.get_total_flops(), "bytes": numbers * size}
    return found


def weights(work: Path, smoke: bool, model: str) -> dict[str, Any]:
    """A checkpoint of a model's exact architecture with seeded random weights."""
    from nemo_edge.release.random_weights import write_random

    started = time.monotonic()
    write_random(str(shrunk(work, model)) if smoke else model, work / "weights" / model, "fp32" if smoke else "fp16")
    return {"seconds": round(time.monotonic() - started, 1)}


def shrunk(work: Path, model: str) -> Path:
    """The configurations of an architecture with a tenth of the width, in a folder."""
    from nemo_edge.model.architectures import configurations

    folder = work / "shrunk" / model
    xl = model == "sdxl"
    for name, config in configurations(model).items():
        if name.startswith("unet"):
            config |= {"block_out_channels": [32, 64], "layers_per_block": 1, "sample_size": 8, "attention_head_dim": 4}
            config |= {"down_block_types": config["down_block_types"][-2:], "up_block_types": config["up_block_types"][:2]}
            config |= {"cross_attention_dim": 64 if xl else 32, "transformer_layers_per_block": 1}
            config |= {"addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 6 * 8 + 32} if xl else {}
        if name.startswith("vae"):
            config |= {"block_out_channels": [32] * 4, "sample_size": 64}
        if name.startswith("text_encoder"):
            config |= {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "projection_dim": 32}
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(config))
    return folder


def export(work: Path, smoke: bool, model: str, dtype: str) -> dict[str, Any]:
    """The UNet as ONNX files, baked and masked, each held against eager float32 on the CPU as `nemo-edge build` does."""
    import torch

    from nemo_edge.export import parts
    from nemo_edge.export.production import PartJob
    from nemo_edge.model.neurons import NeuronSet
    from nemo_edge.recipe.components import UNET_FOLDERS
    from nemo_edge.recipe.settings import CheckpointSettings, ExportSettings
    from nemo_edge.system.files import copy_tree
    from nemo_edge.system.progress import Progress

    source = CheckpointSettings(path=str(work / "weights" / model))
    folder, answers, progress = work / f"{model} {dtype}", work / f"answers {model} {dtype}", Progress()
    frame, variants = answers / "outline", ("baked", "masked")
    frame.mkdir(parents=True, exist_ok=True)
    parts.outline(source, frame, variants, progress)
    layers = parts.layers_of(source, "paper", progress)
    neurons = NeuronSet.empty(layers).others(16, seed=0)
    texts = sorted(path.parent.name for path in frame.glob("text_encoder*/config.json"))
    settings = ExportSettings.model_validate({"dtype": dtype, "variants": variants, **(PINNED if smoke else {})})
    jobs = [PartJob(source, place, neurons, settings, folder, {}) for place in (*texts, *UNET_FOLDERS.values())]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    neurons.save(folder / "neurons.json")
    started = time.monotonic()
    chosen = parts.answer_parts(jobs, answers, progress)
    asked = time.monotonic() - started
    found = {}
    for job in jobs[len(texts) :]:
        started = time.monotonic()
        exported = parts.export_part(job, chosen[job.place], answers, None, progress)
        worst = max(a.largest_error / max(a.largest_value, 1.0) for a in exported.agreement)
        found[job.place] = {
            "seconds": round(time.monotonic() - started, 1),
            "write_s": exported.write_s,
            "verify_s": exported.verify_s,
            "error": worst,
        }
    copy_tree(frame, folder)
    peak = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else None
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"eager_s": round(asked, 1), "files": found, "peak_host_gib": round(host, 2), "peak_device_mib": peak, "opset": settings.opset}


def answer(work: Path, smoke: bool, model: str) -> dict[str, Any]:
    """Whether plans of TensorRT-RTX run on this GPU: one for sm80, the portable choice, one for every GPU it knows; in its own words."""
    from nemo_edge.backends.tensorrt.backend import TensorRtRunner
    from nemo_edge.backends.tensorrt.flavours import load_product
    from nemo_edge.recipe.targets import COMPUTE_CAPABILITIES
    from nemo_edge.system.environment import gpus

    load_product("tensorrt-rtx")
    dtype = "fp32" if smoke else "fp16"
    bundle = work / f"{model} {dtype}"
    case = Case(model, dtype, 1, 8 if smoke else 64, ())
    checkpoint = opened(work, model, dtype, weights=False)
    here = ", ".join(f"{gpu.name}, {gpu.compute_capability}" for gpu in gpus()) or "no GPU"
    found: dict[str, Any] = {"gpu": here, "plans": {}}
    every = tuple(name for name in COMPUTE_CAPABILITIES if name != "sm75")
    for name, targets in {"sm80": ("sm80",), "portable": (), "every target": every}.items():
        row: dict[str, Any] = {"targets": list(targets)}
        try:
            started = time.monotonic()
            plan = plan_of(bundle, "unet", model, dtype, "tensorrt-rtx", targets)
            row |= {"compiled_s": round(time.monotonic() - started, 1), "size_bytes": plan.size_bytes, "version": plan.version}
            with TensorRtRunner(bundle, plan, None, 8, None) as runner:
                started = time.monotonic()
                runner(feed_of(checkpoint, case))
                row |= {"runs": True, "first_s": round(time.monotonic() - started, 2)}
        except Exception as error:  # noqa: BLE001  its words are the answer
            row |= {"runs": False, "says": f"{type(error).__name__}: {' '.join(str(error).split())[:600]}"}
        found["plans"][name] = row
    return found


def localization(work: Path, smoke: bool, model: str) -> dict[str, Any]:
    """Evaluations a second (ten seeds each) by the number of candidate sets that are tried together, in each type of the UNet."""
    import torch
    from torch import nn

    from nemo_edge.backends.torch import DTYPES
    from nemo_edge.localization.trials import Trial, Trials
    from nemo_edge.model.neurons import NeuronSet
    from nemo_edge.recipe.settings import LocalizationSettings

    samples, found = 3 if smoke else 10, []
    checkpoint = opened(work, model, "fp32" if smoke else "fp16")
    for dtype in ("fp32",) if smoke else ("fp16", "bf16", "fp32"):
        nn.Module.to(checkpoint.unet, DTYPES[dtype])  # diffusers' own warns
        width = int(checkpoint.config.unet["cross_attention_dim"])
        conditioning = {"encoder_hidden_states": torch.randn(1, 77, width, generator=torch.Generator().manual_seed(0))}
        for count in CANDIDATES[:2] if smoke else CANDIDATES:
            settings = LocalizationSettings(samples=samples)
            trials = Trials(checkpoint, settings, count * samples, 0)  # nothing is kept: whole forwards
            subject = trials.subject(conditioning)
            seconds = []
            for turn in range(2 if smoke else 3):
                first = turn * count
                sets = [
                    NeuronSet.from_lists(trials.layers, [[first + i] if j == 0 else [] for j in range(len(trials.layers))])
                    for i in range(count)
                ]
                started = time.perf_counter()
                trials.scores([Trial(subject, chosen) for chosen in sets])
                seconds.append(time.perf_counter() - started)
            best = sorted(seconds[1:])[len(seconds[1:]) // 2]
            found.append({"dtype": dtype, "candidates": count, "rows": count * samples, "evaluations_per_s": count / best})
            print(found[-1], flush=True)
    return {"samples": samples, "rates": found}


def decisions(_work: Path, smoke: bool) -> dict[str, Any]:
    """The demo's memorized captions localized on this device in float32 and in half types: the same neurons? And on the CPU."""
    from nemo_edge import demo
    from nemo_edge.localization.calibration import calibrate
    from nemo_edge.localization.localizer import Localizer
    from nemo_edge.model.checkpoint import open_checkpoint
    from nemo_edge.recipe.settings import SCORE, LocalizationSettings

    texts = general()[: 10 if smoke else CALIBRATED]
    prompts = [prompt.text for prompt in memorized()][: 2 if smoke else None]
    plain = LocalizationSettings(samples=3) if smoke else LocalizationSettings()
    found: dict[str, Any] = {}
    first: list[Any] = []
    half = ("bf16",) if device() == "cpu" else ("fp16", "bf16")  # fp16 takes minutes on a CPU
    for where, dtype in dict.fromkeys((("cpu", "fp32"), (device(), "fp32"), *((device(), dtype) for dtype in half))):
        checkpoint = open_checkpoint(str(demo.CHECKPOINT), device=where)
        started = time.perf_counter()
        calibration = calibrate(checkpoint, texts, plain)
        calibrated = time.perf_counter() - started
        assert calibration.threshold is not None
        settings = LocalizationSettings.model_validate({**plain.model_dump(), "dtype": dtype})
        started = time.perf_counter()
        results = Localizer(checkpoint, calibration.statistics, calibration.threshold.value, settings).localize_all(prompts)
        first = first or results
        found[f"{where} {dtype}"] = {
            "calibrate_s": round(calibrated, 2),
            "localize_s": round(time.perf_counter() - started, 2),
            "threshold": calibration.threshold.value,
            "same_neurons": sum(a.refined == b.refined for a, b in zip(first, results, strict=True)),
            "largest_score_difference": max(abs(a.refined_score - b.refined_score) for a, b in zip(first, results, strict=True)),
            "again_in_fp32": sum(r.exact for r in results),
        }
    return {"score": SCORE, "prompts": len(prompts), "by": found}


def build(work: Path, smoke: bool) -> dict[str, Any]:
    """The whole demo, from checkpoint to judged bundle, with eager PyTorch and the engines on the GPU as far as they run there."""
    from nemo_edge.backends import onnxruntime
    from nemo_edge.recipe.recipe import load_recipe
    from nemo_edge.release.build import build as run
    from nemo_edge.system.errors import MissingDependency

    where, provider = device(), "cpu"
    if where == "cuda":
        try:
            onnxruntime.probe_provider("cuda")
            provider = "cuda"
        except MissingDependency:
            pass
    settings = load_recipe(DEMO_RECIPE)
    assert settings.tensorrt_rtx is not None
    output = work / "demo"
    changed: dict[str, Any] = {
        "output": output,
        "checkpoint": settings.checkpoint.model_copy(update={"device": where}),
        "engine": settings.engine.model_copy(update={"provider": provider}),
        "tensorrt_rtx": None,
        "attack": None,  # minutes of a machine that is lent for minutes
        "latency": None,
    }
    if smoke:
        changed["prompts"] = settings.prompts.model_copy(update={"limit": 1})
        changed["calibration"] = settings.calibration.model_copy(update={"prompts": 5})
        changed["localization"] = settings.localization.model_copy(update={"samples": 3})
        changed["fidelity"] = settings.fidelity.model_copy(update={"seeds": 2, "general_prompts": 1})
        changed["sampling"] = settings.sampling.model_copy(update={"steps": 5, **PINNED})
        changed["export"] = settings.export.model_copy(update={"variants": ("masked",), **PINNED})
    started = time.monotonic()
    result = run(settings.model_copy(update=changed))
    gates = {gate.name: gate.passed for gate in result.manifest.gates}
    return {"seconds": round(time.monotonic() - started, 1), "eager": where, "onnxruntime": provider, "gates": gates}


def profile(work: Path, smoke: bool, model: str) -> dict[str, Any]:
    """Where the time of an eager forward goes, by the kind of kernel: of the largest case that is timed."""
    import torch
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    dtype = "fp32" if smoke else "fp16"
    case = Case(model, dtype, 1 if smoke else 4, 8 if smoke else 128, (), ("baked",))
    call = eager(work, case)["baked"]
    for _ in range(3):
        call()
    gpu = torch.cuda.is_available()
    with profiler(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]) as found:
        call()
        if gpu:
            torch.cuda.synchronize()
    kinds: dict[str, float] = defaultdict(float)
    names: dict[str, float] = defaultdict(float)
    for event in found.key_averages():
        spent = event.self_device_time_total if gpu else event.self_cpu_time_total
        if spent > 0 and not (gpu and event.device_type.name != "CUDA"):
            kinds[kind_of(event.key)] += spent / 1e3
            names[event.key[:120]] += spent / 1e3
    longest = dict(sorted(names.items(), key=lambda item: -item[1])[:15])
    return {"case": case.key, "milliseconds": dict(sorted(kinds.items(), key=lambda item: -item[1])), "longest": longest}


KINDS = {
    "attention": ("flash", "fmha", "attention", "softmax", "bmm"),
    "convolution": ("conv", "fprop", "implicit", "dgrad", "winograd"),
    "matrix product": ("gemm", "addmm", "matmul", "linear", "nvjet", "cutlass", "aten::mm"),
    "normalization": ("norm", "welford", "moments", "rowwise"),
    "layout and copies": ("nchw", "nhwc", "copy", "transpose", "memcpy", "memset", "cat", "upsample"),
    "elementwise": ("elementwise", "gelu", "silu", "add", "mul", "vectorized"),
}
"""Kind of kernel → what its name contains, the first that fits."""


def kind_of(kernel: str) -> str:
    """The kind of a kernel, by its name."""
    name = kernel.lower()
    return next((kind for kind, words in KINDS.items() if any(word in name for word in words)), "other")


TASKS: dict[str, Callable[..., dict[str, Any]]] = {
    f.__name__: f for f in (card, limits, weights, export, answer, localization, decisions, build, profile)
}

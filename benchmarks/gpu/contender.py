"""One way to run a UNet, in a process of its own: it opens the weights, warms up, and takes its turns.

Times are milliseconds between two CUDA events around a call, or of the clock where there is no GPU. R rows (two a picture), N neurons.
"""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu.plan import Case

WARM_UPS = 20
NEURONS = 16
Call = Callable[[], Any]


def serve(name: str, work: Path, smoke: bool, pipe: Any) -> None:
    """The life of the process: answer until the pipe is closed."""
    contender = Contender(name, work, smoke)
    while True:
        try:
            what, arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((True, getattr(contender, what)(*arguments)))
        except Exception as error:  # noqa: BLE001  it costs its own row, and is told there
            contender.close()
            pipe.send((False, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"))


class Contender:
    """A contender and the calls that it has open."""

    def __init__(self, name: str, work: Path, smoke: bool) -> None:
        self.name, self.work, self.smoke = name, work, smoke
        self.calls: dict[str, Call] = {}

    def open(self, case: Case) -> dict[str, Any]:
        """Open every variant of a case and warm it up; leave the first answers in files. Return what it took."""
        import numpy as np
        import torch

        self.close()
        started = time.monotonic()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self.calls = _openers()[self.name](self.work, case)
        opened = time.monotonic()
        runs = 2 if self.smoke else WARM_UPS
        for variant, call in self.calls.items():
            answer = call()
            path = self.work / "answers" / f"{case.key} {self.name} {variant}.npy"
            path.parent.mkdir(exist_ok=True)
            np.save(path, answer.float().cpu().numpy())
            for _ in range(runs - 1):
                call()
        peak = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else None
        return {
            "open_s": round(opened - started, 2),
            "warm_up_s": round(time.monotonic() - opened, 2),
            "peak_torch_mib": None if peak is None else round(peak),
            "device_mib": _device_mib(),
        }

    def turn(self, runs: int) -> dict[str, list[float]]:
        """Milliseconds of `runs` calls of each variant, one variant after the other."""
        return {variant: timed(call, runs) for variant, call in self.calls.items()}

    def close(self) -> None:
        """Let go of what is open."""
        import torch

        self.calls = {}
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def timed(call: Call, runs: int) -> list[float]:
    """Milliseconds of each of some calls."""
    import torch

    if not torch.cuda.is_available():
        found = []
        for _ in range(runs):
            started = time.perf_counter()
            call()
            found.append((time.perf_counter() - started) * 1e3)
        return found
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(runs)]
    call()  # what the others left in the caches is no part of it
    torch.cuda.synchronize()
    for first, last in events:
        first.record()
        call()
        last.record()
        torch.cuda.synchronize()
    return [first.elapsed_time(last) for first, last in events]


def device() -> str:
    """What PyTorch runs on here."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def opened(work: Path, model: str, dtype: str, *, weights: bool = True) -> Any:
    """The checkpoint of a model with the weights of its UNet, or without any."""
    from nemo_edge.backends.torch import DTYPES
    from nemo_edge.model.checkpoint import open_checkpoint

    parts = ("unet",) if weights else ()
    return open_checkpoint(str(work / "weights" / model), parts=parts, device=device() if weights else "cpu", dtype=DTYPES[dtype])


def neurons_of(checkpoint: Any) -> Any:
    """The neurons that are silenced: a few at random, as `nemo-edge build --random-weights` has them."""
    from nemo_edge.model.checkpoint import value_layers
    from nemo_edge.model.neurons import NeuronSet

    return NeuronSet.empty(value_layers(checkpoint.unet)).others(NEURONS, seed=0)


def feed_of(checkpoint: Any, case: Case) -> dict[str, Any]:
    """What the UNet is fed, numpy float32, the same for all contenders."""
    feed: dict[str, Any] = checkpoint.unet_component().example(2 * case.batch, height=case.latents, width=case.latents)
    if "time_ids" in feed:
        size = 8 * case.latents
        feed["time_ids"][:] = [size, size, 0, 0, size, size]
    return feed


def mask_of(neurons: Any, variant: str, rows: int) -> Any:
    """The mask of a variant, float32 [R, N]."""
    import numpy as np

    if variant == "masked, all ones":
        return np.ones((rows, len(neurons.mask())), np.float32)
    if variant == "masked":
        return np.tile(neurons.mask(), (rows, 1))
    return np.stack([type(neurons).empty(neurons.layers).others(NEURONS, seed=row).mask() for row in range(rows)])


def _openers() -> dict[str, Callable[[Path, Case], dict[str, Call]]]:
    return {
        "eager": lambda work, case: eager(work, case, channels_last=False),
        "eager, channels_last": eager,
        "CUDA graph": lambda work, case: {name: captured(call) for name, call in eager(work, case).items()},
        "torch.compile, reduce-overhead": lambda work, case: eager(work, case, compiled="reduce-overhead"),
        "torch.compile, max-autotune-no-cudagraphs": lambda work, case: eager(work, case, compiled="max-autotune-no-cudagraphs"),
        "ONNX Runtime CUDA": onnx_runtime,
        "ONNX Runtime CUDA, CUDA graph": lambda work, case: onnx_runtime(work, case, graph=True),
        "TensorRT-RTX": lambda work, case: tensorrt(work, case, "tensorrt-rtx"),
        "TensorRT": lambda work, case: tensorrt(work, case, "tensorrt"),
    }


def eager(work: Path, case: Case, channels_last: bool = True, compiled: str = "") -> dict[str, Call]:
    """diffusers' UNet with PyTorch's attention; its mask is multiplied in by hooks that stay."""
    import torch
    from torch import nn

    from nemo_edge.model.surgery import bake_

    checkpoint = opened(work, case.model, case.dtype)
    neurons, feed = neurons_of(checkpoint), feed_of(checkpoint, case)
    unet = checkpoint.unet
    if channels_last:
        nn.Module.to(unet, memory_format=torch.channels_last)
    like = next(unet.parameters())
    tensors = [torch.from_numpy(array).to(like) for array in feed.values()]
    if channels_last:
        tensors[0] = tensors[0].contiguous(memory_format=torch.channels_last)
    calls: dict[str, Call] = {}
    if "baked" in case.variants:
        calls["baked"] = _caller(bake_(deepcopy(unet), neurons), tensors, compiled)
    masks = {name: torch.from_numpy(mask_of(neurons, name, len(tensors[0]))).to(like) for name in case.variants if name != "baked"}
    if masks:
        mask = torch.ones_like(next(iter(masks.values())))
        _mask(unet, neurons.layers, mask)
        masked = _caller(unet, tensors, compiled)

        def behind(values: Any) -> object:
            mask.copy_(values)
            return masked()

        calls |= {name: partial(behind, values) for name, values in masks.items()}
    return calls


def _mask(unet: Any, layers: Any, mask: Any) -> None:
    """Multiply each value projection's output by its slice of the mask, from now on."""
    start = 0
    for layer in layers:
        factor = mask[:, start : start + layer.width][:, None, :]
        unet.get_submodule(layer.name).register_forward_hook(lambda _module, _args, value, factor=factor: value * factor)
        start += layer.width


def _caller(unet: Any, tensors: list[Any], compiled: str) -> Call:
    import torch

    run = torch.compile(unet, mode=compiled) if compiled else unet
    sample, times, text, *added = tensors
    extra = {"added_cond_kwargs": dict(zip(("text_embeds", "time_ids"), added, strict=True))} if added else {}

    def call() -> Any:
        with torch.no_grad():
            return run(sample, times, text, return_dict=False, **extra)[0]

    return call


def captured(call: Call) -> Call:
    """The call as a CUDA graph that was captured by hand; where there is no GPU, itself."""
    import torch

    if not torch.cuda.is_available():
        return call
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        answer = call()

    def replay() -> Any:
        graph.replay()
        return answer

    return replay


def onnx_runtime(work: Path, case: Case, *, graph: bool = False) -> dict[str, Call]:
    """The exported graphs with inputs and outputs bound to the GPU's memory, their work recorded by ONNX Runtime or not."""
    import onnxruntime as ort
    import torch

    from nemo_edge.backends import onnxruntime

    checkpoint = opened(work, case.model, case.dtype, weights=False)
    neurons, feed, where = neurons_of(checkpoint), feed_of(checkpoint, case), device()
    if where == "cuda":
        onnxruntime.probe_provider("cuda")
    options = {"enable_cuda_graph": "1"} if graph and where == "cuda" else {}
    calls: dict[str, Call] = {}
    sessions: dict[str, Any] = {}
    for variant in case.variants:
        place = "unet" if variant == "baked" else "unet_masked"
        path = work / f"{case.model} {case.dtype}" / place / "model.onnx"
        if place not in sessions:
            sessions[place] = ort.InferenceSession(str(path), providers=[(onnxruntime.PROVIDERS[where], options)])
        own = feed if variant == "baked" else {**feed, "value_mask": mask_of(neurons, variant, 2 * case.batch)}
        calls[variant] = _bound(sessions[place], {name: torch.from_numpy(value).to(where) for name, value in own.items()})
    return calls


def _bound(session: Any, tensors: dict[str, Any]) -> Call:
    import torch

    types = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16, "tensor(bfloat16)": torch.bfloat16}
    ports = {port.name: types[port.type] for port in (*session.get_inputs(), *session.get_outputs())}
    typed = {name: tensor.to(ports[name]).contiguous() for name, tensor in tensors.items()}
    name = session.get_outputs()[0].name
    answer = torch.empty_like(typed["sample"], dtype=ports[name])
    binding = session.io_binding()
    for port, tensor in (*typed.items(), (name, answer)):
        bind = binding.bind_output if port == name else binding.bind_input
        element = {torch.float32: 1, torch.float16: 10, torch.bfloat16: 16}[tensor.dtype]  # TensorProto's numbers
        bind(port, tensor.device.type, 0, element, tuple(tensor.shape), tensor.data_ptr())

    def call(_held: Any = typed) -> Any:
        session.run_with_iobinding(binding)
        return answer

    return call


def tensorrt(work: Path, case: Case, flavour: str) -> dict[str, Call]:
    """Engines compiled here: TensorRT-RTX's portable choice, which is not for Hopper, or TensorRT's for this GPU."""
    from nemo_edge.backends.tensorrt.backend import TensorRtRunner

    checkpoint = opened(work, case.model, case.dtype, weights=False)
    neurons, feed = neurons_of(checkpoint), feed_of(checkpoint, case)
    calls: dict[str, Call] = {}
    runners: dict[str, Any] = {}
    for variant in case.variants:
        place = "unet" if variant == "baked" else "unet_masked"
        if place not in runners:
            bundle = work / f"{case.model} {case.dtype}"
            runners[place] = TensorRtRunner(bundle, plan_of(bundle, place, case.model, case.dtype, flavour), None, 8, None)
        own = feed if variant == "baked" else {**feed, "value_mask": mask_of(neurons, variant, 2 * case.batch)}
        calls[variant] = _again(runners[place], own)
    return calls


def _again(runner: Any, feed: dict[str, Any]) -> Call:
    """Run on what is on the GPU already; a variant that shares its engine puts its own mask there first, which is small."""
    import torch

    runner(feed)
    mask = torch.from_numpy(feed["value_mask"]).cuda() if "value_mask" in feed else None
    return lambda: runner.again({} if mask is None else {"value_mask": mask})


def plan_of(bundle: Path, place: str, model: str, dtype: Any, flavour: Any, targets: tuple[str, ...] = ()) -> Any:
    """The plan of an exported UNet for 1 to 4 pictures of the sizes in question, compiled unless it is there."""
    from nemo_edge.backends.tensorrt.backend import compile_engine
    from nemo_edge.backends.tensorrt.plans import open_plan_file
    from nemo_edge.backends.tensorrt.profiles import plan_profiles
    from nemo_edge.graph.onnxfile import open_graph
    from nemo_edge.model.configuration import Configuration
    from nemo_edge.recipe.targets import ProfileSettings, TensorRtRtxSettings, TensorRtSettings, target_name

    if flavour == "tensorrt-rtx":
        settings: Any = TensorRtRtxSettings(profiles=(_profile(ProfileSettings, bundle),), targets=targets)
        found = bundle / "engines" / f"{place}.{flavour}.{target_name(targets)}.json"
        if found.is_file():
            return open_plan_file(found)
    else:
        settings = TensorRtSettings(profiles=(_profile(ProfileSettings, bundle),))
    config = Configuration.load(bundle, tokenizers=False)
    inputs, _ = open_graph(bundle / place / "model.onnx").ports()
    profiles = plan_profiles(place, {name: port.dims for name, port in inputs.items()}, settings.profiles, config)
    return compile_engine(bundle, place, f"{place}/model.onnx", flavour, settings, profiles, dtype)


def _profile(kind: Any, bundle: Path) -> Any:
    import json

    size = 8 * json.loads((bundle / "unet" / "config.json").read_text())["sample_size"]
    return kind(batch=(1, 1, 4), height=(size, size, size), width=(size, size, size))


def _device_mib() -> int | None:
    """Memory of the GPU that this process holds, as the driver tells it; None where it does not."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    told = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30).stdout
    rows = [line.split(",") for line in told.splitlines()]
    return next((int(memory) for pid, memory in rows if pid.strip() == str(os.getpid()) and memory.strip().isdigit()), None)

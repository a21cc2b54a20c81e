"""From float32 ONNX files to quantized ones: the ranges of activations are found or read, and each file is written and tried.

Knows a bundle's folders, and neither memories nor gates: those are measured on what comes out.
"""

from __future__ import annotations

__all__ = [
    "PROMPT",
    "RANGES",
    "Files",
    "check_graph",
    "check_ranges",
    "find_ranges",
    "quantize_files",
    "scheme_of",
]

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nemo_edge import __version__
from nemo_edge.backends.base import Runner
from nemo_edge.backends.onnxruntime import OnnxRuntimeRunner
from nemo_edge.export.quantization._observation import Observed, observe
from nemo_edge.export.quantization._operators import Operator, operators
from nemo_edge.export.quantization._rewriting import Chosen, rewrite
from nemo_edge.export.quantization.base import Scheme
from nemo_edge.export.quantization.floats import Fp8
from nemo_edge.export.quantization.integers import Int4Weights, Int8, Int8Weights
from nemo_edge.export.quantization.ranges import Limit, Ranges
from nemo_edge.export.quantization.record import ESTIMATED, RECORD, Origin, Quantized, Rounded
from nemo_edge.graph.onnxfile import open_graph
from nemo_edge.graph.valueweights import VALUE_DATA, open_value_weights
from nemo_edge.measure.profile import integer_share
from nemo_edge.model.configuration import Configuration
from nemo_edge.model.neurons import ValueLayer
from nemo_edge.recipe.components import UNET_FOLDERS
from nemo_edge.recipe.quantization import LIMITS, QuantizationSettings
from nemo_edge.recipe.settings import SamplingSettings
from nemo_edge.recipe.targets import EngineSettings
from nemo_edge.sampling.loop import Pipeline, denoise
from nemo_edge.sampling.pipelines import open_engines
from nemo_edge.system.errors import ExportError, InputError
from nemo_edge.system.files import write_atomically
from nemo_edge.system.progress import Progress

RANGES = "ranges.json"
PROMPT = "a photograph of an astronaut riding a horse"
"""What is drawn where no prompts are needed: of random weights, and to try rounded weights alone."""
_COUNTED = ".histograms.npz"
_MOSTLY = 0.9
"""The share of the work from which on integers are faster: to and from them costs time, too."""
_LARGEST = 8e6
"""Where a range of 127 levels may end, so that its scale is a float16."""


def scheme_of(settings: QuantizationSettings) -> Scheme:
    """Return the scheme of a recipe's table."""
    if settings.scheme == "int4_weights":
        return Int4Weights(settings.block)
    found: dict[str, Scheme] = {"int8": Int8(), "int8_weights": Int8Weights(), "fp8": Fp8()}
    return found[settings.scheme]


@dataclass(frozen=True)
class Files:
    """A bundle's UNets in float32, and what draws with them."""

    bundle: Path
    variants: tuple[str, ...]
    prompts: tuple[str, ...]
    sampling: SamplingSettings
    threads: int | None
    layers: tuple[ValueLayer, ...]
    source: str
    """Hash of the checkpoint."""

    def path(self, variant: str) -> Path:
        """The file of a variant."""
        return self.bundle / UNET_FOLDERS[variant] / "model.onnx"

    def pipeline(self, variant: str, unet: Runner, stack: ExitStack) -> Pipeline:
        """What draws with a runner of a variant, closed by `stack`."""
        config, engine = Configuration.load(self.bundle), EngineSettings(threads=self.threads)
        names = (*config.text_encoder_names, "vae_decoder")
        found = open_engines(config, self.bundle, engine, variant, stack, names)
        return Pipeline(config, tuple(found[name] for name in names[:-1]), unet, found["vae_decoder"])


def check_graph(files: Files, keep: Sequence[str]) -> None:
    """Raise `InputError` for files that are quantized already, and for a `keep` that names nothing."""
    operators(open_graph(files.path(files.variants[0])), keep)


def check_ranges(ranges: Ranges, path: Path, files: Files) -> None:
    """Raise `InputError` unless the ranges at `path` are of this checkpoint, and of all that is quantized."""
    remedy = "leave the file out, and they are found anew"
    if ranges.source != files.source:
        raise InputError(f"{path}: these are the ranges of another checkpoint: {remedy}")
    if ranges.sampling != files.sampling.model_dump(mode="json"):
        raise InputError(f"{path}: these are the ranges of another [sampling]: {remedy}")
    found, _ = operators(open_graph(files.path(files.variants[0])), ())
    missing = next((o.module for o in found if o.module not in ranges.inputs or (o.conv and o.module not in ranges.outputs)), None)
    if missing:
        raise InputError(f"{path} has no range of {missing}: {remedy}")


def find_ranges(files: Files, keep: Sequence[str], folder: Path, progress: Progress) -> Ranges:
    """Draw a picture of each prompt and write how large the activations of the UNet become: `ranges.json` in `folder`.

    What is counted is kept there until it is done, and gone on from. Raises `InputError` for a value that is not finite and, before a
    picture is drawn, for a `keep` that names nothing.
    """
    variant, counted = files.variants[0], folder / _COUNTED
    graph = open_graph(files.path(variant))
    operators(graph, keep)
    chosen, _ = operators(graph, ())
    tensors = {tensor: o.module for o in chosen for tensor in ((o.input, o.output) if o.conv else (o.input,))}
    with ExitStack() as stack:
        observed = stack.enter_context(Observed(graph, tensors, files.threads))
        observe(files.pipeline(variant, observed, stack), observed, files.prompts, 0, files.sampling, counted, progress)
    limits = {name: histogram.limits() for name, histogram in observed.histograms.items()}
    found = Ranges(
        component="unet",
        source=files.source,
        prompts=files.prompts,
        seed=0,
        sampling=files.sampling.model_dump(mode="json"),
        version=__version__,
        inputs={o.module: limits[o.input] for o in chosen},
        outputs={o.module: limits[o.output] for o in chosen if o.conv},
    )
    found.write(folder / RANGES)
    counted.unlink()
    return found


def quantize_files(
    files: Files, settings: QuantizationSettings, ranges: Ranges | None, folder: Path, facts: Mapping[str, str], progress: Progress
) -> Quantized:
    """Write the UNets, quantized, into their places in `folder`, with a record beside them; `facts` go into the files.

    Raises `InputError` for a file that is quantized already, for a `keep` that names nothing, and where nothing is left to quantize;
    `ExportError` for a file that gives numbers that are not finite.
    """
    scheme, told = scheme_of(settings), {**facts, "quantization": settings.scheme}
    modules, kept = _modules(files, settings, scheme, ranges)
    errors, integers = dict[str, float](), dict[str, float]()
    sizes: dict[str, tuple[int, int]] = {}
    with progress.task("quantize", 2 * len(files.variants)) as advance:
        for variant in files.variants:
            place, graph = UNET_FOLDERS[variant], open_graph(files.path(variant))
            target = folder / place
            target.mkdir(parents=True, exist_ok=True)
            chosen = [_chosen(o, ranges, settings) for o in operators(graph, ())[0] if o.module in modules]
            rewrite(graph, chosen, scheme, scheme.activation if ranges else None, target, told)
            with suppress(InputError):  # a bundle whose weights are not their layers' alone takes no other neurons
                open_value_weights(open_graph(target / "model.onnx"), files.layers).separate(VALUE_DATA)
            sizes[place] = _size_bytes(files.path(variant)), _size_bytes(target / "model.onnx")
            advance(1)
            errors[place], feed = _error(files, variant, target / "model.onnx")
            _tell_error(place, errors[place], settings, progress)
            if settings.scheme == "int8":
                integers[place] = integer_share(target / "model.onnx", EngineSettings(threads=files.threads), feed) or 0.0
            advance(1)
    record = Quantized(
        settings=settings.model_copy(update={"ranges": None}),  # whose path is of the machine that built it
        modules=modules,
        kept=kept,
        errors=errors,
        integers=integers,
        sizes_bytes=sizes,
        ranges=_origin(ranges, settings) if ranges else None,
    )
    write_atomically(folder / RECORD, record.model_dump_json(indent=1) + "\n")
    _tell_integers(record, progress)
    return record


def _tell_integers(record: Quantized, progress: Progress) -> None:
    if record.integers and (share := min(record.integers.values())) < _MOSTLY:
        kept_by = f"{len(record.kept)} modules stay in float32, some by quantization.keep or quantization.error"
        progress.note(f"{share:.0%} of what the UNet multiplies are integers, and below {_MOSTLY:.0%} it may be slower for it: {kept_by}")


def _tell_error(place: str, error: float, settings: QuantizationSettings, progress: Progress) -> None:
    limit = LIMITS[settings.scheme].engine_error
    if error > limit:
        remedy = "other ranges, or more in quantization.keep, may mend it"
        progress.note(f"what {place} says differs by {error:.0%} once it is {settings.scheme}, and by {limit:.0%} it may: {remedy}")


def _modules(
    files: Files, settings: QuantizationSettings, scheme: Scheme, ranges: Ranges | None
) -> tuple[dict[str, Rounded], dict[str, str]]:
    """What is quantized, with what rounding changes of it, and why which other module is not."""
    graph = open_graph(files.path(files.variants[0]))
    found, kept = operators(graph, settings.keep)
    modules = {o.module: _rounded(o, scheme, graph.read([o.weight])[o.weight], ranges, settings) for o in found}
    kept |= {name: f"{ESTIMATED} {r.error:.2g}" for name, r in modules.items() if r.error > settings.error}
    modules = {name: rounded for name, rounded in modules.items() if name not in kept}
    if not modules:
        raise InputError("nothing is left to be quantized: take parts out of quantization.keep, or raise quantization.error")
    return modules, kept


def _size_bytes(model: Path) -> int:
    return model.stat().st_size + sum(open_graph(model).external_files().values())


def _origin(ranges: Ranges, settings: QuantizationSettings) -> Origin:
    steps = ranges.sampling.get("steps")
    return Origin(prompts=len(ranges.prompts), steps=int(steps) if steps else 0, version=ranges.version, file=settings.ranges is not None)


def _error(files: Files, variant: str, quantized: Path) -> tuple[float, dict[str, np.ndarray]]:
    """How far what a quantized file says is from what the exact one says on the way to a picture, and what it was fed last; one of them
    is open at a time."""
    wrong, power = 0.0, 0.0
    with ExitStack() as stack:
        exact = stack.enter_context(OnnxRuntimeRunner(files.path(variant), threads=files.threads))
        steps = list(denoise(files.pipeline(variant, exact, stack), files.prompts[:1], [0], files.sampling))
    with OnnxRuntimeRunner(quantized, threads=files.threads) as runner:
        for step in steps:
            (got,) = runner(step.feed).values()
            wrong += float(np.square(got - step.output_RCHW, dtype=np.float64).sum())
            power += float(np.square(step.output_RCHW, dtype=np.float64).sum())
    if not power:
        raise ExportError(f"{files.path(variant)} says nothing but zeros, so that no error can be told: build the bundle again")
    if not np.isfinite(wrong):
        raise ExportError(f"{quantized.parent.name} gives numbers that are not finite once it is quantized: try another scheme")
    return float(np.sqrt(wrong / power)), steps[-1].feed


def _end(limits: Sequence[Limit], settings: QuantizationSettings) -> tuple[float, float]:
    """Where a range ends, by the recipe's word for it, and what rounding changes then."""

    def error(limit: Limit) -> float:
        return limit.floats if settings.scheme == "fp8" else limit.integers

    if settings.range == "least error":
        chosen = min(limits, key=error)
    else:
        share = 1.0 if settings.range == "largest" else round(float(settings.range.removesuffix(" %")) / 100, 6)
        chosen = next(limit for limit in limits if limit.share == share)
    return chosen.value, error(chosen)


def _rounded(operator: Operator, scheme: Scheme, weight: np.ndarray, ranges: Ranges | None, settings: QuantizationSettings) -> Rounded:
    packed = scheme.pack(weight.astype(np.float32, copy=False), operator)
    if ranges is None:
        return Rounded(weight=packed.error)
    output = _end(ranges.outputs[operator.module], settings)[1] if operator.conv else 0.0
    return Rounded(weight=packed.error, input=_end(ranges.inputs[operator.module], settings)[1], output=output)


def _chosen(operator: Operator, ranges: Ranges | None, settings: QuantizationSettings) -> Chosen:
    if ranges is None:
        return Chosen(operator)
    output = _end(ranges.outputs[operator.module], settings)[0] if operator.conv else None
    found = Chosen(operator, _end(ranges.inputs[operator.module], settings)[0], output)
    if max(found.input_limit or 0, found.output_limit or 0) > _LARGEST:
        raise InputError(
            f"{operator.module} has values beyond {_LARGEST:.0e}, too many for a scale in float16: name it in quantization.keep"
        )
    return found

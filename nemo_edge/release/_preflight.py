"""One look before the work: at the output, the weights, the prompts, this machine and its memory.

What a build would stumble over after hours is found here, and handed on as one value. A build, its dry run and `doctor --model` look
with the same eyes; nothing is run, and nothing is written.
"""

from __future__ import annotations

__all__ = ["Preflight", "check_compiles", "check_integers", "check_runs", "preflight", "slow_integers"]

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from nemo_edge.backends import onnxfiles
from nemo_edge.backends.tensorrt.fit import serves
from nemo_edge.backends.tensorrt.flavours import check, check_runtime
from nemo_edge.bundle.manifest import check_output, open_bundle, verify
from nemo_edge.model.architectures import ARCHITECTURES, source
from nemo_edge.model.configuration import Configuration, upcasts_decoder
from nemo_edge.model.inspection import check_folder, check_kind, check_layers
from nemo_edge.model.marker import is_random
from nemo_edge.recipe.components import UNET_FOLDERS
from nemo_edge.recipe.recipe import Recipe
from nemo_edge.recipe.targets import FLAVOUR_OF, EngineSettings, unfit_for_turing
from nemo_edge.release._footprint import Footprint, check_memory, estimate
from nemo_edge.release._inputs import Inputs, read_inputs
from nemo_edge.release._keys import bundle_key
from nemo_edge.release._stages import stage_keys
from nemo_edge.release.random_weights import weights_folder
from nemo_edge.system.clock import now
from nemo_edge.system.environment import DOT_PRODUCTS, int8_products
from nemo_edge.system.errors import BundleError, InputError, MissingDependency
from nemo_edge.system.files import checkpoint_folder, with_commit
from nemo_edge.system.processes import run_in_process
from nemo_edge.system.progress import Progress


@dataclass(frozen=True)
class Preflight:
    """What was seen: a recipe that can be built here, and what of it is there already."""

    recipe: Recipe
    """With the place of its random weights for its checkpoint, where it wants some, and with the commit of a hub id."""
    inputs: Inputs | None
    """None where the random weights are still to be made: their hashes are part of every key."""
    keys: dict[str, str] = field(default_factory=dict)
    """The key of each stage."""
    key: str = ""
    """The key of the bundle."""
    up_to_date: bool = False
    """The bundle is there, made from exactly this, with every file as it was. Then nothing else was looked at."""
    footprint: Footprint | None = None
    """Memory and disk that a build takes; None where nobody can tell, as without safetensors."""
    size: tuple[int, int] | None = None
    """Height and width of the pictures that are drawn, in pixels; None where nothing of the model was looked at."""
    notes: tuple[str, ...] = ()
    """What was assumed of the checkpoint: a line each."""


def preflight(recipe: Recipe, progress: Progress) -> Preflight:
    """Look at all that a build needs.

    Raises `InputError` for what cannot be used or does not fit together, and for too little memory; `MissingDependency` for a
    compiler, a provider or a GPU that is not here.
    """
    check_output(recipe.output)
    now()  # a time that is none is refused before the work
    recipe = _with_weights(recipe)
    if recipe.random_weights is not None and not Path(recipe.checkpoint.path).is_dir():
        return Preflight(recipe, None, footprint=_check_unmade(recipe, recipe.random_weights.architecture, progress))
    recipe = _committed(recipe)
    model = checkpoint_folder(recipe.checkpoint.path)
    if model.is_dir():
        check_folder(model, allow_pickle=recipe.checkpoint.allow_pickle)
    inputs = read_inputs(recipe, progress.note)
    keys = stage_keys(recipe, inputs)
    key = bundle_key(recipe, keys)
    if _up_to_date(recipe.output, key):
        return Preflight(recipe, inputs, keys, key, up_to_date=True)
    notes = (*_check_weights(recipe, model), *slow_integers(recipe))
    with _configurations(model) as configured:
        size = _check_model(recipe, configured)
    footprint = _footprint(recipe, model)
    if recipe.random_weights is None:
        _check_trained(model)
        _check_evidence(recipe, inputs)
    return Preflight(recipe, inputs, keys, key, footprint=footprint, size=size, notes=notes)


def check_runs(recipe: Recipe) -> None:
    """Raise `MissingDependency` unless what a recipe's engines are to be run with is here, and runs what it compiles."""
    engine = recipe.engine
    check_integers(recipe)
    if engine.flavour is None:
        onnxfiles.probe(engine)
        return
    here, _ = check_runtime(engine.flavour)
    targets = recipe.tensorrt_rtx.targets if recipe.tensorrt_rtx and engine.flavour == "tensorrt-rtx" else None
    if targets is not None and not serves(engine.flavour, targets, here):
        raise MissingDependency(
            f"the TensorRT-RTX engines that [tensorrt_rtx] compiles do not run here, and engine.backend = 'tensorrt-rtx' runs them: "
            f"this machine has {here}; change its targets, or the backend"
        )


def check_compiles(recipe: Recipe, model: Path) -> None:
    """Find out whether what a recipe says of a model, a local checkpoint or the configurations of one, is compiled here.

    Raises `InputError` for a type that a target lacks, `MissingDependency` for a compiler or a GPU that is not here.
    """
    upcast = recipe.export.dtype != "fp32" and recipe.tensorrt_rtx is not None and upcasts_decoder(model)
    why = unfit_for_turing(recipe.tensorrt_rtx, {"vae_decoder": "fp32"}) if recipe.tensorrt_rtx and upcast else ""
    if why:
        raise InputError(f"{why}; the checkpoint's VAE decodes in fp32 (force_upcast)")
    for table, flavour in FLAVOUR_OF.items():
        if getattr(recipe, table) is not None:
            check(flavour, getattr(recipe, table))


def check_integers(recipe: Recipe) -> None:
    """Raise `MissingDependency` where OpenVINO is to multiply integers that overflow on this CPU."""
    if recipe.uses_openvino and recipe.multiplies_integers:
        from nemo_edge.backends import openvino

        openvino.check_integers(recipe.engine, "quantization.scheme = 'int8'")


def slow_integers(recipe: Recipe) -> tuple[str, ...]:
    """Say where integers are right on this CPU, and slow."""
    if recipe.engine.flavour is not None or not recipe.multiplies_integers or int8_products() not in ("slow", "overflows"):
        return ()
    return (f"this CPU has no instructions for 8-bit integers ({DOT_PRODUCTS}): int8 draws the same here, but hardly faster",)


def _with_weights(recipe: Recipe) -> Recipe:
    """The recipe with the place of its random weights as its checkpoint, where it wants some."""
    if recipe.random_weights is None:
        return recipe
    checkpoint = recipe.checkpoint.model_copy(update={"path": str(weights_folder(recipe)), "loras": ()})
    return recipe.model_copy(update={"checkpoint": checkpoint})


def _committed(recipe: Recipe) -> Recipe:
    """The recipe with the commit that its hub id stands for, so that all stages open the same, and the bundle says which."""
    checkpoint = recipe.checkpoint.model_copy(update={"path": with_commit(recipe.checkpoint.path)})
    return recipe.model_copy(update={"checkpoint": checkpoint})


def _up_to_date(output: Path, key: str) -> bool:
    try:
        return open_bundle(output).key == key and verify(output).passed
    except BundleError:
        return False


def _check_unmade(recipe: Recipe, architecture: str, progress: Progress) -> Footprint:
    """Look at random weights before gigabytes of them are written, which are not needed for that."""
    model = source(architecture)
    _check_model(recipe, model)
    found = run_in_process("count the weights", progress, "nemo_edge.release.random_weights.parts_of", architecture)
    footprint = estimate(str(model), recipe.output, found)
    check_memory(footprint, recipe.export.dtype, compiled=_compiled(recipe), ranges=_ranges(recipe))
    return footprint


def _check_weights(recipe: Recipe, model: Path) -> tuple[str, ...]:
    """Whether a single file is a whole model and the LoRAs fit, of which no weight is read; return what was assumed."""
    from nemo_edge.model.checkpoint import check_files, open_parts

    check_files(recipe.checkpoint.path, allow_pickle=recipe.checkpoint.allow_pickle)
    if model.is_dir() and not recipe.checkpoint.loras:
        return ()
    opened = open_parts(recipe.checkpoint)
    opened.token_ids([""])
    return opened.notes


@contextmanager
def _configurations(model: Path) -> Iterator[Path]:
    """The folder of a model's configurations: its own, or those of a single file while they are looked at."""
    if model.is_dir():
        yield model
        return
    from nemo_edge.model.singlefile import laid_out

    with laid_out(model) as layout:
        yield layout.folder


def _check_model(recipe: Recipe, model: Path) -> tuple[int, int]:
    """Whether the recipe fits the model, of which configurations are read, and this machine runs, compiles and times its engines; return
    the size that is drawn."""
    check_kind(model)
    config = Configuration.load(model, tokenizers=False)
    _check_configuration(recipe, config)
    check_runs(recipe)
    check_compiles(recipe, model)
    if recipe.checkpoint.device != "cpu":
        from nemo_edge.model.checkpoint import check_device

        check_device(recipe.checkpoint.device)
    for table, settings in (("localization", recipe.localization), ("latency", recipe.latency)):
        if settings is not None and settings.compiled:
            from nemo_edge.model.compilation import check_compiler

            check_compiler(f"{table}.compiled")
    if recipe.uses_openvino:
        onnxfiles.probe(EngineSettings(backend="openvino"))
    height, width = config.pixel_size
    return recipe.sampling.height or height, recipe.sampling.width or width


def _check_configuration(recipe: Recipe, config: Configuration) -> None:
    """The sizes that are drawn and timed, which the graph must take, and the components that are compiled."""
    from nemo_edge.sampling.loop import check_size
    from nemo_edge.sampling.schedulers import scheduled

    check_layers(config.unet, recipe.localization.layers)
    config.skipping(recipe.checkpoint.clip_skip)
    scheduled(config, recipe.sampling)
    free = [name for name in ("height", "width") if not getattr(recipe.export, name)]
    for height, width in ((recipe.sampling.height, recipe.sampling.width), *(recipe.latency.sizes if recipe.latency else ())):
        check_size(config, recipe.sampling.model_copy(update={"height": height, "width": width}), free)
    try:
        recipe.check_compiled([*config.text_encoder_names, *(UNET_FOLDERS[variant] for variant in recipe.export.variants), "vae_decoder"])
    except ValueError as error:
        raise InputError(str(error)) from error


def _footprint(recipe: Recipe, model: Path) -> Footprint | None:
    try:
        found = estimate(str(model), recipe.output)
    except InputError:
        return None
    check_memory(found, recipe.export.dtype, compiled=_compiled(recipe), ranges=_ranges(recipe))
    return found


def _compiled(recipe: Recipe) -> bool:
    return any(getattr(recipe, table) is not None for table in FLAVOUR_OF)


def _ranges(recipe: Recipe) -> bool:
    return recipe.quantization is not None and recipe.quantization.finds_ranges


def _check_trained(checkpoint: Path) -> None:
    """Raise `InputError` for random weights that are taken for a checkpoint's: their bundle would not say what they are."""
    name = is_random(checkpoint)
    if name is not None:
        remedy = f"pass --random-weights {name if name in ARCHITECTURES else checkpoint}"
        raise InputError(f"checkpoint {checkpoint} carries random weights ({name}), on which nothing is measured: {remedy}")


def _check_evidence(recipe: Recipe, inputs: Inputs) -> None:
    """What the measurement will be made with: training pictures, the copy detector."""
    from nemo_edge.measure.readings import load_readings
    from nemo_edge.measure.replication import load_sscd

    if recipe.hardening is not None:
        from nemo_edge.hardening.harden import check_pictures, check_source

        check_source(recipe.checkpoint)
        check_pictures(inputs.memorized, recipe.prompts.memorized)
    for prompt in inputs.memorized:
        if prompt.image:
            load_readings(prompt.image, (8, 8))
    if recipe.fidelity.sscd:
        load_sscd(recipe.fidelity.sscd)

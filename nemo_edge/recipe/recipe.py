"""The recipe of a build, from TOML or code: its tables together, and what does not go together.

What a table may have is in `settings` and `targets`.
"""

from __future__ import annotations

__all__ = [
    "Recipe",
    "SettingError",
    "anchored",
    "from_keywords",
    "from_options",
    "kept_recipe",
    "load_recipe",
    "portable",
    "with_places",
    "with_random_weights",
]

import difflib
import tomllib
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, get_args

from pydantic import BaseModel, Field, ValidationError, ValidationInfo, model_validator

from nemo_edge.recipe.authorship import ReportSettings
from nemo_edge.recipe.components import UNET_FOLDERS
from nemo_edge.recipe.hardening import HardeningSettings
from nemo_edge.recipe.quantization import LIMITS, QuantizationSettings, unfit
from nemo_edge.recipe.random_weights import RandomSettings
from nemo_edge.recipe.revisions import hub_id
from nemo_edge.recipe.settings import (
    ENGINE_TOLERANCES,
    AttackSettings,
    CalibrationSettings,
    CheckpointSettings,
    ExportSettings,
    FidelitySettings,
    GateSettings,
    LatencySettings,
    LocalizationSettings,
    PromptSettings,
    SamplingSettings,
    Settings,
)
from nemo_edge.recipe.targets import EngineSettings, TensorRtRtxSettings, TensorRtSettings, uncompiled
from nemo_edge.system.errors import BundleError, InputError
from nemo_edge.system.files import way_to
from nemo_edge.system.reading import expanded, read_text

_Kind = TypeVar("_Kind", bound=BaseModel)
_MOST_BYTES = 2**20
"""What a recipe may have."""


class Recipe(Settings):
    """Everything a build needs to know."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    """What the bundle is called: letters, digits, dots, dashes and underscores."""
    output: Path
    """Folder of the bundle, relative to the recipe. What stages have done is kept beside it, in `.NAME.build`."""
    checkpoint: CheckpointSettings
    random_weights: RandomSettings | None = None
    """Take random weights in place of the checkpoint's."""
    prompts: PromptSettings
    calibration: CalibrationSettings = CalibrationSettings()
    localization: LocalizationSettings = LocalizationSettings()
    hardening: HardeningSettings | None = None
    """The weights are taught to hold less of the memories, only where this table is there."""
    export: ExportSettings = ExportSettings()
    quantization: QuantizationSettings | None = None
    """The UNet's files are quantized only where this table is there."""
    engine: EngineSettings = EngineSettings()
    tensorrt: TensorRtSettings | None = None
    """TensorRT engines, built on the GPU at hand, only where this table is there; the same for `tensorrt_rtx`."""
    tensorrt_rtx: TensorRtRtxSettings | None = None
    """TensorRT-RTX engines, compiled without a GPU."""
    sampling: SamplingSettings = SamplingSettings()
    fidelity: FidelitySettings = FidelitySettings()
    attack: AttackSettings | None = None
    """The bundle is attacked by a build only where this table is there; `nemo-edge attack` does it afterwards."""
    latency: LatencySettings | None = None
    """Times are taken by a build only where this table is there; `nemo-edge bench` takes them afterwards."""
    gates: GateSettings = GateSettings()
    report: ReportSettings = ReportSettings()

    @model_validator(mode="after")
    def _check(self, info: ValidationInfo) -> Self:
        random = self.random_weights is not None or bool((info.context or {}).get("random"))
        unrun = random and self.latency is None
        if self.export.dtype == "bf16" and self.engine.torch_device == "cpu" and not unrun:
            raise ValueError(
                "export.dtype = 'bf16' cannot run with engine.provider = 'cpu': choose fp32 or fp16, or a GPU provider, or "
                "engine.backend = 'openvino' with engine.precision = 'bf16', which computes so from fp32 files; only random weights "
                "without [latency] are built so, since nothing of them is run"
            )
        self.check_compiled(["text_encoder", *(UNET_FOLDERS[variant] for variant in self.export.variants), "vae_decoder"])
        for name in ("height", "width"):
            pinned, wanted = getattr(self.export, name), getattr(self.sampling, name)
            if pinned and pinned != wanted:
                raise ValueError(f"export.{name} = {pinned} pins the graph, so sampling.{name} must be {pinned} too")
        if self.hardening and "masked" in self.export.variants:
            raise ValueError(
                "[hardening] changes the weights with the neurons silenced, and a masked engine lets neurons back: set "
                'export.variants = ["baked"]'
            )
        compiled = self.tensorrt is not None or self.tensorrt_rtx is not None
        quantization, export = self.quantization, self.export
        if quantization and (why := unfit(quantization, export.dtype, export.opset, self.engine, self.tensorrt_rtx, compiled)):
            raise ValueError(why)
        if quantization and quantization.drawn(self.sampling.steps) > self.calibration.prompts and not random:
            raise ValueError(
                f"quantization.prompts = {quantization.prompts} are the first of the general prompts that calibrate, of which "
                f"there are {self.calibration.prompts} (calibration.prompts): ask for fewer"
            )
        self._check_turing()
        self._check_latency()
        return self

    def check_compiled(self, places: Sequence[str]) -> None:
        """Raise `ValueError` where TensorRT engines are to be run, and those of a component at `places` are not compiled."""
        tables, flavour = {"tensorrt": self.tensorrt, "tensorrt-rtx": self.tensorrt_rtx}, self.engine.flavour
        missing = uncompiled(flavour, tables[flavour], places) if flavour else ""
        if missing:
            raise ValueError(missing)

    def _check_turing(self) -> None:
        """What TensorRT-RTX cannot compile is refused before hours of work: for Turing it multiplies matrices in fp16 alone."""
        settings = self.tensorrt_rtx
        if settings is None or "sm75" not in settings.targets:
            return
        compiled = None if settings.components is None else {"unet" if c.startswith("unet") else c for c in settings.components}
        kept = [name for name in self.export.fp32 if compiled is None or name in compiled]
        dtype = self.export.dtype
        if dtype != "fp16" or kept:
            remedy = f"take {kept[0]} out of export.fp32" if dtype == "fp16" else 'set export.dtype = "fp16"'
            wide = "bf16" if dtype == "bf16" else "fp32"
            raise ValueError(f"tensorrt_rtx.targets: TensorRT-RTX compiles no {wide} for sm75 (Turing): {remedy}, or leave sm75 out")

    def _check_latency(self) -> None:
        """Times that cannot be taken, and gates on times that are not, are refused before hours of work."""
        latency, export = self.latency, self.export
        if self.gates.eager_ratio is not False and not (latency and latency.eager and "unet" in latency.targets):
            raise ValueError("gates.eager_ratio needs [latency] with eager = true and the target 'unet'")
        if latency is None:
            return
        for pinned, size in ((export.height, [h for h, _ in latency.sizes]), (export.width, [w for _, w in latency.sizes])):
            if pinned and any(pixels != pinned for pixels in size):
                raise ValueError(f"latency.sizes: the graph is pinned to {export.height} × {export.width} pixels")
        if export.batch and any(batch % export.batch for batch in latency.batches):
            raise ValueError(f"latency.batches: the graph is pinned to batches of {export.batch}, so take multiples of it")

    @property
    def uses_openvino(self) -> bool:
        """Whether OpenVINO runs the bundle, or is timed beside what does."""
        beside = self.latency.beside if self.latency else ()
        return self.engine.backend == "openvino" or any(name.startswith("openvino") for name in beside)

    @property
    def multiplies_integers(self) -> bool:
        """Whether the UNet's engines multiply integers."""
        return self.quantization is not None and self.quantization.scheme == "int8"

    @property
    def computed_in(self) -> Literal["fp32", "fp16", "bf16"]:
        """The type that the engines compute in: that of the ONNX files, or a narrower one that OpenVINO is asked for."""
        return self.export.dtype if self.engine.precision == "fp32" else self.engine.precision

    @property
    def engine_tolerance(self) -> float | Literal[False]:
        """The gate on engine against eager: as given, else by the scheme of quantization or the type that is computed in."""
        given = self.gates.engine_error
        if given is None and self.quantization is not None:
            return LIMITS[self.quantization.scheme].engine_error
        return ENGINE_TOLERANCES[self.computed_in] if given is None else given

    @property
    def agreement_tolerance(self) -> float | Literal[False]:
        """The gate on the mitigation on the engine against that on eager: as given, else by scheme or type, too."""
        given = self.gates.mitigation_agreement
        if given is None and self.quantization is not None:
            return LIMITS[self.quantization.scheme].mitigation_agreement
        return {"fp32": 1e-3, "fp16": 0.05, "bf16": 0.1}[self.computed_in] if given is None else given

    @property
    def identity_tolerance(self) -> float | Literal[False]:
        """The gate on a mask of ones against the unmitigated engine: as given, else none for fp32."""
        given, dtype = self.gates.mask_of_ones, self.computed_in
        return {**ENGINE_TOLERANCES, "fp32": 0.0}[dtype] if given is None else given


def load_recipe(path: str | PathLike[str], *, random: bool = False) -> Recipe:
    """Read a recipe; its relative paths are relative to the recipe's folder.

    Args:
        path: A TOML file, with the settings of docs/recipe.md.
        random: Whether it is for random weights in place of the checkpoint's.

    Returns:
        The settings, each with its value or its default. `build` takes them, as they are or changed with `model_copy`.

    Raises:
        InputError: For TOML that is not valid, an unknown key (naming the nearest right one) or a value out of range.

    Example:
        >>> recipe = nemo_edge.load_recipe("recipe.toml")
        >>> recipe.name, recipe.localization.mode
        ('tiny', 'paper')
    """
    path = Path(path)
    text = read_text(path, "recipe", most=_MOST_BYTES, remedy="`nemo-edge build RECIPE.toml`")
    try:
        values = tomllib.loads(text)
    except ValueError as error:
        raise InputError(f"recipe {path} is not valid TOML: {error}") from error
    except RecursionError as error:
        raise InputError(f"recipe {path} is not valid TOML: its values are nested too deeply") from error
    try:
        recipe = Recipe.model_validate(values, context={"random": random})
    except ValidationError as error:
        raise InputError(f"recipe {path}: {_complaint(error)}") from error
    return anchored(recipe, path.parent)


def kept_recipe(values: Mapping[str, Any], bundle: str | PathLike[str]) -> Recipe:
    """Return the recipe that a bundle's manifest keeps. Raises `BundleError` for one that is none, be it another version's."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        reason = f"the recipe in its manifest cannot be used: {_complaint(error)}; build the bundle again with this version"
        raise BundleError(f"{bundle}: {reason}") from error


def anchored(recipe: Recipe, folder: Path) -> Recipe:
    """Return the recipe with its relative paths made relative to `folder`."""
    checkpoint, own = recipe.checkpoint.path, recipe.random_weights
    local = folder / expanded(checkpoint)
    if local.exists() or checkpoint.startswith((".", "/", "~")):
        checkpoint = str(local)
    elif (named := hub_id(checkpoint)) is not None and named[1] and (folder / named[0]).exists():
        raise InputError(f"checkpoint.revision {named[1]} pins a hub id, and {folder / named[0]} is here: leave it out")
    architecture = own.architecture if own else None
    if architecture and "/" in architecture:  # a folder; one beside the recipe that is called "sd15" is not meant by this name
        architecture = str(folder / expanded(architecture))
    return _from(_placed(recipe, lambda path: folder / expanded(path)), checkpoint, architecture)


def portable(recipe: Recipe) -> Recipe:
    """Return the recipe as its bundle keeps it: with the ways from the bundle to its files, as `way_to` tells them.

    `anchored` at the bundle, it finds them again as long as they lie together.
    """
    checkpoint, own = recipe.checkpoint.path, recipe.random_weights
    if expanded(checkpoint).exists():
        checkpoint = _written(Path(checkpoint), recipe.output)
    architecture = own.architecture if own else None
    if architecture and "/" in architecture:
        architecture = _written(Path(architecture), recipe.output)
    return _from(_placed(recipe, lambda path: way_to(path, recipe.output)), checkpoint, architecture)


def with_places(recipe: Recipe, places: Recipe) -> Recipe:
    """Return the recipe with its files where those of another, of the same build, are."""
    prompts = places.prompts.model_copy(update={"limit": recipe.prompts.limit})
    calibration = recipe.calibration.model_copy(update={"statistics": places.calibration.statistics})
    fidelity = recipe.fidelity.model_copy(update={"sscd": places.fidelity.sscd})
    checkpoint = recipe.checkpoint.model_copy(update={"path": places.checkpoint.path, "loras": places.checkpoint.loras})
    own = {"prompts": prompts, "calibration": calibration, "fidelity": fidelity, "checkpoint": checkpoint}
    if recipe.quantization and places.quantization:
        own["quantization"] = recipe.quantization.model_copy(update={"ranges": places.quantization.ranges})
    return recipe.model_copy(update=own)


def with_random_weights(recipe: Recipe, architecture: str | None, neurons: Path | None = None) -> Recipe:
    """The recipe for random weights of an architecture, if one is given. Raises `InputError` for neurons without any."""
    own = recipe.random_weights
    if architecture is None and own is None:
        if neurons is not None:
            raise InputError("--neurons goes with --random-weights: a checkpoint's own are found, or set by `nemo-edge rebake`")
        return recipe
    settings = own or RandomSettings(architecture=str(architecture))
    given = {"architecture": architecture, "neurons": neurons}
    settings = settings.model_copy(update={name: value for name, value in given.items() if value is not None})
    return recipe.model_copy(update={"random_weights": settings})


class SettingError(InputError):
    """A setting with a value that it cannot have: `name`, `value` and `reason`. The message names the setting as Python does."""

    def __init__(self, name: str, value: object, reason: str) -> None:
        super().__init__(name, value, reason)
        self.name, self.value, self.reason = name, value, reason

    def __str__(self) -> str:
        return f"{self.name} = {self.value!r}: {self.reason}"

    def of_option(self, names: Mapping[str, str] | None = None) -> InputError:
        """The error as the command line says it: with the option of the setting's name, or the one that `names` has for it."""
        return InputError(f"--{(names or {}).get(self.name, self.name)} {_words(self.value)}: {self.reason}")


def from_keywords(kind: type[_Kind], given: Mapping[str, Any]) -> _Kind:
    """Make settings from what a function was `given`. Raises `SettingError` for the first that cannot be."""
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        raise SettingError(str(first["loc"][0]), first["input"], f"{message[0].lower()}{message[1:]}") from error


def from_options(kind: type[_Kind], own: Mapping[str, Any], given: Mapping[str, Any], names: Mapping[str, str] | None = None) -> _Kind:
    """Make settings from a recipe's `own` values and those `given` on the command line, which go before them.

    Raises `InputError` that names the option, as `SettingError.of_option` does.
    """
    try:
        return from_keywords(kind, {**own, **given})
    except SettingError as error:
        raise error.of_option(names) from error


def _words(value: Any) -> str:
    """A value as it was given on the command line."""
    if isinstance(value, list | tuple):
        return " ".join("x".join(map(str, v)) if isinstance(v, list | tuple) else str(v) for v in value)
    return str(value)


def _complaint(error: ValidationError) -> str:
    """The first problem in one line; for an unknown key, with the nearest right one."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] != "extra_forbidden":
        message = first["msg"].removeprefix("Value error, ")
        if not place:  # of settings that do not fit together
            return message
        return f"{place}: {message} (got {first['input']!r})" if first["type"] != "missing" else f"{place} is missing"
    table, _, leaf = place.rpartition(".")
    known = {key: key.rpartition(".") for key in _keys(Recipe)}
    here = {last: key for key, (owner, _, last) in known.items() if owner == table}
    meant = [key for key, (_, _, last) in known.items() if last == leaf]
    meant += [here[name] for name in difflib.get_close_matches(leaf, here, n=1, cutoff=0.5)]
    if meant:
        return f"unknown key {place!r}: did you mean {meant[0]!r}?"
    return f"unknown key {place!r}: the keys here are {', '.join(here)}"


def _keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in model.model_fields.items():
        keys.append(prefix + name)
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                keys += _keys(kind, f"{prefix}{name}.")
    return keys


def _written(path: Path, folder: Path) -> str:
    """A way that `anchored` takes for one, and not for the name of something on the hub."""
    way = way_to(path, folder).as_posix()
    return way if way.startswith(".") or "/" not in way else f"./{way}"


def _placed(recipe: Recipe, place: Callable[[Path], Path]) -> Recipe:
    """The recipe with other paths in its tables; the checkpoint and the architecture, which may be no paths, stay."""

    def other(value: Any) -> Any:
        if isinstance(value, Path):
            return place(value)
        if isinstance(value, BaseModel):
            return value.model_copy(update={name: other(getattr(value, name)) for name in type(value).model_fields})
        if isinstance(value, tuple) and any(isinstance(entry, BaseModel) for entry in value):
            return tuple(map(other, value))
        return value

    placed: Recipe = other(recipe)
    return placed


def _from(recipe: Recipe, checkpoint: str, architecture: str | None) -> Recipe:
    """The recipe with another place of its weights, or of the architecture of its random ones."""
    changes: dict[str, Any] = {"checkpoint": recipe.checkpoint.model_copy(update={"path": checkpoint})}
    if recipe.random_weights is not None:
        changes["random_weights"] = recipe.random_weights.model_copy(update={"architecture": architecture})
    return recipe.model_copy(update=changes)

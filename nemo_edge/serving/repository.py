"""The Triton model repository: a bundle goes in as one more version of each model, whole or not at all.

Copies files and describes them; opens no engine.
"""

from __future__ import annotations

__all__ = ["PIPELINE", "Shipped", "ship"]

import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from nemo_edge import __version__
from nemo_edge.backends.triton import Signature
from nemo_edge.bundle import MANIFEST, Manifest, check_folder, open_bundle, open_verified, staging
from nemo_edge.component import UNET_FOLDERS
from nemo_edge.configuration import Configuration
from nemo_edge.errors import BundleError, InputError
from nemo_edge.files import explain, sha256_file, write_atomically
from nemo_edge.graphs import open_graph
from nemo_edge.neurons import NeuronSet
from nemo_edge.plans import PlanFile, Tensor, open_plan_file
from nemo_edge.policies import baked_policies, masked_policies
from nemo_edge.progress import Progress
from nemo_edge.recipe import Recipe
from nemo_edge.serving.modelconfig import (
    Service,
    engine_config,
    engine_signature,
    pipeline_config,
    read_config,
    recorded_version,
    write_config,
)
from nemo_edge.serving.painter import POLICIES
from nemo_edge.serving.versions import DESCRIPTION, ONNX, EngineVersion, PipelineVersion, ServerBackend
from nemo_edge.studio import choose_variant
from nemo_edge.targets import Flavour

PIPELINE = "pipeline"
"""Name of the model that draws pictures; the others are the components it calls."""

_SHIPPED_MODELS = Path(__file__).with_name("models")
_CONFIG = "config.pbtxt"


class Shipped(BaseModel):
    """What was put into a repository."""

    model_config = ConfigDict(frozen=True)

    repository: str
    bundle: str
    version: int
    """Number of the new version, the same for all models."""
    variant: str
    backend: ServerBackend
    models: tuple[str, ...]
    """In the order in which a running server loads them: the pipeline is the last."""


@dataclass(frozen=True)
class _Shipment:
    """A bundle that may be shipped, and how its components are to be served."""

    bundle: Path
    manifest: Manifest
    recipe: Recipe
    model: Configuration
    variant: str
    backend: ServerBackend
    number: int

    @property
    def places(self) -> dict[str, str]:
        """Name of each component's model → folder of its graph in the bundle."""
        return {**{n: n for n in self.model.text_encoder_names}, "vae_decoder": "vae_decoder", "unet": UNET_FOLDERS[self.variant]}

    @property
    def flavour(self) -> Flavour | None:
        """The product whose plans are shipped; None for ONNX files."""
        return self.recipe.engine.flavour if self.backend == "python" else "tensorrt" if self.backend == "tensorrt" else None

    @property
    def parameters(self) -> dict[str, str]:
        """What every configuration says of where its model came from."""
        return {"bundle": self.manifest.name, "manifest": self.digest, "version": str(self.number), "nemo_edge": __version__}

    @property
    def digest(self) -> str:
        """sha256 of the bundle's manifest."""
        return sha256_file(self.bundle / MANIFEST)

    def plans(self, place: str) -> tuple[PlanFile, ...]:
        """The sidecars of a component's plans, where plans are shipped. Raises `InputError` where there is none."""
        if self.flavour is None:
            return ()
        found = sorted((self.bundle / "engines").glob(f"{place}.{self.flavour}.*.json"))
        if not found:
            table = self.flavour.replace("-", "_")
            raise InputError(f"the bundle {self.bundle} has no {self.flavour} engine of {place}: build it with [{table}] in the recipe")
        return tuple(open_plan_file(path) for path in found)

    def signature(self, place: str) -> Signature:
        """What a component is served as."""
        plans = self.plans(place)
        ports = open_graph(self.bundle / place / "model.onnx").ports()
        inputs, outputs = ({n: Tensor(dtype=p.dtype, dims=p.dims) for n, p in group.items()} for group in ports)
        rows = [min(shapes[2][0] for shapes in profile.values()) for plan in plans for profile in plan.profiles]
        return engine_signature(inputs, outputs, self.backend, max(rows, default=None))


def ship(
    bundle: Path,
    repository: Path,
    backend: str | None = None,
    variant: str | None = None,
    *,
    instances: int = 2,
    log_prompts: bool = False,
    progress: Progress | None = None,
) -> Shipped:
    """Put a bundle into a model repository, as the next version of every model of it; return what was put there.

    `backend` is "python" or "native", else what the recipe's engine asks for; `variant` is the masked one where the bundle has it.
    `instances` pictures are drawn at once; prompts are logged only with `log_prompts`. A server that runs goes on with what it has
    until it is told to load the models. Raises `BundleError` for a bundle that must not be shipped or was changed, `InputError` for
    a repository of other models.
    """
    check_folder(repository)
    manifest = _shippable(bundle)
    variant = choose_variant(manifest, variant or ("masked" if "masked" in manifest.variants else None), masked=False)
    recipe, model = Recipe.model_validate(manifest.recipe), Configuration.load(bundle, tokenizers=False)
    shipment = _Shipment(bundle, manifest, recipe, model, variant, _backend(recipe, backend), 0)
    configs = {name: read_config(repository / name / _CONFIG) for name in _present(repository, [*shipment.places, PIPELINE])}
    shipment = replace(shipment, number=_next_version(repository, configs))
    with staging(repository) as staged, (progress or Progress()).task("ship", len(shipment.places) + 1) as advance:
        written = {}
        for name, place in shipment.places.items():
            written[name] = _stage_engine(shipment, name, place, staged / name)
            advance(1)
        written[PIPELINE] = _stage_pipeline(shipment, staged / PIPELINE, instances, log_prompts=log_prompts)
        for name, config in configs.items():
            _check_same(repository, name, config, written[name])
        _put(staged, repository, shipment.number, written)
        advance(1)
    return Shipped(
        repository=str(repository),
        bundle=str(bundle),
        version=shipment.number,
        variant=variant,
        backend=shipment.backend,
        models=tuple(written),
    )


def _shippable(bundle: Path) -> Manifest:
    """The manifest of a bundle that may be shipped; what it says of itself comes before its files are read."""
    manifest = open_bundle(bundle)
    if manifest.random_weights is not None:
        raise BundleError(f"{bundle} carries random weights ({manifest.random_weights}): it is for measuring and is not shipped")
    if not manifest.passed:
        failed = ", ".join(gate.name for gate in manifest.gates if not gate.passed)
        raise BundleError(f"{bundle} failed a gate ({failed or 'none was judged'}) and is not shipped: see its report/index.html")
    return open_verified(bundle)


def _backend(recipe: Recipe, asked: str | None) -> ServerBackend:
    """What of Triton runs the components: native backends on GPUs, but TensorRT-RTX's engines, which have none."""
    engine = recipe.engine
    if asked is None:
        asked = "native" if engine.device == "cuda" and engine.flavour != "tensorrt-rtx" else "python"
    if asked not in ("native", "python"):
        raise InputError(f"--backend {asked}: take native (Triton's own) or python (nemo-edge's runners)")
    if asked == "python":
        return "python"
    return "tensorrt" if recipe.tensorrt is not None else "onnxruntime"


def _present(repository: Path, names: list[str]) -> Iterator[str]:
    for name in names:
        if (repository / name / _CONFIG).is_file():
            yield name
        elif (repository / name).exists():
            raise InputError(f"{repository / name} is there and is no model of nemo-edge's: ship to a folder of its own")


def _next_version(repository: Path, configs: Mapping[str, Any]) -> int:
    """One more than any number that a model has or had."""
    numbers = [0, *(recorded_version(config) for config in configs.values())]
    for name in configs:
        numbers += [int(path.name) for path in (repository / name).iterdir() if path.name.isdigit()]
    return max(numbers) + 1


def _check_same(repository: Path, name: str, config: Any, new: Any) -> None:
    """Raise `InputError` where a model of the repository has another interface: its versions share one configuration."""
    if not recorded_version(config):
        raise InputError(f"{repository / name} was not shipped by nemo-edge: ship to a folder of its own")
    for field in ("backend", "max_batch_size", "input", "output"):
        if getattr(config, field) != getattr(new, field):
            raise InputError(
                f"{repository / name} has another {field.replace('_', ' ')} than this bundle's {name}, and versions of a model share "
                "theirs: ship to a folder of its own"
            )


def _stage_engine(shipment: _Shipment, name: str, place: str, folder: Path) -> Any:
    """Write a component's version into `folder`; return its configuration."""
    files = {**_graph_files(shipment, place), **_plan_files(shipment, place)}
    shipped = _copy(shipment, files, folder)
    if shipment.backend == "python":
        shipped |= _own(folder, "engine.py")
    version = EngineVersion(
        bundle=shipment.manifest.name,
        manifest=shipment.digest,
        place=place,
        backend=shipment.backend,
        engine=shipment.recipe.engine,
        factor=shipment.model.factor,
        files=shipped,
    )
    write_atomically(folder / DESCRIPTION, version.model_dump_json(indent=1) + "\n")
    on_gpu = shipment.backend == "tensorrt" or shipment.recipe.engine.device == "cuda"
    service = Service(name, shipment.backend, on_gpu, shipment.parameters)
    _, height, width = shipment.model.latent_shape
    native_plans = shipment.plans(place) if shipment.backend == "tensorrt" else ()
    return engine_config(service, shipment.signature(place), (height, width), native_plans)


def _graph_files(shipment: _Shipment, place: str) -> dict[str, str]:
    """Name in the version → name in the bundle, of an ONNX file and its weights: in a folder, as Triton wants external data."""
    if shipment.flavour is not None:
        return {}
    graph = open_graph(shipment.bundle / place / "model.onnx")
    folder = Path(ONNX).parent
    return {str(folder / path.name): f"{place}/{path.name}" for path in (graph.path, *graph.external_files())}


def _plan_files(shipment: _Shipment, place: str) -> dict[str, str]:
    """The same of plans: beside their sidecars for our runners, alone for Triton's."""
    found = {}
    for plan in shipment.plans(place):
        name = Path(plan.plan)
        if shipment.backend == "tensorrt":
            found[name.name] = plan.plan
        else:
            found |= {plan.plan: plan.plan, str(name.with_suffix(".json")): str(name.with_suffix(".json"))}
    return found


def _stage_pipeline(shipment: _Shipment, folder: Path, instances: int, *, log_prompts: bool) -> Any:
    """Write the pipeline's version into `folder`; return its configuration."""
    shipped = _copy(shipment, dict(_model_files(shipment)), folder)
    found = NeuronSet.load(shipment.bundle / "neurons.json")
    policies = masked_policies(found) if shipment.variant == "masked" else baked_policies()
    policies.save(folder / POLICIES)
    shipped |= {POLICIES: sha256_file(folder / POLICIES), **_own(folder, "pipeline.py")}
    version = PipelineVersion(
        bundle=shipment.manifest.name,
        manifest=shipment.digest,
        number=shipment.number,
        models={name: shipment.signature(place) for name, place in shipment.places.items()},
        sampling=shipment.recipe.sampling,
        files=shipped,
    )
    write_atomically(folder / DESCRIPTION, version.model_dump_json(indent=1) + "\n")
    parameters = {**shipment.parameters, "policies": policies.version, "log_prompts": str(log_prompts).lower()}
    return pipeline_config(Service(PIPELINE, "python", False, parameters), instances)


def _model_files(shipment: _Shipment) -> Iterator[tuple[str, str]]:
    """What the pipeline reads of a bundle: configurations, tokenizers, the noise schedule; no weights."""
    folders = {**{place: name for name, place in shipment.places.items()}, "scheduler": "scheduler"}
    folders |= {f: f for f in ("tokenizer", "tokenizer_2") if (shipment.bundle / f).is_dir()}
    for name in shipment.manifest.files:
        top, _, rest = name.partition("/")
        if name == "model_index.json":
            yield name, name
        elif top in folders and (top.startswith(("tokenizer", "scheduler")) or rest == "config.json"):
            yield f"{folders[top]}/{rest}", name


def _copy(shipment: _Shipment, files: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Copy files of the bundle, by their names there and here; return the hashes that the manifest has of them."""
    for target, source in files.items():
        try:
            (folder / target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(shipment.bundle / source, folder / target)
        except OSError as error:
            raise explain(error, folder / target) from error
    return {target: shipment.manifest.files[source] for target, source in files.items()}


def _own(folder: Path, model: str) -> dict[str, str]:
    """Put one of our models beside what it opens, under the name that Triton wants."""
    content = (_SHIPPED_MODELS / model).read_bytes()
    write_atomically(folder / "model.py", content)
    return {"model.py": sha256_file(folder / "model.py")}


def _put(staged: Path, repository: Path, number: int, written: Mapping[str, Any]) -> None:
    """Move every version into its place, the pipeline's last, and write the configurations."""
    for name, config in written.items():
        place = repository / name / str(number)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(staged / name, place)
        except OSError as error:
            raise explain(error, place) from error
        write_config(repository / name / _CONFIG, config)

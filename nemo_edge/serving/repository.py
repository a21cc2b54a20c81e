"""The Triton model repository: a bundle goes in as one more version of each model, whole or not at all.

Copies files and describes them; opens no engine.
"""

from __future__ import annotations

__all__ = ["Shipped", "ship"]

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from nemo_edge.bundle.manifest import Manifest
from nemo_edge.bundle.policies import POLICIES, Policies, baked_policies, read_policies
from nemo_edge.bundle.signature import Trust
from nemo_edge.graph.onnxfile import open_graph
from nemo_edge.model.configuration import Configuration
from nemo_edge.recipe.recipe import kept_recipe
from nemo_edge.sampling.generate import choose_variant
from nemo_edge.serving._delivery import Delivery, holding, put, staged
from nemo_edge.serving.modelconfig import CONFIG, Service, engine_config, pipeline_config, read_config, recorded_version
from nemo_edge.serving.shipment import Shipment, choose_backend
from nemo_edge.serving.signed import read_meant
from nemo_edge.serving.versions import (
    COMPONENTS,
    DESCRIPTION,
    MODEL,
    ONNX,
    PIPELINE,
    EngineVersion,
    PipelineVersion,
    ServerBackend,
    describe_pipeline,
    model_name,
)
from nemo_edge.system.errors import InputError
from nemo_edge.system.files import check_folder, number_of, sha256_file, write_atomically
from nemo_edge.system.progress import Progress

_SHIPPED_MODELS = Path(__file__).with_name("models")


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
    identity: str
    """Which model it is."""
    signed: bool
    """Whether whoever opens them asks for its signature."""


def ship(
    bundle: Path,
    repository: Path,
    backend: str | None = None,
    variant: str | None = None,
    *,
    name: str = "",
    policies: Sequence[str] | None = None,
    instances: int = 2,
    log_prompts: bool = False,
    progress: Progress | None = None,
    expect: str | None = None,
    trust: Trust | None = None,
    trusted_at: Path | None = None,
) -> Shipped:
    """Put a bundle into a model repository, as the next version of every model of it; return what was put there.

    `backend` is "python" or "native", else what the recipe's engine asks for; `variant` is the masked one where the bundle has it. `name`
    stands before the names of the models, so that several share a repository. With `policies` a server knows these alone, and opens the
    components inside of the pipeline, where nobody else can call them; each of its instances has its own. `instances` pictures are drawn at
    once; prompts are logged only with `log_prompts`. `expect` is the identity that the bundle must have, or the sha256 of its manifest;
    with `trust` it must be signed by whom is trusted, and not be revoked, and whoever opens what was shipped asks so again, with the keys
    and the list where they are here, or in the folder `trusted_at`. A server that runs goes on with what it has until it is told to load
    the models. Raises `BundleError` for a bundle that must not be shipped or was changed, `InputError` for a repository of other models, or
    of another model under these names, and while another command writes to it. What a killed one left of its version is taken back.
    """
    check_folder(repository / model_name(name, PIPELINE))
    shipment = _shipment(bundle, read_meant(bundle, expect, trust), backend, variant, policies)
    shipment = replace(shipment, trust=None if trust is None else trust.placed(trusted_at), label=name)
    _check_backend(shipment)
    with holding(repository):
        number = _deliver(shipment, repository, instances, progress or Progress(), log_prompts=log_prompts)
    return Shipped(
        repository=str(repository),
        bundle=str(bundle),
        version=number,
        variant=shipment.variant,
        backend=shipment.backend,
        models=tuple(shipment.names.values()),
        identity=shipment.manifest.identity,
        signed=shipment.trust is not None,
    )


def _shipment(
    bundle: Path, meant: tuple[Manifest, str], backend: str | None, variant: str | None, policies: Sequence[str] | None
) -> Shipment:
    """What is to be shipped, as it was asked for. Raises `InputError` for a variant, a backend or a policy that is not there."""
    manifest, digest = meant
    chosen = choose_variant(manifest, variant or ("masked" if "masked" in manifest.variants else None), masked=False)
    recipe, model = kept_recipe(manifest.recipe, bundle), Configuration.load(bundle, tokenizers=False)
    offered = None if policies is None else tuple(dict.fromkeys(policies))
    found = Shipment(bundle, manifest, digest, recipe, model, chosen, choose_backend(recipe, backend), 0, policies=offered)
    _policies(found)
    return found


def _policies(shipment: Shipment) -> Policies:
    """The policies of a shipment, those alone that its server is to know. Raises `InputError` for one that the bundle lacks."""
    masked = shipment.variant == "masked"
    own = read_policies(shipment.bundle, shipment.manifest.files, shipment.digest) if masked else baked_policies(shipment.digest)
    return own.offering(shipment.policies)


def _check_backend(shipment: Shipment) -> None:
    """Raise `InputError` for a backend that opens what it is given, and that anybody can call."""
    if shipment.backend == "python":
        return
    if shipment.trust is not None:
        raise InputError(f"Triton's own {shipment.backend} opens an engine and asks for no signature: ship with --backend python")
    if shipment.policies is not None:
        raise InputError(
            f"Triton's own {shipment.backend} serves each component to whoever calls it: with --policies take --backend python"
        )


def _deliver(shipment: Shipment, repository: Path, instances: int, progress: Progress, *, log_prompts: bool) -> int:
    """Put a shipment into a repository that is held; return the number of its version."""
    names = [*shipment.names.values()]
    configs = {name: read_config(repository / name / CONFIG) for name in _present(repository, names)}
    for name, config in configs.items():
        _check_model(repository / name, config, shipment)
    _check_kind(repository, shipment)
    former = {name: (repository / name / CONFIG).read_text(encoding="utf-8") if name in configs else None for name in names}
    shipment = replace(shipment, number=_next_version(repository, configs))
    pipeline = shipment.names[PIPELINE]
    delivery = Delivery(number=shipment.number, manifest=shipment.digest, pipeline=pipeline, former=former)
    with staged(repository, delivery) as folders, progress.task("ship", len(names)) as advance:
        written = {}
        for component, place in shipment.places.items():
            if shipment.policies is not None:
                _stage_engine(shipment, component, place, folders[pipeline] / COMPONENTS / component)
                continue
            name = shipment.names[component]
            written[name] = _stage_engine(shipment, component, place, folders[name])
            advance(1)
        written[pipeline] = _stage_pipeline(shipment, folders[pipeline], instances, log_prompts=log_prompts)
        for name, config in configs.items():
            _check_same(repository, name, config, written[name])
        put(repository, delivery, folders, written)
        advance(1)
    return shipment.number


def _present(repository: Path, names: list[str]) -> Iterator[str]:
    for name in names:
        if (repository / name / CONFIG).is_file():
            yield name
        elif (repository / name).exists():
            raise InputError(f"{repository / name} is there and is no model of nemo-edge's: ship to a folder of its own")


def _next_version(repository: Path, configs: Mapping[str, Any]) -> int:
    """One more than any number that a model has or had."""
    numbers = [0, *(recorded_version(config) for config in configs.values())]
    for name in configs:
        numbers += [number_of(path.name) for path in (repository / name).iterdir()]
    return max(numbers) + 1


def _check_model(place: Path, config: Any, shipment: Shipment) -> None:
    """Raise `InputError` where the versions of a model in the repository are those of another checkpoint, or somebody else's."""
    if not recorded_version(config):
        raise InputError(f"{place} was not shipped by nemo-edge: ship to a folder of its own")
    if "weights" in config.parameters and config.parameters["weights"].string_value != shipment.weights:
        other, own = config.parameters["bundle"].string_value, shipment.manifest.name
        raise InputError(
            f"{place} has versions of another model ({other}), which {own} would take the place of: give it a name of its own (--name), or "
            "ship to another folder"
        )


def _check_kind(repository: Path, shipment: Shipment) -> None:
    """Raise `InputError` where a repository has this model with its components served or signatures asked for, and now without, or the
    other way round."""
    place = repository / shipment.names[PIPELINE]
    served = [name for name in shipment.places if (repository / model_name(shipment.label, name)).exists()]
    if shipment.policies is not None and served:
        other = repository / model_name(shipment.label, served[0])
        raise InputError(f"{other} is served to whoever calls it, and --policies would not keep it from that: ship to another folder")
    if shipment.policies is None and not served and place.is_dir() and any(place.glob(f"*/{COMPONENTS}")):
        raise InputError(f"{place} was shipped with --policies: say again which its server is to know, or ship to another folder")
    for path in place.glob(f"*/{DESCRIPTION}"):
        if (describe_pipeline(path.parent).trust is None) != (shipment.trust is None):
            state = "asks for no signature" if shipment.trust is not None else "asks for a signature (--require-signature)"
            raise InputError(f"{path.parent} {state}, and versions of a model are asked for alike: ship as it does, or to another folder")


def _check_same(repository: Path, name: str, config: Any, new: Any) -> None:
    """Raise `InputError` where a model of the repository has another interface: its versions share one configuration."""
    for field in ("backend", "max_batch_size", "input", "output"):
        if getattr(config, field) != getattr(new, field):
            raise InputError(
                f"{repository / name} has another {field.replace('_', ' ')} than this bundle's {name}, and versions of a model share "
                "theirs: ship to a folder of its own"
            )


def _stage_engine(shipment: Shipment, name: str, place: str, folder: Path) -> Any:
    """Write a component's version into `folder`; return its configuration."""
    files = {**_graph_files(shipment, place), **_plan_files(shipment, place)}
    shipped = shipment.copy(files, folder)
    if shipment.backend == "python" and shipment.policies is None:
        shipped |= _own(folder, "engine.py")
    shipped |= shipment.copy_origin(folder)
    version = EngineVersion(
        bundle=shipment.manifest.name,
        manifest=shipment.digest,
        place=place,
        backend=shipment.backend,
        engine=shipment.recipe.engine,
        factor=shipment.model.factor,
        label=shipment.label,
        files=shipped,
        trust=shipment.trust,
    )
    write_atomically(folder / DESCRIPTION, version.model_dump_json(indent=1) + "\n")
    on_gpu = shipment.backend == "tensorrt" or shipment.recipe.engine.torch_device == "cuda"
    service = Service(model_name(shipment.label, name), name, shipment.backend, on_gpu, shipment.parameters)
    _, height, width = shipment.model.latent_shape
    native_plans = shipment.plans(place) if shipment.backend == "tensorrt" else ()
    return engine_config(service, shipment.signature(place), (height, width), native_plans)


def _graph_files(shipment: Shipment, place: str) -> dict[str, str]:
    """Name in the version → name in the bundle, of an ONNX file and its weights: in a folder, as Triton wants external data."""
    if shipment.flavour is not None:
        return {}
    graph = open_graph(shipment.bundle / place / "model.onnx")
    folder = Path(ONNX).parent
    return {str(folder / path.name): f"{place}/{path.name}" for path in (graph.path, *graph.external_files())}


def _plan_files(shipment: Shipment, place: str) -> dict[str, str]:
    """The same of plans: beside their sidecars for our runners, alone for Triton's."""
    found = {}
    for plan in shipment.plans(place):
        name = Path(plan.plan)
        if shipment.backend == "tensorrt":
            found[name.name] = plan.plan
        else:
            found |= {plan.plan: plan.plan, str(name.with_suffix(".json")): str(name.with_suffix(".json"))}
    return found


def _stage_pipeline(shipment: Shipment, folder: Path, instances: int, *, log_prompts: bool) -> Any:
    """Write the pipeline's version into `folder`; return its configuration."""
    shipped = shipment.copy(dict(_model_files(shipment)), folder)
    masked, policies = shipment.variant == "masked", _policies(shipment)
    policies.save(folder / POLICIES)
    shipped |= {POLICIES: sha256_file(folder / POLICIES), **_own(folder, "pipeline.py"), **shipment.copy_origin(folder, policies=masked)}
    version = PipelineVersion(
        bundle=shipment.manifest.name,
        manifest=shipment.digest,
        number=shipment.number,
        models={name: shipment.signature(place) for name, place in shipment.places.items()},
        sampling=shipment.recipe.sampling,
        inside=shipment.policies is not None,
        label=shipment.label,
        files=shipped,
        trust=shipment.trust,
    )
    write_atomically(folder / DESCRIPTION, version.model_dump_json(indent=1) + "\n")
    parameters = {**shipment.parameters, "policies": policies.version, "log_prompts": str(log_prompts).lower()}
    return pipeline_config(Service(shipment.names[PIPELINE], PIPELINE, "python", False, parameters), instances)


def _model_files(shipment: Shipment) -> Iterator[tuple[str, str]]:
    """What the pipeline reads of a bundle: configurations, tokenizers, the noise schedule; no weights."""
    folders = {**{place: name for name, place in shipment.places.items()}, "scheduler": "scheduler"}
    folders |= {f: f for f in ("tokenizer", "tokenizer_2") if (shipment.bundle / f).is_dir()}
    for name in shipment.manifest.files:
        top, _, rest = name.partition("/")
        if name == "model_index.json":
            yield name, name
        elif top in folders and (top.startswith(("tokenizer", "scheduler")) or rest == "config.json"):
            yield f"{folders[top]}/{rest}", name


def _own(folder: Path, model: str) -> dict[str, str]:
    """Put one of our models beside what it opens, under the name that Triton wants."""
    content = (_SHIPPED_MODELS / model).read_bytes()
    write_atomically(folder / MODEL, content)
    return {MODEL: sha256_file(folder / MODEL)}

"""The InferenceService of a repository: by KServe's own schema, and by what its runtime needs to find."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from conftest import shared_data

pytest.importorskip("tritonclient.grpc")

from nemo_edge.recipe.recipe import from_options
from nemo_edge.serving.kserve import Placement, describe_service
from nemo_edge.serving.repository import ship
from nemo_edge.system.errors import BundleError, InputError

EXCERPT = Path(__file__).with_name("inferenceservice.schema.json")
OWN = ("$comment", "additionalProperties")
PLACE = {"name": "sd", "storage": "s3://models/sd", "image": "registry.example/triton-nemo-edge:1"}


@pytest.fixture(scope="module")
def repository(shippable: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("kserve") / "repository"
    ship(shippable, made)
    return made


def closed(schema: Any) -> Any:
    """The schema with every field refused that it does not have, as `kubectl apply --validate=strict` does."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: closed(part) for name, part in schema.items()}
    if isinstance(schema.get("properties"), dict) and "type" in schema:
        found.setdefault("additionalProperties", False)
    return found


def part_of(small: Any, large: Any) -> bool:
    if isinstance(small, dict) and isinstance(large, dict):
        return all(name in large and part_of(part, large[name]) for name, part in small.items() if name not in OWN or name in large)
    return bool(small == large)


def described(repository: Path, **more: object) -> dict[str, Any]:
    return describe_service(repository, from_options(Placement, PLACE, more))


@pytest.mark.parametrize(
    "more",
    [{}, {"namespace": "pictures", "gpus": 2, "cpu": "500m", "memory": "1.5Gi", "replicas": 0, "most": 8, "storage": "pvc://claim/sd"}],
)
def test_it_is_what_kserve_s_schema_asks_for(repository: Path, more: dict[str, object]) -> None:
    schema = json.loads(EXCERPT.read_text())
    service = yaml.safe_load(yaml.safe_dump(described(repository, **more)))
    jsonschema.validate(service, schema)
    service["spec"]["predictor"]["model"]["protocol"] = "v2"
    with pytest.raises(jsonschema.ValidationError, match="protocol"):
        jsonschema.validate(service, schema)


def test_the_whole_schema_takes_it_and_has_the_excerpt(repository: Path) -> None:
    whole = yaml.load(shared_data("serving.kserve.io_inferenceservices.yaml").read_bytes(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (version,) = [version for version in whole["spec"]["versions"] if version["name"] == "v1beta1"]
    schema = version["schema"]["openAPIV3Schema"]
    assert part_of(json.loads(EXCERPT.read_text()), schema)
    jsonschema.validate(described(repository, gpus=1, namespace="pictures"), closed(schema))


def test_the_runtime_is_triton_and_finds_the_repository(repository: Path, shippable: Path) -> None:
    service = described(repository, most=4)
    predictor = service["spec"]["predictor"]
    model = predictor["model"]
    assert (model["runtime"], model["modelFormat"], model["protocolVersion"]) == ("kserve-tritonserver", {"name": "triton"}, "v2")
    assert (model["storageUri"], model["image"]) == (PLACE["storage"], PLACE["image"])
    assert (predictor["minReplicas"], predictor["maxReplicas"]) == (1, 4)
    assert [volume["name"] for volume in predictor["volumes"]] == [mount["name"] for mount in model["volumeMounts"]]
    assert service["metadata"]["annotations"]["nemo-edge/version"] == "1"
    assert service["metadata"]["annotations"]["nemo-edge/bundle"] == json.loads((shippable / "manifest.json").read_text())["name"]


def test_an_engine_of_a_gpu_asks_for_one(repository: Path, shippable: Path, tmp_path: Path) -> None:
    assert "nvidia.com/gpu" not in described(repository)["spec"]["predictor"]["model"]["resources"]["limits"]
    ship(shippable, tmp_path)
    description = tmp_path / "unet" / "1" / "version.json"
    content = json.loads(description.read_text())
    description.write_text(json.dumps({**content, "engine": {**content["engine"], "provider": "cuda"}}))
    assert described(tmp_path)["spec"]["predictor"]["model"]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "nvidia.com/gpu" not in described(tmp_path, gpus=0)["spec"]["predictor"]["model"]["resources"]["limits"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"name": "Stable_Diffusion"}, "--name Stable_Diffusion: take lower-case letters, digits and -"),
        ({"namespace": "-"}, "--namespace -: take lower-case letters"),
        ({"storage": "/srv/models"}, r"--storage /srv/models: a cluster sees no folder of this machine: take a copy's URI, s3://"),
        ({"storage": "file:///srv/models"}, "a cluster sees no folder of this machine"),
        ({"storage": "s3://"}, "a cluster sees no folder of this machine"),
        ({"image": ""}, "--image"),
        ({"memory": "much"}, "--memory much: take a quantity of Kubernetes"),
        ({"gpus": -1}, "--gpus -1"),
        ({"replicas": 3, "most": 2}, "--most 2: must not be fewer than the 3 that there are always"),
    ],
)
def test_what_kserve_would_refuse_is_refused_here(more: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        from_options(Placement, PLACE, more)


def test_a_folder_without_a_pipeline_is_refused(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no pipeline that nemo-edge shipped: make it with `nemo-edge ship BUNDLE --to"):
        described(tmp_path)
    (tmp_path / "pipeline" / "1").mkdir(parents=True)
    (tmp_path / "pipeline" / "1" / "version.json").write_text("{}")
    with pytest.raises(BundleError, match="is not a version that nemo-edge shipped"):
        described(tmp_path)


def test_several_models_of_a_repository_are_one_service(shippable: Path, tmp_path: Path) -> None:
    for name in ("", "sd15"):
        ship(shippable, tmp_path / "repository", name=name)
    told = described(tmp_path / "repository")["metadata"]["annotations"]
    assert (told["nemo-edge/bundle"], told["nemo-edge/version"]) == ("tiny, tiny", "1, 1")

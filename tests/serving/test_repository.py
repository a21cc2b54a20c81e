"""The repository: whole versions whose numbers grow, and no bundle in it that must not be shipped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tritonclient.grpc")

import plans

from nemo_edge.bundle.manifest import amend, open_bundle
from nemo_edge.bundle.policies import Policies
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.serving.golden import LEVELS, Golden
from nemo_edge.serving.hotupdate import ship_masks
from nemo_edge.serving.local import open_painter
from nemo_edge.serving.modelconfig import read_config
from nemo_edge.serving.repository import ship
from nemo_edge.serving.versions import hashes
from nemo_edge.system.errors import BundleError, InputError
from nemo_edge.system.files import sha256_file
from nemo_edge.system.progress import Advance, Progress

MODELS = ("text_encoder", "vae_decoder", "unet", "pipeline")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return tmp_path / "repository"


@pytest.fixture
def bundle(shippable: Path, tmp_path: Path) -> Path:
    """A copy of the bundle, to be changed."""
    return shutil.copytree(shippable, tmp_path / "bundle")


@pytest.fixture
def other_model(bundle: Path) -> Path:
    """A bundle of another checkpoint, by what it says of itself."""
    manifest = open_bundle(bundle)
    amend(bundle, manifest.model_copy(update={"checkpoint": {**manifest.checkpoint, "unet/config.json": "0" * 64}}), lambda staged: None)
    return bundle


def tree(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): sha256_file(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def test_every_model_has_a_configuration_and_a_version(shippable: Path, repository: Path) -> None:
    shipped = ship(shippable, repository)
    assert (shipped.models, shipped.version, shipped.variant, shipped.backend) == (MODELS, 1, "masked", "python")
    assert {p.name for p in repository.iterdir()} == set(MODELS)
    for model in MODELS:
        assert {p.name for p in (repository / model).iterdir()} == {"config.pbtxt", "1"}
        config = read_config(repository / model / "config.pbtxt")
        assert config.name == model
        assert config.parameters["manifest"].string_value == sha256_file(shippable / "manifest.json")
    assert not [p for p in repository.parent.iterdir() if p.name.startswith(".")]


def test_the_weights_lie_beside_the_graph_in_a_folder_of_the_file_s_name(shippable: Path, repository: Path) -> None:
    ship(shippable, repository, variant="baked")
    folder = repository / "unet" / "1" / "model.onnx"
    assert {p.name for p in folder.iterdir()} == {"model.onnx", "model.onnx.data", "value_weights.data"}
    assert {p.name: sha256_file(p) for p in folder.iterdir()} == {
        p.name: sha256_file(shippable / "unet" / p.name) for p in folder.iterdir()
    }


def test_every_component_has_the_same_model_and_the_pipeline_its_policies(shippable: Path, repository: Path) -> None:
    ship(shippable, repository)
    assert len({(repository / model / "1" / "model.py").read_bytes() for model in MODELS[:3]}) == 1
    found = Policies.load(repository / "pipeline" / "1" / "policies.json")
    assert found.neurons["always"] == NeuronSet.load(shippable / "neurons.json")
    assert read_config(repository / "pipeline" / "config.pbtxt").parameters["policies"].string_value == found.version


def test_nothing_that_tells_of_the_memories_or_brings_one_back_is_shipped_with_baked_engines(shippable: Path, repository: Path) -> None:
    ship(shippable, repository, variant="baked")
    names = {p.name for p in repository.rglob("*")}
    assert not names & {"silenced_rows.safetensors", "localization.jsonl", "memorization_statistics.csv", "manifest.json", "neurons.json"}
    assert not any("unet_masked" in p.as_posix() for p in repository.rglob("*"))
    assert list(Policies.load(repository / "pipeline" / "1" / "policies.json").neurons) == ["always"]


def test_numbers_only_grow_and_former_versions_stay_as_they_are(shippable: Path, repository: Path) -> None:
    ship(shippable, repository)
    first = tree(repository / "unet" / "1")
    assert ship(shippable, repository).version == 2
    shutil.rmtree(repository / "unet" / "2")  # a number that was given away is not given again
    shutil.rmtree(repository / "pipeline" / "2")
    assert ship(shippable, repository).version == 3
    assert tree(repository / "unet" / "1") == first
    assert json.loads((repository / "pipeline" / "3" / "version.json").read_text())["number"] == 3
    assert {read_config(repository / m / "config.pbtxt").parameters["version"].string_value for m in MODELS} == {"3"}


class Meanwhile(Progress):
    """Another shipment puts its pipeline there before this one does."""

    def __init__(self, place: Path) -> None:
        self.place = place

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Advance]:
        yield lambda done: (self.place / "1").mkdir(parents=True, exist_ok=True)


@pytest.mark.parametrize("first", [True, False], ids=["first", "update"])
def test_a_shipment_that_cannot_be_finished_takes_back_what_it_has_put_there(shippable: Path, repository: Path, first: bool) -> None:
    if not first:
        ship(shippable, repository)
    before = tree(repository) if repository.exists() else {}
    taken = repository / "pipeline" / ("1" if first else "2")
    with pytest.raises(InputError, match=f"pipeline/{taken.name} cannot be written"):
        ship(shippable, repository, progress=Meanwhile(taken))
    assert tree(repository) == before
    shutil.rmtree(taken)
    assert {p.name for p in repository.rglob("*") if p.is_dir() and p.parent.parent == repository} == (set() if first else {"1"})


def test_nothing_is_written_beside_the_repository(shippable: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be a volume of its own, and its parent another's."""
    repository.mkdir()
    written: list[Path] = []
    make = Path.mkdir

    def mkdir(self: Path, *arguments: object, **options: object) -> None:
        written.append(self)
        make(self, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "mkdir", mkdir)
    ship(shippable, repository)
    assert written
    assert all(place == repository or repository in place.parents for place in written)


def test_a_component_that_is_ahead_of_the_others_pulls_them_with_it(shippable: Path, repository: Path) -> None:
    ship(shippable, repository)
    shutil.copytree(repository / "unet" / "1", repository / "unet" / "6")
    assert ship(shippable, repository).version == 7


def test_a_bundle_that_failed_a_gate_is_refused(tiny_bundle: Path, repository: Path) -> None:
    failed = [gate.name for gate in open_bundle(tiny_bundle).gates if not gate.passed]
    assert failed
    with pytest.raises(BundleError, match=rf"failed a gate \({', '.join(failed)}\) and is not shipped"):
        ship(tiny_bundle, repository)
    assert not repository.exists()


def test_a_bundle_that_was_changed_is_refused(bundle: Path, repository: Path) -> None:
    with (bundle / "unet" / "model.onnx.data").open("r+b") as file:
        file.write(b"\0\1\2\3")
    with pytest.raises(BundleError, match="was changed since it was built"):
        ship(bundle, repository)
    assert not repository.exists()


def test_random_weights_are_refused(bundle: Path, repository: Path) -> None:
    amend(bundle, open_bundle(bundle).model_copy(update={"random_weights": "sd15"}), lambda staged: None)
    with pytest.raises(BundleError, match=r"carries random weights \(sd15\): it is for measuring and is not shipped"):
        ship(bundle, repository)


def test_a_folder_that_is_no_bundle_is_refused(tmp_path: Path, repository: Path) -> None:
    with pytest.raises(BundleError, match=r"has no manifest\.json"):
        ship(tmp_path, repository)


def test_a_model_of_somebody_else_s_is_left_alone(shippable: Path, repository: Path) -> None:
    (repository / "unet").mkdir(parents=True)
    with pytest.raises(InputError, match="unet is there and is no model of nemo-edge's"):
        ship(shippable, repository)
    (repository / "unet" / "config.pbtxt").write_text('name: "unet"\nbackend: "python"\n')
    with pytest.raises(InputError, match="unet was not shipped by nemo-edge"):
        ship(shippable, repository)
    assert {p.name for p in repository.rglob("*")} == {"unet", "config.pbtxt"}


def test_versions_of_a_model_share_their_interface(shippable: Path, repository: Path) -> None:
    ship(shippable, repository, variant="masked")
    before = tree(repository)
    with pytest.raises(InputError, match="unet has another input than this bundle's unet"):
        ship(shippable, repository, variant="baked")
    with pytest.raises(InputError, match="text_encoder has another backend than this bundle's text_encoder"):
        ship(shippable, repository, "native")
    assert tree(repository) == before


def test_native_backends_get_the_files_as_they_name_them(shippable: Path, repository: Path) -> None:
    shipped = ship(shippable, repository, "native")
    assert shipped.backend == "onnxruntime"
    assert read_config(repository / "unet" / "config.pbtxt").backend == "onnxruntime"
    assert {p.name for p in (repository / "unet" / "1").iterdir()} == {"model.onnx", "version.json"}
    assert read_config(repository / "pipeline" / "config.pbtxt").backend == "python"


def test_native_plans_are_named_by_compute_capability(bundle: Path, repository: Path) -> None:
    """Plans of two GPUs, as their sidecars describe them; no engine is opened."""
    manifest = open_bundle(bundle)
    recipe = {**manifest.recipe, "tensorrt": {}, "engine": {**manifest.recipe["engine"], "backend": "tensorrt"}}

    def add(staged: Path) -> None:
        for place in ("text_encoder", "unet_masked", "vae_decoder"):
            for target in ("sm80", "sm90"):
                name = f"engines/{place}.tensorrt.{target}.plan"
                profile = {"x": ((1, 4), (2, 4), (6, 4))}
                plans.write(staged, plans.standard(), plans.standard_sidecar(plan=name, targets=(target,), profiles=(profile,)), name)

    amend(bundle, manifest.model_copy(update={"recipe": recipe}), add)
    shipped = ship(bundle, repository)
    assert shipped.backend == "tensorrt"
    config = read_config(repository / "unet" / "config.pbtxt")
    assert dict(config.cc_model_filenames) == {f"{cc}.0": f"unet_masked.tensorrt.sm{cc}0.plan" for cc in (8, 9)}
    assert config.max_batch_size == 6
    assert all((repository / "unet" / "1" / name).is_file() for name in config.cc_model_filenames.values())
    assert hashes(repository / "unet" / "1").keys() == set(config.cc_model_filenames.values())


def test_native_plans_that_the_bundle_lacks_are_named(bundle: Path, repository: Path) -> None:
    manifest = open_bundle(bundle)
    recipe = {**manifest.recipe, "tensorrt": {}, "engine": {**manifest.recipe["engine"], "backend": "tensorrt"}}
    amend(bundle, manifest.model_copy(update={"recipe": recipe}), lambda staged: None)
    with pytest.raises(InputError, match=r"has no tensorrt engine of text_encoder: build it with \[tensorrt\] in the recipe"):
        ship(bundle, repository)


def test_a_folder_that_is_no_version_does_not_count(shippable: Path, repository: Path) -> None:
    ship(shippable, repository)
    (repository / "unet" / "\u00b2").mkdir()
    assert ship(shippable, repository).version == 2


def test_another_backend_is_refused(shippable: Path, repository: Path) -> None:
    with pytest.raises(InputError, match="--backend openvino: take native"):
        ship(shippable, repository, "openvino")


def test_two_models_share_a_repository_under_names_of_their_own(
    shippable: Path, other_model: Path, golden: Golden, repository: Path
) -> None:
    ship(shippable, repository)
    before = tree(repository)
    shipped = ship(other_model, repository, name="sd15-b")
    assert shipped.models == ("sd15-b_text_encoder", "sd15-b_vae_decoder", "sd15-b_unet", "sd15-b_pipeline")
    assert before.items() <= tree(repository).items()
    assert ship(other_model, repository, name="sd15-b").version == 2
    config = read_config(repository / "sd15-b_vae_decoder" / "config.pbtxt")
    assert config.name == "sd15-b_vae_decoder"
    assert [entry.batch_size for entry in config.model_warmup] == [1]
    with ExitStack() as stack:
        picture = open_painter(repository, stack, "sd15-b").paint(golden.tensors).pictures
        assert np.abs(picture.astype(int) - golden.picture).max() <= LEVELS
    with ExitStack() as stack, pytest.raises(InputError, match=r"has no c_pipeline that .* --name c`; it has those of --name sd15-b$"):
        open_painter(repository, stack, "c")
    assert ship_masks(other_model, repository, name="sd15-b").version == 2
    assert json.loads((repository / "sd15-b_unet" / "2" / "version.json").read_text())["label"] == "sd15-b"


def test_another_model_does_not_become_the_next_version_of_one(shippable: Path, other_model: Path, repository: Path) -> None:
    ship(shippable, repository)
    before = tree(repository)
    with pytest.raises(InputError, match=r"has versions of another model \(tiny\), which tiny would take the place of: give it a name"):
        ship(other_model, repository)
    assert tree(repository) == before


@pytest.mark.parametrize("name", ["../x", "a b", "-a", "x" * 60, ".hidden"])
def test_a_name_that_is_no_part_of_a_model_s_is_refused(shippable: Path, repository: Path, name: str) -> None:
    with pytest.raises(InputError, match="take letters, digits, - and _"):
        ship(shippable, repository, name=name)
    assert not repository.exists()

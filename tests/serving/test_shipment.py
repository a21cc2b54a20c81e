"""What of a bundle is shipped: nothing that its manifest does not have, and as many rows as every plan takes."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("tritonclient.grpc")

import plans

from nemo_edge.backends.tensorrt.plans import Shapes
from nemo_edge.bundle.manifest import amend, open_bundle
from nemo_edge.model.configuration import Configuration
from nemo_edge.recipe.recipe import Recipe
from nemo_edge.recipe.targets import EngineSettings, TensorRtSettings
from nemo_edge.serving.shipment import Shipment, choose_backend
from nemo_edge.system.errors import BundleError, InputError
from nemo_edge.system.files import sha256_file


def shipment_of(bundle: Path) -> Shipment:
    manifest = open_bundle(bundle)
    recipe = Recipe.model_validate(manifest.recipe)
    return Shipment(
        bundle, manifest, sha256_file(bundle / "manifest.json"), recipe, Configuration.load(bundle, tokenizers=False), "masked", "python", 3
    )


def test_the_variant_decides_which_graph_the_unet_is(shippable: Path) -> None:
    shipment = shipment_of(shippable)
    assert shipment.places == {"text_encoder": "text_encoder", "vae_decoder": "vae_decoder", "unet": "unet_masked"}
    assert replace(shipment, variant="baked").places["unet"] == "unet"
    assert "value_mask" in shipment.signature("unet_masked").inputs
    assert shipment.parameters["identity"] == open_bundle(shippable).identity
    assert (shipment.parameters["manifest"], shipment.parameters["version"]) == (sha256_file(shippable / "manifest.json"), "3")


def test_files_are_copied_with_the_hashes_of_the_manifest(shippable: Path, tmp_path: Path) -> None:
    found = shipment_of(shippable).copy({"a/b.json": "unet_masked/config.json"}, tmp_path)
    assert found == {"a/b.json": sha256_file(tmp_path / "a" / "b.json")}
    assert (tmp_path / "a" / "b.json").read_bytes() == (shippable / "unet_masked" / "config.json").read_bytes()


@pytest.mark.parametrize("name", ["manifest.json", "tokenizer/../../out.json"])
def test_a_file_that_is_not_of_the_manifest_or_leads_out_of_the_bundle_is_not_copied(shippable: Path, tmp_path: Path, name: str) -> None:
    shipment = shipment_of(shippable)
    if ".." in name:  # a manifest that somebody wrote by hand
        shipment = replace(shipment, manifest=shipment.manifest.model_copy(update={"files": {**shipment.manifest.files, name: "0" * 64}}))
    with pytest.raises(BundleError, match="which is no file of its manifest: build it again; nothing was shipped"):
        shipment.copy({name: name}, tmp_path / "version")
    assert list(tmp_path.iterdir()) == []


def test_as_many_rows_are_served_as_every_plan_takes_in_one_of_its_profiles(shippable: Path, tmp_path: Path) -> None:
    """Plans of two GPUs, as their sidecars describe them; no engine is opened."""
    bundle = shutil.copytree(shippable, tmp_path / "bundle")

    def add(staged: Path) -> None:
        for target, most in (("sm80", (2, 8)), ("sm90", (6, 4))):
            name = f"engines/vae_decoder.tensorrt.{target}.plan"
            profiles: tuple[dict[str, Shapes], ...] = tuple({"x": ((1, 4), (1, 4), (rows, 4))} for rows in most)
            plans.write(staged, plans.standard(), plans.standard_sidecar(plan=name, targets=(target,), profiles=profiles), name)

    amend(bundle, open_bundle(bundle), add)
    assert replace(shipment_of(bundle), backend="tensorrt").signature("vae_decoder").rows == 6


def test_the_backend_is_the_recipe_s_unless_another_is_asked_for(shippable: Path) -> None:
    recipe = shipment_of(shippable).recipe
    assert choose_backend(recipe, None) == choose_backend(recipe, "python") == "python"
    assert choose_backend(recipe, "native") == "onnxruntime"
    on_gpu = recipe.model_copy(update={"engine": recipe.engine.model_copy(update={"provider": "cuda"})})
    assert choose_backend(on_gpu, None) == "onnxruntime"
    compiled = on_gpu.model_copy(update={"tensorrt": TensorRtSettings()})  # as `nemo-edge compile` leaves it, which measures nothing
    assert (choose_backend(compiled, None), choose_backend(compiled, "native")) == ("onnxruntime", "tensorrt")
    examined = compiled.model_copy(update={"engine": EngineSettings(backend="tensorrt")})
    assert choose_backend(examined, None) == "tensorrt"
    with pytest.raises(InputError, match="--backend openvino: take native"):
        choose_backend(recipe, "openvino")

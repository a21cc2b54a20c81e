"""Engines that are compiled into a finished bundle, and what the bundle says of itself then."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from nemo_edge.bundle.engines import verify
from nemo_edge.bundle.manifest import MANIFEST, amend, check_shippable, open_bundle
from nemo_edge.release.compile import compile_again
from nemo_edge.system.errors import BundleError, InputError, MissingDependency

RTX = "tensorrt-rtx"
GIVEN = {"targets": ["sm86"], "components": ["text_encoder", "unet_masked"]}


@pytest.fixture
def bundle(shippable: Path, tmp_path: Path) -> Path:
    return shutil.copytree(shippable, tmp_path / "bundle")


def test_engines_come_into_the_bundle_with_their_hashes(bundle: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    before = open_bundle(bundle)
    found = compile_again(bundle, RTX, GIVEN)
    after = open_bundle(bundle)
    assert found.measured
    assert found.engines == ("engines/text_encoder.tensorrt-rtx.sm86.engine", "engines/unet_masked.tensorrt-rtx.sm86.engine")
    assert {*found.engines} <= after.files.keys() - before.files.keys()
    assert verify(bundle).passed
    others = {name: digest for name, digest in before.files.items() if not name.startswith("report/")}
    assert others.items() <= after.files.items()
    assert after.recipe["tensorrt_rtx"]["targets"] == ["sm86"]
    assert any(name.startswith("tensorrt-rtx") for name in after.versions)
    assert (after.gates, after.passed, after.key) == (before.gates, before.passed, before.key)
    check_shippable(bundle)


def test_compiling_again_replaces_them(bundle: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    compile_again(bundle, RTX, {**GIVEN, "components": ["text_encoder"]})
    first = open_bundle(bundle)
    found = compile_again(bundle, RTX)  # as the bundle's recipe says now
    assert found.engines == ("engines/text_encoder.tensorrt-rtx.sm86.engine",)
    assert open_bundle(bundle).files.keys() == first.files.keys()
    assert verify(bundle).passed


def test_a_bundle_that_was_measured_with_such_engines_is_unmeasured_with_new_ones(bundle: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    compile_again(bundle, RTX, {"targets": ["sm86"]})
    manifest = open_bundle(bundle)
    recipe = {**manifest.recipe, "engine": {**manifest.recipe["engine"], "backend": RTX}}
    amend(bundle, manifest.model_copy(update={"recipe": recipe}), lambda _: {})
    assert not compile_again(bundle, RTX).measured
    assert not open_bundle(bundle).measured
    assert verify(bundle).passed
    with pytest.raises(BundleError, match=r"failed a gate \(measured\)"):
        check_shippable(bundle)
    assert not compile_again(bundle, RTX).measured  # once more, with no measurement to report


def test_a_bundle_that_was_changed_is_not_compiled(bundle: Path) -> None:
    with (bundle / "unet" / "model.onnx").open("ab") as file:
        file.write(b"\0")
    manifest = (bundle / MANIFEST).read_bytes()
    with pytest.raises(BundleError, match=r"model\.onnx"):
        compile_again(bundle, RTX, GIVEN)
    assert (bundle / MANIFEST).read_bytes() == manifest
    assert not list((bundle / "engines").glob("*.engine"))


@pytest.mark.parametrize(
    ("given", "why"), [({"components": ["safety"]}, "'safety' is not exported"), ({"targets": ["sm61"]}, "does not compile for 'sm61'")]
)
def test_settings_that_do_not_fit_are_refused_and_nothing_is_written(bundle: Path, given: dict[str, list[str]], why: str) -> None:
    pytest.importorskip("tensorrt_rtx")
    manifest = (bundle / MANIFEST).read_bytes()
    with pytest.raises(InputError, match=why):
        compile_again(bundle, RTX, given)
    assert (bundle / MANIFEST).read_bytes() == manifest


def test_tensorrt_needs_the_gpu_that_it_compiles_for(bundle: Path) -> None:
    with pytest.raises(MissingDependency):
        compile_again(bundle, "tensorrt")

"""A version folder: opened when it is as it was shipped, and not otherwise."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from bundle.test_references import graph

from nemo_edge.backends.onnxruntime import open_runner
from nemo_edge.serving.repository import ship
from nemo_edge.serving.versions import DESCRIPTION, hashes, open_engine, read_engine, read_pipeline
from nemo_edge.system.errors import BundleError, MissingDependency
from nemo_edge.system.files import sha256_file


@pytest.fixture(scope="module")
def repository(shippable: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("versions") / "repository"
    ship(shippable, folder)
    return folder


def test_every_file_is_described_with_its_hash(repository: Path) -> None:
    for model in ("text_encoder", "unet", "vae_decoder"):
        assert read_engine(repository / model / "1").files == hashes(repository / model / "1")
    assert read_pipeline(repository / "pipeline" / "1").files == hashes(repository / "pipeline" / "1")


def test_a_version_s_engine_is_the_bundle_s(repository: Path, shippable: Path) -> None:
    feed = {"latent_sample": np.random.default_rng(0).standard_normal((1, 4, 16, 16), np.float32)}
    with open_engine(repository / "vae_decoder" / "1") as served, open_runner(shippable / "vae_decoder" / "model.onnx") as own:
        assert np.array_equal(served(feed)["sample"], own(feed)["sample"])


def test_a_version_knows_its_bundle(repository: Path, shippable: Path) -> None:
    digest = sha256_file(shippable / "manifest.json")
    assert {read_engine(repository / "unet" / "1").manifest, read_pipeline(repository / "pipeline" / "1").manifest} == {digest}
    assert read_engine(repository / "unet" / "1").place == "unet_masked"


def damage_weights(version: Path) -> None:
    path = version / "model.onnx" / "model.onnx.data"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (damage_weights, "model.onnx/model.onnx.data was changed"),
        (lambda version: (version / "model.py").unlink(), "model.py is missing"),
        (lambda version: (version / DESCRIPTION).unlink(), "is not a version that nemo-edge shipped"),
        (lambda version: (version / DESCRIPTION).write_text("{}"), "is not a version that nemo-edge shipped"),
    ],
)
def test_a_changed_version_is_not_opened(repository: Path, tmp_path: Path, damage: Callable[[Path], object], said: str) -> None:
    version = shutil.copytree(repository / "unet" / "1", tmp_path / "1")
    damage(version)
    with pytest.raises(BundleError, match=said):
        open_engine(version)


def test_a_pipeline_calls_models_of_its_repository_a_unet_among_them(repository: Path, tmp_path: Path) -> None:
    version = shutil.copytree(repository / "pipeline" / "1", tmp_path / "1")
    described = read_description(version)
    models = described["models"]
    assert isinstance(models, dict)
    for others in ({name: models[name] for name in models if name != "unet"}, {**models, "../../unet": models["unet"]}):
        (version / DESCRIPTION).write_text(json.dumps({**described, "models": others}))
        with pytest.raises(BundleError, match="is not a version that nemo-edge shipped"):
            read_pipeline(version)


def test_a_library_that_an_engine_needs_and_that_is_not_here_is_named(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr("nemo_edge.serving.versions._opened", lambda *_: importlib.import_module("torch"))
    with pytest.raises(MissingDependency, match=r"needs torch, .*'nemo-edge\[build\]'"):
        open_engine(repository / "vae_decoder" / "1")


def test_a_version_whose_graph_leads_out_of_it_is_not_opened(repository: Path, tmp_path: Path) -> None:
    """Its description is right about each of its files."""
    version = shutil.copytree(repository / "vae_decoder" / "1", tmp_path / "1")
    (tmp_path / "evil.data").write_bytes(bytes(16))
    (version / "model.onnx" / "model.onnx").write_bytes(graph("../../evil.data"))
    described = read_description(version)
    (version / DESCRIPTION).write_text(json.dumps({**described, "files": hashes(version)}))
    with pytest.raises(BundleError, match=r"model.onnx/model.onnx names ../evil.data, which is no file of the bundle"):
        open_engine(version)
    (version / "model.onnx" / "model.onnx").unlink()
    (version / "model.onnx" / "model.onnx").symlink_to(repository / "vae_decoder" / "1" / "model.onnx" / "model.onnx")
    (version / DESCRIPTION).write_text(json.dumps(described))
    with pytest.raises(BundleError, match="is a link"):
        open_engine(version)


def read_description(version: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((version / DESCRIPTION).read_text())
    return found

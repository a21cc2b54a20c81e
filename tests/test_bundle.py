"""The folder a build makes: whole or absent, and every byte accounted for."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from nemo_edge.bundle import MANIFEST, Manifest, check_output, open_bundle, publish, staging, verify
from nemo_edge.errors import BundleError, InputError


def manifest(key: str = "k") -> Manifest:
    return Manifest(
        name="x",
        family="StableDiffusionPipeline",
        key=key,
        variants=("baked",),
        checkpoint={},
        prompts={},
        recipe={},
        versions={},
        neurons_hash="",
        threshold=0.5,
        gates=(),
        passed=True,
        files={},
    )


def published(folder: Path, key: str = "k") -> Path:
    with staging(folder) as staged:
        (staged / "unet").mkdir()
        (staged / "unet" / "model.onnx").write_bytes(b"graph")
        (staged / "unet" / "model.onnx.data").write_bytes(b"weights")
        publish(staged, folder, manifest(key))
    return folder


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_an_output_may_be_absent_empty_or_a_bundle(tmp_path: Path) -> None:
    check_output(tmp_path / "absent" / "deep")
    (tmp_path / "empty").mkdir()
    check_output(tmp_path / "empty")
    check_output(published(tmp_path / "bundle"))
    assert names(tmp_path) == ["bundle", "empty"]


def test_an_output_is_never_a_file_nor_someone_elses_folder(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(InputError, match="is a file: give the path of a folder"):
        check_output(file)
    with pytest.raises(InputError, match=r"lies below .*file, which is a file"):
        check_output(file / "deep" / "out")
    with pytest.raises(InputError, match="not empty and not a bundle"):
        check_output(tmp_path)


def test_a_read_only_output_is_refused_before_any_work() -> None:
    place = Path("/sys")
    if os.access(place, os.W_OK):
        pytest.skip("no read-only place that this user cannot write to (os.access says writable)")
    with pytest.raises(InputError, match="/sys is read-only"):
        check_output(place / "out")


def test_an_exception_leaves_nothing_behind(tmp_path: Path) -> None:
    def interrupted() -> None:
        with staging(tmp_path / "out") as staged:
            (staged / "half").write_text("half")
            assert names(tmp_path) == [staged.name]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert names(tmp_path) == []


def test_what_is_published_is_verified(tmp_path: Path) -> None:
    folder = published(tmp_path / "out")
    assert names(tmp_path) == ["out"]
    assert verify(folder).passed
    assert verify(folder).files == 2
    assert open_bundle(folder).files.keys() == {"unet/model.onnx", "unet/model.onnx.data"}


def test_a_former_bundle_is_replaced_as_a_whole(tmp_path: Path) -> None:
    folder = published(tmp_path / "out", "former")
    (folder / "stray").write_text("")
    published(folder, "new")
    assert open_bundle(folder).key == "new"
    assert names(folder) == [MANIFEST, "unet"]
    assert names(tmp_path) == ["out"]


def test_a_publication_that_fails_leaves_the_former_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = published(tmp_path / "out", "former")
    replace = os.replace

    def failing(source: Path, target: Path) -> None:
        if Path(target) == folder and (Path(source) / MANIFEST).is_file() and open_bundle(Path(source)).key == "new":
            raise OSError(5, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(InputError, match="Input/output error"):
        published(folder, "new")
    assert open_bundle(folder).key == "former"
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda f: (f / "unet/model.onnx.data").write_bytes(b"weightz"), "unet/model.onnx.data was changed"),
        (lambda f: (f / "unet/model.onnx").unlink(), "unet/model.onnx is missing"),
        (lambda f: (f / "unet/extra.onnx").write_bytes(b""), "unet/extra.onnx was added"),
        (lambda f: (f / "dangling").symlink_to("/nowhere"), "dangling was added"),
    ],
)
def test_a_file_that_is_not_the_manifests_is_found(tmp_path: Path, change: Callable[[Path], object], problem: str) -> None:
    folder = published(tmp_path / "out")
    change(folder)
    assert verify(folder).problems == (problem,)
    assert not verify(folder).passed


def test_a_folder_without_a_manifest_is_not_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no manifest\.json and is not a finished bundle"):
        open_bundle(tmp_path)
    with pytest.raises(BundleError, match="does not exist"):
        open_bundle(tmp_path / "absent")


def test_a_manifest_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text('{"name": "a web app"}')
    with pytest.raises(BundleError, match="not a manifest of this version"):
        open_bundle(tmp_path)

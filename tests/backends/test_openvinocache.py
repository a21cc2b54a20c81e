"""What OpenVINO compiled is read again, never another graph's, and never needed."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.test_onnxruntime import MODEL, feed, save_graph
from backends.test_openvino import save_product
from nemo_edge.backends import _openvinocache, openvino
from nemo_edge.backends._openvinocache import compile_cached, folder_of
from nemo_edge.backends.openvino import OpenVinoRunner, open_runner
from nemo_edge.recipe.targets import EngineSettings

ONE = EngineSettings(backend="openvino", threads=1)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "nemo-edge" / "openvino"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_graph(tmp_path / MODEL)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether OpenVINO read each graph instead of compiling it."""
    told: list[bool] = []
    check = openvino._check_precision

    def checked(compiled: Any, *rest: Any) -> None:
        told.append(compiled.get_property("LOADED_FROM_CACHE"))
        check(compiled, *rest)

    monkeypatch.setattr(openvino, "_check_precision", checked)
    return told


def run(model: Path, batch: int = 4, engine: EngineSettings = ONE) -> np.ndarray:
    with open_runner(model, engine) as runner:
        return runner(feed(batch))["out_sample"]


def test_a_second_start_reads_what_the_first_one_compiled_and_gives_the_same(cache: Path, model: Path, read: list[bool]) -> None:
    first, second = run(model), run(model)
    assert read == [False, True]
    assert np.array_equal(first, second)
    (kept,) = cache.iterdir()
    assert [path.suffix for path in kept.iterdir()] == [".blob"]


def test_other_weights_shapes_and_numbers_of_threads_are_another_graph(cache: Path, tmp_path: Path, model: Path, read: list[bool]) -> None:
    run(model)
    run(model, batch=3)
    run(model, engine=EngineSettings(backend="openvino", threads=2))
    x, products = {"x": np.ones((1, 64), np.float32)}, []
    for seed in (0, 1):
        with open_runner(save_product(tmp_path / "product.onnx", np.float32, seed), ONE) as runner:
            products.append(runner(x)["y"])
    assert read == [False] * 5
    assert len(list(cache.iterdir())) == 5
    assert not np.array_equal(*products)


def test_weights_of_a_caller_and_profiles_are_not_kept(cache: Path, tmp_path: Path, model: Path, read: list[bool]) -> None:
    with OpenVinoRunner(model, ONE) as runner:
        runner.compile(profiled=True)
    run(model, engine=EngineSettings(backend="openvino", threads=1, cache=False))
    with open_runner(save_product(tmp_path / "product.onnx", np.float32), ONE, {"w": np.ones((64, 64), np.float32)}) as changed:
        changed({"x": np.ones((1, 64), np.float32)})
    assert read == [False] * 3
    assert not cache.exists()


def test_a_file_that_cannot_be_read_is_compiled_anew(cache: Path, model: Path, read: list[bool]) -> None:
    expected = run(model)
    (blob,) = cache.rglob("*.blob")
    blob.chmod(0o644)
    blob.write_bytes(blob.read_bytes()[:100])
    assert np.array_equal(run(model), expected)
    assert read == [False, False]


@pytest.mark.parametrize("where", ["a file", "nowhere"])
def test_a_cache_that_cannot_be_written_stops_nobody(
    tmp_path: Path, model: Path, read: list[bool], where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a file").touch()
    if where == "nowhere":
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / where))
    assert np.array_equal(run(model), run(model))
    assert read == [False, False]


def test_a_graph_that_does_not_compile_with_a_cache_is_compiled_without(cache: Path) -> None:
    asked: list[dict[str, Any]] = []

    def compile_with(options: dict[str, Any]) -> str:
        asked.append(options)
        if options:
            (Path(options["CACHE_DIR"])).mkdir()
            raise RuntimeError("no space left")
        return "compiled"

    assert compile_cached(compile_with, folder_of("it"), 1) == "compiled"
    assert [bool(each) for each in asked] == [True, False]
    assert not list(cache.iterdir())


def test_what_another_process_put_there_first_is_no_reason_to_compile_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def taken(self: Path, target: Path) -> None:
        raise OSError("not empty")

    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(Path, "rename", taken)
    compile_cached(lambda options: asked.append(options) or Path(options["CACHE_DIR"]).mkdir(), folder_of("it"), 1)
    assert len(asked) == 1
    assert not list(cache.iterdir())


def test_a_build_that_only_compiles_keeps_nothing(cache: Path, tmp_path: Path, model: Path) -> None:
    openvino.compile_engine(tmp_path, "unet", model.relative_to(tmp_path).as_posix(), ONE)
    assert not cache.exists()


def test_the_one_that_was_not_used_for_longest_makes_room(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_with(options: dict[str, Any]) -> None:
        if options and not Path(options["CACHE_DIR"]).exists():
            Path(options["CACHE_DIR"]).mkdir()
            (Path(options["CACHE_DIR"]) / "a.blob").write_bytes(bytes(40))

    monkeypatch.setattr(_openvinocache, "_MOST_BYTES", 100)
    folders = [folder_of(name) for name in "abc"]
    for age, folder in enumerate(folders[:2]):
        compile_cached(compile_with, folder, 40)
        assert folder
        os.utime(folder, (time.time() - 100 + age,) * 2)
    compile_cached(compile_with, folders[0], 40)  # it is used once more
    compile_cached(compile_with, folders[2], 40)
    assert {folder.name for folder in cache.iterdir()} == {folder.name for folder in (folders[0], folders[2]) if folder}
    compile_cached(compile_with, folder_of("large"), 60)
    assert len(list(cache.iterdir())) == 2


def test_a_disk_with_little_left_is_not_filled(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 100})())
    asked: list[dict[str, Any]] = []
    compile_cached(asked.append, folder_of("it"), 60)
    assert asked == [{}]

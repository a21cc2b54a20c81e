"""The folder a build makes: whole or absent, and every byte accounted for."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from nemo_edge.bundle.manifest import (
    MANIFEST,
    GateResult,
    Manifest,
    amend,
    check_output,
    check_shippable,
    holding,
    open_bundle,
    open_verified,
    publish,
    staging,
    verify,
)
from nemo_edge.system import files
from nemo_edge.system.environment import machine
from nemo_edge.system.errors import BundleError, InputError
from nemo_edge.system.outputs import former_of

GRAPH = onnx.ModelProto(producer_name="nobody").SerializeToString()


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
        machine=machine(),
        created="2026-01-02T03:04:05+00:00",
        neurons_hash="",
        threshold=0.5,
        gates=(),
        passed=True,
        files={},
    )


def published(folder: Path, key: str = "k") -> Path:
    with staging(folder) as staged:
        (staged / "unet").mkdir()
        (staged / "unet" / "model.onnx").write_bytes(GRAPH)
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


def test_there_is_no_moment_without_a_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = published(tmp_path / "out", "former")
    moved: list[Path] = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda source, target: (moved.append(Path(source)), replace(source, target)))
    published(folder, "new")
    assert open_bundle(folder).key == "new"
    if sys.platform == "linux":
        assert folder not in moved


def test_a_publication_that_fails_leaves_the_former_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = published(tmp_path / "out", "former")
    replace = os.replace

    def failing(source: Path, target: Path) -> None:
        if Path(target) == folder and (Path(source) / MANIFEST).is_file() and open_bundle(Path(source)).key == "new":
            raise OSError(5, "Input/output error")
        replace(source, target)

    monkeypatch.setattr("nemo_edge.system.outputs._exchange", lambda *_: False)  # as on a system that cannot
    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(InputError, match="Input/output error"):
        published(folder, "new")
    assert open_bundle(folder).key == "former"
    assert names(tmp_path) == ["out"]


def test_a_bundle_that_was_moved_aside_when_a_command_was_killed_is_put_back_by_whoever_opens_it(tmp_path: Path) -> None:
    folder = published(tmp_path / "out", "former")
    folder.rename(former_of(folder))
    (tmp_path / "link").symlink_to(folder)
    assert open_bundle(tmp_path / "link").key == "former"
    assert verify(folder).passed
    assert names(tmp_path) == ["link", "out"]


def test_a_link_to_a_bundle_stays_one(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(published(tmp_path / "out", "former"))
    published(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert open_bundle(tmp_path / "out").key == "new"
    assert names(tmp_path) == ["link", "out"]


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


def test_a_bundle_of_a_former_schema_is_built_again_in_its_place(tmp_path: Path) -> None:
    folder = published(tmp_path / "out")
    content = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**content, "schema_version": 2}))
    with pytest.raises(BundleError, match="build the bundle again"):
        open_bundle(folder)
    check_output(folder)
    (folder / "manifest.json").write_text('{"schema_version": 2}')
    with pytest.raises(InputError, match="is not empty and not a bundle"):
        check_output(folder)


def test_a_folder_without_a_manifest_is_not_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no manifest\.json and is not a finished bundle"):
        open_bundle(tmp_path)
    with pytest.raises(BundleError, match="does not exist"):
        open_bundle(tmp_path / "absent")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"name": "a web app"}', "is of schema None, and this nemo-edge reads schemas 3 to 4: build the bundle again with it"),
        ('{"schema_version": 2, "name": "x"}', "is of schema 2, and this nemo-edge reads schemas 3 to 4"),
        ('{"schema_version": 5}', "is of schema 5, and this nemo-edge reads schemas 3 to 4"),
        ('{"schema_version": 4}', "is not a manifest of schema 4, as it says"),
        ('{"schema_version": 3}', "is not a manifest of schema 3, as it says"),
        ("[]", "is not a manifest: build the bundle again"),
        ("{", "is not a manifest: build the bundle again"),
        ("", "is not a manifest: build the bundle again"),
        (b"\xff", "is not a manifest: build the bundle again"),
    ],
)
def test_a_manifest_of_something_else_is_refused(tmp_path: Path, content: str | bytes, reason: str) -> None:
    (tmp_path / MANIFEST).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(BundleError) as refused:
        open_bundle(tmp_path)
    assert str(refused.value).startswith(f"{tmp_path / MANIFEST} {reason}")
    assert "\n" not in str(refused.value)


def test_a_manifest_with_unknown_fields_is_refused(tmp_path: Path) -> None:
    folder = published(tmp_path / "out")
    content = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**content, "colour": 1}))
    with pytest.raises(BundleError, match="not a manifest of schema 4, as it says"):
        open_bundle(folder)


def test_a_changed_bundle_is_not_opened(tmp_path: Path) -> None:
    folder = published(tmp_path / "out")
    assert open_verified(folder) == open_bundle(folder)
    (folder / "unet/model.onnx.data").write_bytes(b"weightz")
    with pytest.raises(BundleError, match=r"model\.onnx\.data was changed\): build it again; no engine was opened"):
        open_verified(folder)


def test_files_and_identity_are_of_one_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = published(tmp_path / "out")
    path, other = folder / "manifest.json", manifest("other").model_dump_json()
    monkeypatch.setattr("nemo_edge.bundle.manifest.strays", lambda *_: path.write_text(other) and ())  # at the end of the comparison
    with pytest.raises(BundleError, match="was built again meanwhile: run the same command once more"):
        verify(folder)


def add(folder: Path) -> None:
    files.write_atomically(folder / "latency.json", "{}")


def test_an_amended_bundle_has_what_was_added_and_what_it_had(tmp_path: Path) -> None:
    folder = published(tmp_path / "out")
    before = open_bundle(folder)
    made = amend(folder, before.model_copy(update={"passed": False}), add)
    assert open_verified(folder) == made
    assert not made.passed
    assert made.files.keys() - before.files.keys() == {"latency.json"}
    assert {name: made.files[name] for name in before.files} == before.files
    assert names(tmp_path) == ["out"]


def test_what_is_left_alone_keeps_its_hash_and_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = published(tmp_path / "out")
    known, hashed = open_bundle(folder), []

    def counted(path: Path) -> str:
        hashed.append(path.name)
        return files.sha256_file(path)

    monkeypatch.setattr("nemo_edge.bundle.manifest.sha256_file", counted)
    made = amend(folder, known, lambda staged: files.write_atomically(staged / "unet/model.onnx", GRAPH * 2))
    assert hashed == ["model.onnx"]
    assert made.files["unet/model.onnx.data"] == known.files["unet/model.onnx.data"]
    assert made.files["unet/model.onnx"] == files.sha256_file(folder / "unet/model.onnx") != known.files["unet/model.onnx"]


def test_a_bundle_that_was_built_again_meanwhile_is_left_alone(tmp_path: Path) -> None:
    folder = published(tmp_path / "out")
    known = open_bundle(folder)
    amend(folder, known, lambda staged: files.write_atomically(staged / "unet/model.onnx", GRAPH * 2))
    newer = open_verified(folder)
    with pytest.raises(BundleError, match="was built again meanwhile"):
        amend(folder, known, lambda staged: None)
    assert open_verified(folder) == newer


def test_a_file_may_be_taken_out(tmp_path: Path) -> None:
    folder = published(tmp_path / "out")
    amend(folder, open_bundle(folder), lambda staged: (staged / "unet/model.onnx").unlink())
    assert open_verified(folder).files.keys() == {"unet/model.onnx.data"}


@pytest.mark.parametrize("stop", [KeyboardInterrupt, InputError])
def test_an_interrupted_amendment_leaves_the_old_bundle(tmp_path: Path, stop: type[BaseException]) -> None:
    folder = published(tmp_path / "out")
    before = open_verified(folder)

    def interrupted(staged: Path) -> None:
        add(staged)
        raise stop

    with pytest.raises(stop):
        amend(folder, before.model_copy(update={"key": "new"}), interrupted)
    assert open_verified(folder) == before
    assert names(tmp_path) == ["out"]


def save_with_external_data(folder: Path) -> Path:
    folder.mkdir(parents=True)
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [64, 64]) for name in "xy"]
    weights = numpy_helper.from_array(np.random.default_rng(0).standard_normal((64, 64), np.float32), "w")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", ports[:1], ports[1:], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    onnx.save(model, str(folder / "model.onnx"), save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    return folder


def test_files_of_a_bundle_have_one_name_so_that_onnx_reads_them(tmp_path: Path) -> None:
    source = save_with_external_data(tmp_path / "cache" / "unet").parent
    with staging(tmp_path / "out") as staged:
        files.copy_tree(source, staged)
        publish(staged, tmp_path / "out", manifest())
    amend(tmp_path / "out", open_bundle(tmp_path / "out"), add)
    for folder in (source, tmp_path / "out"):
        assert {p.name: p.stat().st_nlink for p in folder.rglob("*") if p.is_file() and p.stat().st_nlink != 1} == {}
        loaded = onnx.load(str(folder / "unet" / "model.onnx"))
        assert numpy_helper.to_array(loaded.graph.initializer[0]).shape == (64, 64)


def test_a_time_that_is_none_is_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = published(tmp_path / "out")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(InputError, match="SOURCE_DATE_EPOCH=yesterday is no time"), holding(folder):
        pytest.fail("it was held")
    assert names(tmp_path) == ["out"]


def test_a_bundle_that_passed_may_be_shipped_and_no_other(tmp_path: Path) -> None:
    bundle = published(tmp_path / "bundle")
    own = open_bundle(bundle)
    assert check_shippable(bundle) == own
    for changes, said in (
        ({"passed": False, "gates": (GateResult(name="drift", limit=0.1, value=0.3, passed=False),)}, r"failed a gate \(drift\)"),
        ({"passed": False}, r"failed a gate \(none was judged\)"),
        ({"random_weights": "sd15"}, r"carries random weights \(sd15\)"),
    ):
        amend(bundle, own.model_copy(update=changes), lambda staged: None)
        with pytest.raises(BundleError, match=said):
            check_shippable(bundle)

"""What engines and graphs name has to be in the bundle: a hash says nothing of a file elsewhere."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bundle.test_manifest import manifest
from nemo_edge.bundle.manifest import MANIFEST, amend, open_bundle, publish, staging, verify
from nemo_edge.system.errors import BundleError
from nemo_edge.system.files import inside


def graph(location: str, where: str = "initializer") -> bytes:
    """A graph with one tensor of external data: a weight, a constant, or one of a branch or a function."""
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    constant = helper.make_node("Constant", [], ["w"], value=tensor)
    out = helper.make_tensor_value_info("w", TensorProto.FLOAT, [4])
    inner = helper.make_graph([constant], "inner", [], [out])
    nodes = {"initializer": [], "constant": [constant], "branch": [helper.make_node("If", ["c"], ["y"], then_branch=inner)], "function": []}
    made = helper.make_graph(nodes[where], "g", [], [], [tensor] if where == "initializer" else [])
    functions = [helper.make_function("own", "f", [], ["w"], [constant], [])] if where == "function" else []
    content: bytes = helper.make_model(made, functions=functions).SerializeToString()
    return content


def published(folder: Path, **files: bytes) -> Path:
    """A bundle of these files ("unet__model" is unet/model.onnx) with a manifest that is right about each of them."""
    with staging(folder) as staged:
        for name, content in {"unet__weights.data": b"0" * 16, **files}.items():
            path = staged / name.replace("__", "/")
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        publish(staged, folder, manifest())
    return folder


@pytest.mark.parametrize("where", ["initializer", "constant", "branch", "function"])
def test_the_weights_of_a_graph_are_files_of_the_bundle(tmp_path: Path, where: str) -> None:
    good = published(tmp_path / "good", **{"unet__model.onnx": graph("weights.data", where)})
    assert verify(good).passed
    (tmp_path / "evil.data").write_bytes(b"1" * 16)
    for place, location in enumerate(("../../evil.data", str(tmp_path / "evil.data"), "absent.data")):
        bad = published(tmp_path / f"bad{place}", **{"unet__model.onnx": graph(location, where)})
        (problem,) = verify(bad).problems
        assert problem.startswith("unet/model.onnx names ")
        assert problem.endswith("which is no file of the bundle")


@pytest.mark.parametrize("key", ["model", "plan"])
def test_an_engine_is_of_a_graph_of_the_bundle(tmp_path: Path, key: str) -> None:
    own = {"unet__model.onnx": graph("weights.data"), "engines__unet.plan": b"plan"}
    names = {"model": "unet/model.onnx", "plan": "engines/unet.plan"}
    assert verify(published(tmp_path / "good", **own, **{"engines__unet.json": json.dumps(names).encode()})).passed
    wrong = {**names, key: "../outside/model.onnx"}
    bad = published(tmp_path / "bad", **own, **{"engines__unet.json": json.dumps(wrong).encode()})
    assert verify(bad).problems == ("engines/unet.json names ../outside/model.onnx, which is no file of the bundle",)


def test_an_engine_is_of_no_graph_without_a_hash(tmp_path: Path) -> None:
    """Asked of the engine alone, since a whole bundle names what was added."""
    own = {"engines__unet.json": json.dumps({"model": "unet/other.onnx"}).encode()}
    bundle = published(tmp_path / "out", **own)
    assert verify(bundle, ["engines/unet.json"]).passed, "a graph that is not there is not opened"
    (bundle / "unet" / "other.onnx").write_bytes(graph("weights.data"))
    assert verify(bundle, ["engines/unet.json"]).problems == ("engines/unet.json names unet/other.onnx, which is no file of the bundle",)


def test_a_link_is_no_file_of_a_bundle_and_a_linked_bundle_is_one(tmp_path: Path) -> None:
    bundle = published(tmp_path / "out", **{"unet__model.onnx": graph("weights.data")})
    (tmp_path / "linked").symlink_to(bundle)
    assert verify(tmp_path / "linked").passed
    shutil.move(bundle / "unet", tmp_path / "elsewhere")
    (bundle / "unet").symlink_to(tmp_path / "elsewhere")
    assert "unet/model.onnx is a link" in verify(bundle).problems


@pytest.mark.parametrize("name", ["../x", "/etc/x", "unet/../../x", "C:/x", "unet\\x", "./x", "", "unet//x"])
def test_a_manifest_names_files_below_its_folder(tmp_path: Path, name: str) -> None:
    assert not inside(name)
    bundle = published(tmp_path / "out")
    content = json.loads((bundle / MANIFEST).read_text())
    del content["identity"]  # which is not that of other files
    (bundle / MANIFEST).write_text(json.dumps({**content, "files": {**content["files"], name: "0" * 64}}))
    with pytest.raises(BundleError, match="which is no file below"):
        open_bundle(bundle)


def test_names_below_are_inside() -> None:
    assert all(map(inside, ("x", "unet/model.onnx", "engines/a+b.json", "..x/y")))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda f: (f / "evil.so").write_bytes(b"evil"), "evil.so was added"),
        (lambda f: (f / "unet" / "weights.data").unlink(), "unet/weights.data is missing"),
    ],
)
def test_an_amendment_does_not_make_a_changed_bundle_a_good_one(tmp_path: Path, change: Callable[[Path], object], problem: str) -> None:
    bundle = published(tmp_path / "out")
    change(bundle)
    with pytest.raises(BundleError, match=problem):
        amend(bundle, open_bundle(bundle), lambda staged: None)
    assert not verify(bundle).passed


def test_what_an_amendment_did_not_write_keeps_its_hash_where_links_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on file systems without hard links, where files are copied."""

    def no_link(*_: object) -> None:
        raise OSError(1, "no links here")

    monkeypatch.setattr("os.link", no_link)
    bundle = published(tmp_path / "out")
    (bundle / "unet" / "weights.data").write_bytes(b"2" * 16)
    amend(bundle, open_bundle(bundle), lambda staged: (staged / "new").write_bytes(b"x") and None)
    assert verify(bundle).problems == ("unet/weights.data was changed",)


@pytest.mark.parametrize("content", [b"[]", b'{"model": ', b"\xff\xfe{", b'{"model": "unet/model.onnx", "size": ' + b"9" * 6000 + b"}"])
def test_an_engine_that_cannot_be_read_is_a_problem(tmp_path: Path, content: bytes) -> None:
    """What one reader passes over, another may open."""
    bundle = published(tmp_path / "out", **{"unet__model.onnx": graph("weights.data"), "engines__unet.json": content})
    (problem,) = verify(bundle).problems
    assert problem.startswith("engines/unet.json cannot be read")


def test_a_graph_that_cannot_be_read_is_a_problem(tmp_path: Path) -> None:
    bundle = published(tmp_path / "out", **{"unet__model.onnx": b"\xff\xff\xff"})
    (problem,) = verify(bundle).problems
    assert problem.startswith("unet/model.onnx cannot be read")


def test_a_pipe_is_no_file_of_a_bundle(tmp_path: Path) -> None:
    bundle = published(tmp_path / "out", **{"unet__model.onnx": graph("weights.data")})
    os.mkfifo(bundle / "added")
    assert verify(bundle).problems == ("added was added",)
    (bundle / "added").unlink()
    (bundle / "unet" / "weights.data").unlink()
    os.mkfifo(bundle / "unet" / "weights.data")
    assert "unet/weights.data is missing" in verify(bundle).problems


@pytest.mark.parametrize("where", ["training", "default"])
def test_weights_of_training_and_of_defaults_are_found(tmp_path: Path, where: str) -> None:
    model = onnx.ModelProto.FromString(graph("weights.data", "constant"))
    outer = onnx.ModelProto.FromString(graph("../../evil.data", "constant"))
    if where == "training":
        model.training_info.add().algorithm.CopyFrom(outer.graph)
    else:
        model.functions.add(name="f", domain="own").attribute_proto.append(outer.graph.node[0].attribute[0])
    bundle = published(tmp_path / "out", **{"unet__model.onnx": model.SerializeToString()})
    assert verify(bundle).problems == ("unet/model.onnx names ../evil.data, which is no file of the bundle",)

"""Sidecars of plans, and what a plan says of itself in its first bytes; plans are compiled by TensorRT-RTX, without a GPU."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import plans
import pytest

from nemo_edge.backends.tensorrt.plans import Header, open_plan_file, plans_of, read_header
from nemo_edge.system.errors import BundleError, InputError


def test_a_missing_or_foreign_sidecar_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        open_plan_file(tmp_path / "unet.json")
    (tmp_path / "unet.json").write_text("{}")
    with pytest.raises(BundleError, match="does not describe a plan"):
        open_plan_file(tmp_path / "unet.json")


@pytest.mark.parametrize(
    "targets",
    [(), ("SM75",), ("SM80",), ("SM86",), ("SM89",), ("SM120",), ("SM121",), ("SM86", "SM120")],
    ids=lambda t: "+".join(t) or "all",
)
def test_a_compiled_plan_names_version_size_and_targets(tmp_path: Path, targets: tuple[str, ...]) -> None:
    data = plans.compiled(*targets)
    version = importlib.metadata.version("tensorrt-rtx-cu13")
    header = read_header(plans.write(tmp_path, data, None))
    assert header == Header(
        flavour="tensorrt-rtx", version=version, size_bytes=len(data), targets=tuple(target.lower() for target in targets)
    )


def test_a_plan_of_tensorrt_names_its_version_where_trtexec_reads_it(tmp_path: Path) -> None:
    path = plans.write(tmp_path, plans.standard((10, 13, 3, 9)), None)
    assert read_header(path) == Header(flavour="tensorrt", version="10.13.3.9", size_bytes=4096)


def test_of_another_version_of_tensorrt_rtx_only_the_version_is_believed(tmp_path: Path) -> None:
    data = bytearray(plans.compiled("SM86"))
    data[25] = 8
    header = read_header(plans.write(tmp_path, bytes(data) + b"more", None))
    assert (header.version, header.targets) == ("1.8.1.116", None)


def test_targets_that_are_not_known_are_not_guessed(tmp_path: Path) -> None:
    data = bytearray(plans.compiled("SM86"))
    for bits in (0, 0x40, 0x84):
        data[32] = bits
        assert read_header(plans.write(tmp_path, bytes(data), None)).targets is None


@pytest.mark.parametrize("change", [lambda d: d[:-1], lambda d: d + b"\0", lambda d: d[:64]], ids=["cut", "longer", "header"])
def test_a_plan_that_was_not_copied_whole_is_refused(tmp_path: Path, change: object) -> None:
    data = plans.compiled("SM86")
    assert callable(change)
    with pytest.raises(BundleError, match=rf"is not whole, it has \d+ bytes, and {len(data)} by its header: fetch it again"):
        read_header(plans.write(tmp_path, change(data), None))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (plans.standard()[:63], "is cut short, it has 63 bytes: fetch it again"),
        (b"ftrt\1" + bytes(100), r"does not know \(serialization 1\): upgrade it"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
            "is a Git LFS pointer and not the engine: fetch that with `git lfs pull`",
        ),
        (b"\x08\x08onnx", "is not a TensorRT engine"),
        (b"", "is not a TensorRT engine"),
        (b"ptrt" + bytes(100), "is not a TensorRT engine"),
    ],
)
def test_what_is_no_whole_plan_is_refused_in_one_line(tmp_path: Path, data: bytes, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as refused:
        read_header(plans.write(tmp_path, data, None))
    assert "\n" not in str(refused.value)


def test_a_path_that_leads_to_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist: give the path of an engine"):
        read_header(tmp_path / "none.plan")
    with pytest.raises(InputError, match="cannot be read"):
        read_header(tmp_path)


def test_plans_are_found_by_the_onnx_files_they_were_made_of(tmp_path: Path) -> None:
    for place in ("unet", "vae_decoder", "unet_masked"):
        described = plans.sidecar(component=place, model=f"{place}/model.onnx", plan=f"engines/{place}.plan")
        plans.write(tmp_path / "engines", b"plan", described, f"{place}.plan")
    (tmp_path / "engines" / "unet.onnxruntime.cpu.json").write_text('{"backend": "onnxruntime"}')
    files = [path.relative_to(tmp_path).as_posix() for path in (tmp_path / "engines").iterdir()]
    found = plans_of(tmp_path, files, ["unet/model.onnx", "unet_masked/model.onnx"])
    assert {name: plan.plan for name, plan in found.items()} == {
        "engines/unet.json": "engines/unet.plan",
        "engines/unet_masked.json": "engines/unet_masked.plan",
    }
    without = [name for name in files if name != "engines/unet.plan"]
    assert list(plans_of(tmp_path, without, ["unet/model.onnx"])) == []


@pytest.mark.parametrize("content", ["[1, 2]", '"unet"', "{", "null"])
def test_a_sidecar_that_is_no_object_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines" / "unet.json").write_text(content)
    with pytest.raises(BundleError, match=r"unet\.json does not describe an engine: build the bundle again"):
        plans_of(tmp_path, ["engines/unet.json"], ["unet/model.onnx"])

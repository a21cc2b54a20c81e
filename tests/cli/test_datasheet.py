"""How engines look at 80 columns: tables are not cut, commands are copied whole, names are no markup."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import plans
import pytest

from nemo_edge.backends.tensorrt.fit import Fit
from nemo_edge.bundle.engines import Contents, Engine, Here, Verified, inspect, inspect_engine
from nemo_edge.cli import datasheet
from nemo_edge.measure._rates import Rates
from nemo_edge.measure.profile import Profile
from nemo_edge.system.environment import Gpu, machine

RTX_3090 = Gpu(name="NVIDIA RTX 3090", driver="580.95.05", memory_mib=24564, compute_capability="8.6")
HERE = Here((RTX_3090,), {"tensorrt-rtx-cu13": "1.7.1.116"}, "Linux")


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def shown(capsys: pytest.CaptureFixture[str], show: Any, *values: Any) -> str:
    show(*values)
    out = capsys.readouterr().out
    assert all(len(line) <= 80 for line in out.splitlines() if not line.startswith(("  ", "/"))), out
    return str(out)


def engine(folder: Path, data: bytes, described: Any, name: str = "unet.plan") -> Engine:
    return inspect_engine(plans.write(folder, data, described, name), HERE)


def test_an_engine_with_its_sidecar(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = shown(capsys, datasheet.show, engine(tmp_path, plans.compiled("SM86"), plans.sidecar(targets=("sm86",))))
    rows = [" ".join(line.split()) for line in out.splitlines()]
    for row in (
        "built by TensorRT-RTX 1.7.1.116",
        "for sm86",
        "system Linux and Windows",
        "component unet, fp16, from unet/model.onnx",
        "settings cuda_graphs = yes, kernel_specialization = LAZY",
        "profile 1 of 1",
        "sample float16 2×4×64×64 2×4×64×64 8×4×96×96",
        "timestep float16 1",
        "out_sample float16 batch×4×height×width",
        "runs here: TensorRT-RTX 1.7.1.116 and NVIDIA RTX 3090 (sm86)",
    ):
        assert row in rows


def test_an_engine_of_tensorrt_says_where_it_was_built_and_why_it_does_not_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    described = plans.standard_sidecar(
        hardware_compatibility="SAME_COMPUTE_CAPABILITY", refittable=("a", "b"), settings={"pool": None, "level": 3, "x": False}
    )
    out = shown(capsys, datasheet.show, engine(tmp_path, plans.standard(), described))
    words = " ".join(out.split())
    assert "built on NVIDIA H100, for the same compute capability" in words
    assert "settings pool = none, level = 3, x = no" in words
    assert "refittable 2 weights" in words
    assert "does not run here: built for TensorRT 11.4.0.106 and sm90; this machine has no TensorRT and sm86" in words
    assert "\n  `nemo-edge build` on this machine\n" in out


def test_an_engine_without_a_sidecar_says_so(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = shown(capsys, datasheet.show, engine(tmp_path, plans.standard(), None, "x[bold]y.plan"))
    assert "no sidecar x[bold]y.json beside it: only what its header says is known" in out
    assert "x[bold]y.plan" in out.splitlines()[0]


def test_names_of_tensors_are_no_markup(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    described = plans.sidecar(outputs={"a[red]b[/red]": {"dtype": "float16", "dims": ("[b]", 4)}}, profiles=({}, {}))
    out = shown(capsys, datasheet.show, engine(tmp_path, plans.compiled(), described))
    assert "a[red]b[/red]" in out
    assert "[b]×4" in out
    assert "profile 2 of 2" in out


def test_the_engines_of_a_bundle_have_a_line_each_and_a_reason_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    data, every = plans.compiled("SM75", "SM80", "SM86", "SM89", "SM120", "SM121"), ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121")
    found = [engine(tmp_path, data, plans.sidecar(targets=every))]
    found += [engine(tmp_path, plans.standard(), plans.standard_sidecar(component=c), f"{c}.plan") for c in ("vae_decoder", "text_encoder")]
    found += [Engine(path="engines/bad.plan", header=None, sidecar=None, fit=Fit(runs=False, reason="engines/bad.plan is cut short"))]
    found += [engine(tmp_path, plans.standard(), None, "bare.plan"), engine(tmp_path, plans.compiled(), None, "portable.plan")]
    out = shown(capsys, datasheet.show_verified, Verified(bundle="b", files=9, problems=(), engines=tuple(found)))
    assert out.splitlines()[0] == "b: 9 files, all as the manifest says"
    assert out.count("built for TensorRT 11.4.0.106 and sm90") == 1
    assert "vae_decoder, text_encoder: built for" in out
    assert "bad.plan: engines/bad.plan is cut short" in out
    assert "portable" in out
    for target in every:
        assert target in out


def test_a_bundle_without_engines_says_nothing_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    out = shown(capsys, datasheet.show_verified, Verified(bundle="b", files=3, problems=("x was changed",)))
    assert out.splitlines() == ["x was changed", "b: not the bundle that was built: build it again"]


def test_a_bundle_says_what_runs_its_onnx_files(capsys: pytest.CaptureFixture[str], tiny_bundle: Path) -> None:
    found = inspect(tiny_bundle)
    assert isinstance(found, Contents)
    out = shown(capsys, datasheet.show, found)
    rows = [" ".join(line.split()) for line in out.splitlines()]
    assert any(row.startswith("unet_masked/model.onnx ONNX Runtime ") and row.endswith(" cpu – yes") for row in rows)


@pytest.mark.parametrize(
    ("gflops", "integers", "said"),
    [
        (None, None, "which counts the operations, is not installed"),
        (2.0, 0.9, "90% of the products are of integers, whose rate"),
    ],
)
def test_a_profile_without_a_best_time_says_why(
    capsys: pytest.CaptureFixture[str], gflops: float | None, integers: float | None, said: str
) -> None:
    found = Profile(
        machine=machine(),
        component="unet",
        backend="onnxruntime",
        precision="fp32",
        threads=1,
        shapes={},
        latency_ms=1.0,
        rows=(),
        gflops=gflops,
        integers=integers,
        weights_mb=1.0,
        rates=Rates(gflops=100, gbytes=10),
        limit_ms=None,
    )
    assert said in " ".join(shown(capsys, datasheet.show_profile, found).split())

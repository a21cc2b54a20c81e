"""Engines of a bundle, or alone: told without opening one, hashed before anything is said of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import plans
import pytest

from nemo_edge.bundle import engines
from nemo_edge.bundle.engines import Contents, Engine, Here, Session, inspect, inspect_engine, verify
from nemo_edge.bundle.manifest import Manifest, open_bundle, publish, staging
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.system.environment import Gpu, machine
from nemo_edge.system.errors import BundleError, InputError

RTX = "engines/unet.tensorrt-rtx.sm86.plan"
STANDARD = "engines/unet.tensorrt.sm90.plan"
GPU = Gpu(name="NVIDIA RTX 3090", driver="580.95.05", memory_mib=24564, compute_capability="8.6")
HERE = Here((GPU,), {"tensorrt-rtx-cu13": "1.7.1.116"}, "Linux")


def bundle_with_engines(folder: Path) -> Path:
    values = {"name": "x", "family": "StableDiffusionPipeline", "key": "k", "variants": ("baked",), "checkpoint": {}, "prompts": {}}
    values |= {"recipe": {}, "versions": {}, "machine": machine(), "created": "2026-01-02T03:04:05+00:00", "neurons_hash": ""}
    manifest = Manifest.model_validate({**values, "threshold": 0.5, "gates": (), "passed": True, "files": {}})
    with staging(folder) as staged:
        plans.write(staged / "engines", plans.compiled("SM86"), plans.sidecar(targets=("sm86",), plan=RTX), Path(RTX).name)
        plans.write(staged / "engines", plans.standard(), plans.standard_sidecar(plan=STANDARD), Path(STANDARD).name)
        publish(staged, folder, manifest)
    return folder


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle with an engine for this machine, which is made to have an RTX 3090, and one for an H100."""
    monkeypatch.setattr(engines.Here, "look", lambda: HERE)
    return bundle_with_engines(tmp_path / "bundle")


def test_an_engine_is_found_by_its_own_path_and_by_its_sidecars(bundle: Path) -> None:
    by_plan = inspect_engine(bundle / RTX, HERE)
    assert by_plan == inspect_engine((bundle / RTX).with_suffix(".json"), HERE)
    assert (by_plan.path, by_plan.fit.runs) == (str(bundle / RTX), True)
    assert by_plan.header is not None
    assert by_plan.sidecar is not None
    assert by_plan.header.size_bytes == by_plan.sidecar.size_bytes


def test_an_engine_without_a_sidecar_is_told_by_its_header(tmp_path: Path) -> None:
    found = inspect_engine(plans.write(tmp_path, plans.compiled("SM89"), None, "x.engine"), HERE)
    assert (found.sidecar, found.fit.runs, found.fit.reason) == (None, False, "built for sm89; this machine has sm86")


def test_a_plan_that_was_exchanged_for_another_of_the_same_size_is_noticed(tmp_path: Path) -> None:
    path = plans.write(tmp_path, plans.compiled("SM86"), plans.sidecar(targets=("sm89",)))
    assert "it is for sm86, not sm89" in inspect_engine(path, HERE).fit.reason


def test_a_sidecar_without_a_plan_and_a_foreign_json_are_refused(bundle: Path, tmp_path: Path) -> None:
    (bundle / RTX).unlink()
    with pytest.raises(InputError, match=r"unet.tensorrt-rtx.sm86.plan does not exist, which unet.tensorrt-rtx.sm86.json describes"):
        inspect(bundle / RTX.replace(".plan", ".json"))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BundleError, match="does not describe a plan"):
        inspect(tmp_path / "config.json")


def test_the_engines_of_a_bundle_are_listed_and_one_that_is_damaged_hides_none(bundle: Path) -> None:
    found = inspect(bundle)
    assert isinstance(found, Contents)
    assert {Path(e.path).name: e.fit.runs for e in found.engines} == {Path(RTX).name: True, Path(STANDARD).name: False}
    (bundle / RTX).write_bytes(b"vtrt")
    found = inspect(bundle)
    assert isinstance(found, Contents)
    damaged, other = found.engines
    assert (damaged.header, damaged.fit.runs) == (None, False)
    assert "is cut short" in damaged.fit.reason
    assert other.sidecar is not None


def test_what_is_no_engine_and_no_bundle_is_left_to_others(tmp_path: Path) -> None:
    assert inspect(tmp_path) is None
    assert inspect(tmp_path / "owner" / "name") is None
    (tmp_path / "folder.plan").mkdir()
    assert inspect(tmp_path / "folder.plan") is None


def test_a_whole_bundle_is_verified_and_says_which_engines_run(bundle: Path) -> None:
    found = verify(bundle)
    assert (found.passed, found.files, [e.fit.runs for e in found.engines]) == (True, 4, [True, False])
    (bundle / "more.plan").write_bytes(b"")
    found = verify(bundle)
    assert (found.problems, found.engines) == (("more.plan was added",), ())


@pytest.mark.parametrize("path", [RTX, RTX.replace(".plan", ".json"), f"engines/../{RTX}"])
def test_an_engine_is_compared_with_the_manifest_of_its_bundle(bundle: Path, path: str) -> None:
    found = verify(bundle / path)
    assert (found.passed, found.files, [e.fit.runs for e in found.engines]) == (True, 2, [True])
    data = bytearray((bundle / RTX).read_bytes())
    data[-1] ^= 1
    (bundle / RTX).write_bytes(data)
    found = verify(bundle / path)
    assert (found.problems, found.engines) == ((f"{RTX} was changed",), ())
    assert verify(bundle / STANDARD).passed


def test_a_sidecar_that_was_changed_or_taken_away_is_a_problem_too(bundle: Path) -> None:
    described = (bundle / RTX).with_suffix(".json")
    described.write_text(described.read_text().replace("sm86", "sm89"))
    assert verify(bundle / RTX).problems == (f"{RTX.replace('.plan', '.json')} was changed",)
    described.unlink()
    assert verify(bundle / RTX).problems == (f"{RTX.replace('.plan', '.json')} is missing",)


def test_an_engine_that_the_manifest_does_not_name_is_a_problem(bundle: Path, tmp_path: Path) -> None:
    plans.write(bundle / "engines", plans.standard(), None, "vae.plan")
    assert verify(bundle / "engines" / "vae.plan").problems == ("engines/vae.plan was added",)
    (tmp_path / "linked").symlink_to(bundle / "engines")
    assert verify(tmp_path / "linked" / Path(RTX).name).passed
    (tmp_path / "unet.plan").symlink_to(bundle / RTX)
    with pytest.raises(InputError, match="is not in a bundle"):
        verify(tmp_path / "unet.plan")


def test_an_engine_outside_of_a_bundle_has_no_hash(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is not in a bundle, so that no manifest has its hash: see `nemo-edge inspect"):
        verify(plans.write(tmp_path, plans.standard(), None))


def test_this_machine_is_looked_at_only_for_engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(inspect(bundle_with_engines(tmp_path / "a")), Contents)
    monkeypatch.setattr(engines.Here, "look", lambda: pytest.fail("looked"))
    assert engines._engines(tmp_path, ["unet/model.onnx"]) == ()


def test_nothing_of_tensorrt_is_imported(tmp_path: Path) -> None:
    path = plans.write(tmp_path, plans.compiled("SM86"), plans.sidecar(targets=("sm86",)))
    code = f"import sys, pathlib; from nemo_edge.bundle.engines import inspect; inspect(pathlib.Path({str(path)!r}));"
    code += "print([m for m in sys.modules if m.split('_')[0] in ('tensorrt', 'torch', 'onnx', 'numpy')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_engine_is_one_json_object_and_back(bundle: Path) -> None:
    found = inspect(bundle / RTX)
    assert isinstance(found, Engine)
    assert Engine.model_validate_json(found.model_dump_json()) == found


def test_how_the_onnx_files_of_a_bundle_are_run_is_told(tiny_bundle: Path) -> None:
    found = inspect(tiny_bundle)
    assert isinstance(found, Contents)
    assert [each.component for each in found.sessions] == ["text_encoder", "unet", "unet_masked", "vae_decoder"]
    assert {(each.backend, each.device, each.precision) for each in found.sessions} == {("onnxruntime", "cpu", None)}
    assert all((tiny_bundle / each.model).is_file() for each in found.sessions)


def test_a_file_of_openvino_says_what_it_computes_in(tmp_path: Path) -> None:
    told = {
        "component": "unet",
        "backend": "openvino",
        "device": "cpu",
        "precision": "bf16",
        "version": "2026.4",
        "model": "unet/model.onnx",
    }
    session = Session.model_validate({**told, "schema_version": 1, "hardware": "a CPU", "inputs": {}, "outputs": {}})
    assert session.model_dump() == {**told, "runs": None}


def test_a_bundle_says_what_it_is(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny_bundle.parent)
    found, neurons = inspect(Path(tiny_bundle.name)), NeuronSet.load(tiny_bundle / "neurons.json")
    assert isinstance(found, Contents)
    assert found.silenced == {layer.name: len(chosen) for layer, chosen in neurons.items()}
    assert (found.model, found.examined, found.identity) == ("model", 2, open_bundle(tiny_bundle).identity)
    assert found.size_bytes == sum(path.stat().st_size for path in tiny_bundle.rglob("*") if path.is_file())
    assert {each.runs for each in found.sessions} == {True}


def test_a_runtime_that_is_not_installed_runs_nothing(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for versions, runs in (({"numpy": "2.4"}, False), ({"onnxruntime-gpu": "1.31"}, True), ({"onnxruntime": "1.31"}, True)):
        monkeypatch.setattr(engines, "installed", lambda versions=versions: versions)
        found = inspect(tiny_bundle)
        assert isinstance(found, Contents)
        assert {each.runs for each in found.sessions} == {runs}


@pytest.mark.parametrize(
    ("recipe", "model"),
    [
        ({}, ""),
        ({"checkpoint": "x"}, ""),
        ({"checkpoint": {"path": "owner/name@main"}}, "owner/name@main"),
        ({"checkpoint": {"path": "model.safetensors"}}, "model.safetensors"),
        ({"checkpoint": {"path": "../../models/sd15"}}, "models/sd15"),
        ({"checkpoint": {"path": "/models/sd15"}}, "/models/sd15"),
    ],
)
def test_the_model_is_named_as_it_is_seen_from_here(recipe: dict[str, object], model: str) -> None:
    assert engines._model(Path("out/a"), recipe) == model


def test_what_is_damaged_is_not_known_and_hides_nothing(bundle: Path) -> None:
    (bundle / "neurons.json").write_text("{}")
    (bundle / "localization.jsonl").mkdir()
    found = inspect(bundle)
    assert isinstance(found, Contents)
    assert (found.silenced, found.examined, len(found.engines)) == (None, None, 2)

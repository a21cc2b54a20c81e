"""Another neuron set in a finished bundle: to the bit what an export with it gives, whole at every moment, and not to be shipped."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import plans
import pytest
from elsewhere import elsewhere
from plans import sidecar

from nemo_edge.backends.onnxruntime import open_runner
from nemo_edge.bundle.manifest import MANIFEST, amend, open_bundle, open_verified, verify
from nemo_edge.export.production import export_folder
from nemo_edge.graph import valueweights
from nemo_edge.graph.onnxfile import open_graph
from nemo_edge.graph.valueweights import SILENCED_ROWS, VALUE_DATA, open_value_weights
from nemo_edge.model.checkpoint import open_checkpoint
from nemo_edge.model.neurons import NeuronSet, OfficialRow, write_official_csv
from nemo_edge.recipe.recipe import load_recipe
from nemo_edge.recipe.settings import ExportSettings, GateSettings
from nemo_edge.recipe.targets import TensorRtRtxSettings
from nemo_edge.release.build import plan
from nemo_edge.release.rebake import rebake
from nemo_edge.release.review import judge_again, report_again, time_again
from nemo_edge.system.errors import BundleError, InputError
from nemo_edge.system.files import sha256_file
from nemo_edge.system.outputs import lock
from nemo_edge.system.progress import Progress

OTHERS = [[1, 6], [0, 2, 3]]
"""Some that the tiny bundle silences already, some that it does not."""


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_bundle, tmp_path / "bundle")


@pytest.fixture
def saved(tiny_bundle: Path, tmp_path: Path) -> Callable[..., Path]:
    """A set of the bundle's layers in a file."""

    def save(lists: list[list[int]], name: str = "new.json") -> Path:
        NeuronSet.from_lists(NeuronSet.load(tiny_bundle / "neurons.json").layers, lists).save(tmp_path / name)
        return tmp_path / name

    return save


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def exports(
    request: pytest.FixtureRequest, tiny_recipe: Path, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Exports with the bundle's own set, with the others, and with none. In fp16 the weights are in the graph itself."""
    source, folder = load_recipe(tiny_recipe).checkpoint, tmp_path_factory.mktemp("exports")
    own = NeuronSet.load(tiny_bundle / "neurons.json")
    settings = ExportSettings(variants=("baked",), dtype=request.param)
    sets = {"own": own, "others": NeuronSet.from_lists(own.layers, OTHERS), "none": NeuronSet.empty(own.layers)}
    for name, chosen in sets.items():
        chosen.save(folder / f"{name}.json")
        export_folder(source, settings, folder / f"{name}.json", "paper", folder / name, Progress())
    return {name: folder / name for name in sets}


def holding(bundle: Path, exported: Path) -> Path:
    """The bundle with a baked UNet that was exported."""

    def change(staged: Path) -> None:
        shutil.rmtree(staged / "unet")
        shutil.copytree(exported / "unet", staged / "unet")
        (staged / SILENCED_ROWS).unlink()
        shutil.copyfile(exported / SILENCED_ROWS, staged / SILENCED_ROWS)

    amend(bundle, open_bundle(bundle), change)
    return bundle


def hashes(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): sha256_file(p) for p in folder.rglob("*") if p.is_file()}


def answer(unet: Path) -> bytes:
    rng, half = np.random.default_rng(0), np.dtype(np.float32)
    with open_runner(unet / "model.onnx") as runner:
        feed = {
            "sample": rng.standard_normal((2, 4, 16, 16)),
            "timestep": np.array([961, 1]),
            "encoder_hidden_states": rng.standard_normal((2, 16, 16)),
        }
        return runner({name: value.astype(half) for name, value in feed.items()})["out_sample"].tobytes()


def without_rows(bundle: Path, variants: tuple[str, ...] = ("baked", "masked")) -> None:
    def change(staged: Path) -> None:
        (staged / SILENCED_ROWS).unlink()
        if "masked" not in variants:
            shutil.rmtree(staged / "unet_masked")

    amend(bundle, open_bundle(bundle).model_copy(update={"variants": variants}), change)


def test_a_new_set_is_what_an_export_with_it_gives(bundle: Path, exports: dict[str, Path], saved: Callable[..., Path]) -> None:
    holding(bundle, exports["own"])
    before = hashes(bundle)
    for name, lists in (("others", OTHERS), ("none", [[], []])):
        found = rebake(bundle, saved(lists))
        assert (found.changed, found.measured, found.passed) == (True, False, False)
        assert open_verified(bundle).neurons_hash == NeuronSet.load(bundle / "neurons.json").content_hash()
        layers = NeuronSet.load(bundle / "neurons.json").layers
        ours, fresh = (open_value_weights(open_graph(f / "unet/model.onnx"), layers).values for f in (bundle, exports[name]))
        assert {key: value.tobytes() for key, value in ours.items()} == {key: value.tobytes() for key, value in fresh.items()}
        for data in ("model.onnx.data", *([VALUE_DATA] if (exports[name] / "unet" / VALUE_DATA).is_file() else [])):
            assert sha256_file(bundle / "unet" / data) == sha256_file(exports[name] / "unet" / data)
        assert sha256_file(bundle / SILENCED_ROWS) == sha256_file(exports[name] / SILENCED_ROWS)
        facts = {entry.key: entry.value for entry in open_graph(bundle / "unet/model.onnx").model.metadata_props}
        assert facts["nemo_edge.neurons"] == open_bundle(bundle).neurons_hash
    rebake(bundle, saved([list(chosen) for chosen in NeuronSet.load(exports_neurons(bundle, before)).indices]))
    after = hashes(bundle)
    assert {name for name in after if after[name] != before[name]} == {MANIFEST}


def exports_neurons(bundle: Path, before: dict[str, str]) -> Path:
    """The former set, which lies beside the copied bundle's origin."""
    path = bundle.parent / "former.json"
    assert sha256_file(path) == before["neurons.json"]
    return path


@pytest.fixture(autouse=True)
def former(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copyfile(tiny_bundle / "neurons.json", tmp_path / "former.json"))


def test_the_engine_answers_as_a_fresh_export_does(bundle: Path, exports: dict[str, Path], saved: Callable[..., Path]) -> None:
    if not (exports["own"] / "unet" / VALUE_DATA).is_file():
        pytest.skip("fp16 feeds are of another type; its bytes are compared above")
    holding(bundle, exports["own"])
    first = answer(bundle / "unet")
    rebake(bundle, saved(OTHERS))
    assert answer(bundle / "unet") == answer(exports["others"] / "unet") != first


def test_no_neurons_are_the_checkpoint_itself(bundle: Path, tiny_recipe: Path, saved: Callable[..., Path]) -> None:
    rebake(bundle, saved([[], []]))
    layers = NeuronSet.load(bundle / "neurons.json").layers
    unet = open_checkpoint(load_recipe(tiny_recipe).checkpoint.path).unet
    for key, value in open_value_weights(open_graph(bundle / "unet/model.onnx"), layers).values.items():
        assert value.tobytes() == unet.get_parameter(key).detach().numpy().tobytes()


def test_only_the_value_weights_file_is_written_anew(bundle: Path, saved: Callable[..., Path]) -> None:
    before = {p.relative_to(bundle).as_posix(): p.stat().st_ino for p in bundle.rglob("*") if p.is_file()}
    rebake(bundle, saved(OTHERS))
    after = {p.relative_to(bundle).as_posix(): p.stat().st_ino for p in bundle.rglob("*") if p.is_file()}
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {MANIFEST, "neurons.json", "policies.json", SILENCED_ROWS, f"unet/{VALUE_DATA}", "unet/model.onnx"}
    assert {p.stat().st_nlink for p in bundle.rglob("*") if p.is_file()} == {1}


def test_what_was_measured_is_gone_and_the_bundle_is_not_to_be_shipped(bundle: Path, tiny_recipe: Path, saved: Callable[..., Path]) -> None:
    before = open_bundle(bundle)
    found = rebake(bundle, saved(OTHERS))
    after = open_verified(bundle)
    gone = before.files.keys() - after.files.keys()
    assert all(name == "measurement.json" or name.startswith("report/") for name in gone)
    assert not (bundle / "report").exists()
    (gate,) = after.gates
    assert (gate.name, gate.passed, after.passed, after.measured) == ("measured", False, False, False)
    assert "--measure" in gate.detail
    assert (found.neurons, found.silenced, found.restored) == (5, *counts(before.neurons_hash, bundle))
    recipe = load_recipe(tiny_recipe).model_copy(update={"output": bundle})
    assert not plan(recipe).up_to_date
    for again in (lambda: report_again(bundle), lambda: judge_again(bundle, GateSettings(), write=True), lambda: time_again(bundle, None)):
        with pytest.raises(BundleError, match=r"was changed since it was measured: measure it again with `nemo-edge rebake .* --measure`"):
            again()


def counts(_: str, bundle: Path) -> tuple[int, int]:
    former, now = NeuronSet.load(bundle.parent / "former.json"), NeuronSet.load(bundle / "neurons.json")
    return len(now - former), len(former - now)


def test_the_same_set_changes_nothing(bundle: Path, former: Path) -> None:
    before = hashes(bundle)
    found = rebake(bundle, former)
    assert (found.changed, found.silenced, found.restored, found.measured) == (False, 0, 0, True)
    assert hashes(bundle) == before


def test_the_official_file_gives_the_union_of_its_rows(bundle: Path, tmp_path: Path) -> None:
    rows = [
        OfficialRow(caption="a", url="u", initial=[[], []], initial_score=0.1, refined=refined, refined_score=0.1)
        for refined in ([[1], [0]], [[6, 1], [3, 2]])
    ]
    write_official_csv(tmp_path / "found.csv", rows)
    rebake(bundle, tmp_path / "found.csv")
    assert [list(chosen) for chosen in NeuronSet.load(bundle / "neurons.json").indices] == OTHERS


def test_a_set_of_other_layers_is_refused(bundle: Path, tmp_path: Path, former: Path) -> None:
    content = json.loads(former.read_text())
    content["layers"][0]["width"] = 16
    (tmp_path / "other.json").write_text(json.dumps(content))
    before = hashes(bundle)
    with pytest.raises(InputError, match="other value layers"):
        rebake(bundle, tmp_path / "other.json")
    assert hashes(bundle) == before


NOT_READ = ("text_encoder/model.onnx.data", "unet_masked/model.onnx.data", "engines/unet.onnxruntime.cpu.json", "measurement.json")
"""Files that a rebake has no need of, or that it takes away."""


@pytest.mark.parametrize("name", ["neurons.json", SILENCED_ROWS, f"unet/{VALUE_DATA}", "unet/model.onnx", *NOT_READ])
def test_a_file_that_was_changed_is_refused(bundle: Path, saved: Callable[..., Path], tmp_path: Path, name: str) -> None:
    content = bytearray((bundle / name).read_bytes())
    content[-1] ^= 1
    (bundle / name).write_bytes(content)
    before = hashes(bundle)
    with pytest.raises(BundleError, match=r"was changed since it was built|is not baked with the neurons"):
        rebake(bundle, saved(OTHERS))
    assert hashes(bundle) == before
    assert not [p.name for p in tmp_path.iterdir() if p.name.startswith(".bundle")]


@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("name", ["added", "missing"])
def test_a_file_too_many_or_too_few_is_refused(bundle: Path, saved: Callable[..., Path], former: Path, name: str, same: bool) -> None:
    if name == "added":
        (bundle / "report" / "added.txt").write_text("")
    else:
        (bundle / "text_encoder" / "config.json").unlink()
    before = hashes(bundle)
    with pytest.raises(BundleError, match=rf"was changed since it was built \(.* (was|is) {name}\)"):
        rebake(bundle, former if same else saved(OTHERS))
    assert hashes(bundle) == before


def test_rows_come_from_the_masked_graph_where_the_bundle_keeps_none(bundle: Path, saved: Callable[..., Path], former: Path) -> None:
    before = hashes(bundle)
    without_rows(bundle)
    rebake(bundle, saved([[], [0]]))
    assert SILENCED_ROWS not in open_verified(bundle).files
    rebake(bundle, former)
    assert hashes(bundle / "unet") == {name.removeprefix("unet/"): h for name, h in before.items() if name.startswith("unet/")}


def test_rows_come_from_the_checkpoint_where_nothing_else_has_them(
    bundle: Path, tiny_recipe: Path, toy_folder: Path, saved: Callable[..., Path]
) -> None:
    without_rows(bundle, ("baked",))
    before = hashes(bundle)
    with pytest.raises(InputError, match=r"does not keep the weights of the \d+ neurons that come back: pass --checkpoint"):
        rebake(bundle, saved(OTHERS))
    with pytest.raises(InputError, match="is not the checkpoint that this bundle was made from"):
        rebake(bundle, saved(OTHERS), checkpoint=str(toy_folder))
    assert hashes(bundle) == before
    own = NeuronSet.load(bundle / "neurons.json").indices
    more = [[*one, next(i for i in range(8) if i not in one)] if len(one) < 8 else list(one) for one in own]
    rebake(bundle, saved(more, "more.json"))  # nothing comes back
    rebake(bundle, saved([[], []]), checkpoint=str(load_recipe(tiny_recipe).checkpoint.path))
    test_no_neurons_are_the_checkpoint_itself(bundle, tiny_recipe, saved)


def test_a_masked_bundle_gets_another_default_mask_alone(bundle: Path, saved: Callable[..., Path]) -> None:
    def change(staged: Path) -> None:
        shutil.rmtree(staged / "unet")
        (staged / "engines" / "unet.onnxruntime.cpu.json").unlink()

    amend(bundle, open_bundle(bundle).model_copy(update={"variants": ("masked",)}), change)
    before = hashes(bundle)
    rebake(bundle, saved(OTHERS))
    after = hashes(bundle)
    assert {name for name in after if after[name] != before[name]} == {MANIFEST, "neurons.json", "policies.json"}
    assert verify(bundle).passed


def test_engines_of_the_former_weights_are_taken_out(bundle: Path, saved: Callable[..., Path]) -> None:
    def change(staged: Path) -> None:
        for place in ("unet", "unet_masked"):
            plan_path = f"engines/{place}.tensorrt-rtx.portable.plan"
            (staged / plan_path).write_bytes(b"plan")
            described = sidecar(component=place, plan=plan_path, model=f"{place}/model.onnx")
            (staged / plan_path).with_suffix(".json").write_text(described.model_dump_json())

    amend(bundle, open_bundle(bundle), change)
    found = rebake(bundle, saved(OTHERS))
    assert found.removed == ("engines/unet.tensorrt-rtx.portable.plan",)
    left = {p.name for p in (bundle / "engines").iterdir() if "rtx" in p.name}
    assert left == {"unet_masked.tensorrt-rtx.portable.plan", "unet_masked.tensorrt-rtx.portable.json"}
    assert verify(bundle).passed


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed: pip install 'nemo-edge[rtx]'")
def test_weights_that_were_changed_are_not_compiled(bundle: Path, saved: Callable[..., Path], tmp_path: Path) -> None:
    name = "engines/unet.tensorrt-rtx.portable.engine"

    def change(staged: Path) -> None:
        described = sidecar(component="unet", plan=name, model="unet/model.onnx")
        plans.write(staged, b"engine", described, name)

    manifest = open_bundle(bundle)
    recipe = {**manifest.recipe, "tensorrt_rtx": TensorRtRtxSettings().model_dump(mode="json")}
    amend(bundle, manifest.model_copy(update={"recipe": recipe}), change)
    data = bundle / "unet" / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-1] + bytes([data.read_bytes()[-1] ^ 1]))
    before = hashes(bundle)
    with pytest.raises(BundleError, match=r"was changed since it was built \(unet/model\.onnx\.data was changed\)"):
        rebake(bundle, saved(OTHERS))
    assert hashes(bundle) == before
    assert not [p.name for p in tmp_path.iterdir() if p.name.startswith(".bundle")]


def test_a_full_disk_is_told_before_or_while_it_fills(
    bundle: Path, saved: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = hashes(bundle)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))  # type: ignore[attr-defined]
    with pytest.raises(InputError, match=r"needs .* GB beside .*, where 0\.0 GB are free"):
        rebake(bundle, saved(OTHERS))
    monkeypatch.undo()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "unet")

    monkeypatch.setattr(valueweights, "_copy", full)
    with pytest.raises(InputError, match="the disk is full"):
        rebake(bundle, saved(OTHERS))
    assert hashes(bundle) == before
    assert not [p.name for p in tmp_path.iterdir() if p.name.startswith(".bundle")]


KILLED = """
import os, signal, sys
from pathlib import Path
from nemo_edge.release import rebake
from nemo_edge.graph import valueweights
from nemo_edge.system import outputs
def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[3] == "after":
    exchange = outputs._exchange
    outputs._exchange = lambda *paths: exchange(*paths) and die()
elif sys.argv[3] == "midway":
    outputs._exchange = die
else:
    rebake.save_rows = die
rebake.rebake(Path(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.mark.parametrize("when", ["early", "midway", "after"])
def test_a_kill_leaves_one_bundle_or_the_other(bundle: Path, saved: Callable[..., Path], when: str) -> None:
    before = open_bundle(bundle)
    done = subprocess.run([sys.executable, "-c", KILLED, str(bundle), str(saved(OTHERS)), when], check=False)
    assert done.returncode == -signal.SIGKILL
    assert verify(bundle).passed
    assert (open_bundle(bundle) == before) == (when != "after")
    answer(bundle / "unet")  # whatever is left beside it, the engine opens
    rebake(bundle, saved([[2], [2]]))
    assert verify(bundle).passed


def test_a_build_of_the_same_bundle_is_waited_for(bundle: Path, saved: Callable[..., Path]) -> None:
    with lock(bundle), pytest.raises(InputError, match="another command is writing to"):
        elsewhere(lambda: rebake(bundle, saved(OTHERS)))

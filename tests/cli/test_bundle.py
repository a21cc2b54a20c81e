"""The commands about finished bundles: in their place in the help, and with the backend that is asked for."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import plans
import pytest
from PIL import Image

from cli import test_main as test_cli
from cli.test_main import Ran, Run, assert_refused, assert_refused_last_line, recipe_in
from nemo_edge.bundle.manifest import amend, open_bundle, verify
from nemo_edge.system.environment import gpus

run, prompts, model = test_cli.run, test_cli.prompts, test_cli.model
COMMANDS = [
    "init",
    "build",
    "harden",
    "export",
    "rebake",
    "quantize",
    "compile",
    "calibrate",
    "detect",
    "localize",
    "generate",
    "bench",
    "compare",
    "inspect",
    "verify",
    "sign",
    "revoke",
    "attack",
    "gate",
    "report",
    "audit",
    "ship",
    "kserve",
    "doctor",
    "clean",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_fits_80_columns(run: Run, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = run(command, "--help")
    assert (shown.code, shown.err) == (0, "")
    assert max(map(len, shown.out.splitlines())) <= 80
    assert f"nemo-edge {command}" in shown.out.partition("Example:")[2]


def test_generate_draws_with_the_backend_that_is_asked_for(run: Run, tmp_path: Path, tiny_bundle: Path) -> None:
    own, asked = tmp_path / "own.png", tmp_path / "asked.png"
    assert run("generate", tiny_bundle, "a red pig", "--steps", 1, "-o", own).code == 0
    assert run("generate", tiny_bundle, "a red pig", "--steps", 1, "-o", asked, "--backend", "onnxruntime").code == 0
    assert own.read_bytes() == asked.read_bytes()


@pytest.mark.parametrize("options", [(), ("--unmitigated",), ("--variant", "masked")], ids=["baked", "unmitigated", "masked"])
def test_openvino_draws_the_picture_of_onnx_runtime(run: Run, tmp_path: Path, tiny_bundle: Path, options: tuple[str, ...]) -> None:
    own, asked, command = tmp_path / "own.png", tmp_path / "asked.png", ("generate", tiny_bundle, "a red pig", "--steps", 2, *options)
    assert run(*command, "-o", own).code == 0
    assert run(*command, "-o", asked, "--backend", "openvino").code == 0
    first, second = (np.asarray(Image.open(path), int) for path in (own, asked))
    assert np.abs(first - second).max() <= 1


@pytest.mark.parametrize(
    ("backend", "reason"),
    [
        ("trt", "--backend trt: input should be 'onnxruntime', 'openvino', 'tensorrt' or 'tensorrt-rtx'"),
        ("tensorrt", "has no TensorRT engine of text_encoder: build it with [tensorrt] in the recipe"),
    ],
)
def test_a_backend_that_a_bundle_has_no_engines_for_is_refused(
    run: Run, tmp_path: Path, tiny_bundle: Path, backend: str, reason: str
) -> None:
    assert_refused(run("generate", tiny_bundle, "a red pig", "-o", tmp_path / "p.png", "--backend", backend), reason)
    assert not (tmp_path / "p.png").exists()


@pytest.mark.skipif(bool(gpus()), reason="there is an NVIDIA GPU")
def test_engines_that_do_not_run_here_leave_with_4_before_one_is_opened(
    run: Run, tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")

    def change(staged: Path) -> None:
        for place in ("text_encoder", "unet", "vae_decoder"):
            name = f"engines/{place}.tensorrt.sm90.plan"
            plans.write(staged, plans.standard(), plans.standard_sidecar(component=place, plan=name), name)

    amend(bundle, open_bundle(bundle), change)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    ran = run("generate", bundle, "a red pig", "-o", tmp_path / "p.png", "--backend", "tensorrt")
    reason = "built for TensorRT 11.4.0.106 and sm90; this machine has no TensorRT and no NVIDIA GPU with a driver: `pip install "
    assert_refused(ran, "the TensorRT engine of text_encoder", reason, code=4)


def test_generate_writes_the_pictures_it_names(run: Run, tmp_path: Path, tiny_bundle: Path) -> None:
    ran = run("generate", tiny_bundle, "a pig", "--out", tmp_path / "p.png", "--count", "2", "--variant", "masked", "--json")
    assert ran.code == 0
    assert ran.err.splitlines()[-1] == "this bundle failed a gate: it must not be shipped"  # τ is hardly 0; after the line of slow work
    assert json.loads(ran.out) == {"pictures": [str(tmp_path / "p-00.png"), str(tmp_path / "p-01.png")]}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p-00.png", "p-01.png"]


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (np.ones(15, np.float32), "the mask has shape [15], expected [16]"),
        (np.ones((3, 16), np.float32), "the mask has shape [3, 16], expected [16] or [1, 16]"),
        (np.r_[np.ones(15), np.nan].astype(np.float32), "NaN or values outside"),
        (np.full(16, 2, np.float32), "NaN or values outside"),
        (np.array(["a"] * 16), "is not a mask"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(run: Run, tmp_path: Path, tiny_bundle: Path, mask: np.ndarray, reason: str) -> None:
    np.save(tmp_path / "mask.npy", mask)
    assert_refused(run("generate", tiny_bundle, "a pig", "--mask", tmp_path / "mask.npy", "--out", tmp_path / "p.png"), reason)
    assert not (tmp_path / "p.png").exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--height", "100"], "--height 100: input should be a multiple of 8"),
        (["--width", "0"], "--width 0: input should be greater than or equal to 8"),
        (["--variant", "half"], "no variant 'half': it has baked, masked"),
        (["--variant", "baked", "--unmitigated"], "a baked engine takes no mask"),
        (["--mask", "none.npy"], "none.npy"),
        (["--mask", "none.json"], "none.json does not exist"),
        (["--guidance", "nan"], "--guidance"),
    ],
)
def test_a_request_that_does_not_fit_is_refused(run: Run, tmp_path: Path, tiny_bundle: Path, options: list[str], reason: str) -> None:
    assert_refused(run("generate", tiny_bundle, "a pig", "--out", tmp_path / "p.png", *options), reason)
    assert list(tmp_path.iterdir()) == []


def test_a_changed_bundle_is_neither_verified_nor_opened(run: Run, tmp_path: Path, tiny_bundle: Path) -> None:
    folder = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    assert run("verify", folder).code == 0
    data = folder / "unet" / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-1] + b"\x01")
    ran = run("verify", folder, "--json")
    assert (ran.code, ran.err) == (2, "")
    found = json.loads(ran.out)
    assert (found["passed"], found["problems"]) == (False, ["unet/model.onnx.data was changed"])
    ran = run("generate", folder, "a pig", "--out", tmp_path / "p.png")
    assert_refused(ran, "unet/model.onnx.data was changed", "no engine was opened")
    assert not (tmp_path / "p.png").exists()


def test_an_engine_is_inspected_without_being_opened(run: Run, tmp_path: Path) -> None:
    path = plans.write(tmp_path, plans.compiled("SM86"), plans.sidecar(targets=("sm86",)))
    for given in (path, path.with_suffix(".json")):
        ran = run("inspect", given, "--json")
        assert (ran.code, ran.err) == (0, "")
        found = json.loads(ran.out)
        assert (found["path"], found["header"]["targets"], found["sidecar"]["component"]) == (str(path), ["sm86"], "unet")
        assert set(found["fit"]) == {"runs", "reason", "remedy"}
    assert "built by   TensorRT-RTX 1.7.1.116" in run("inspect", path).out


@pytest.mark.parametrize(
    ("data", "reasons"),
    [
        (None, ["does not exist", "nemo-edge build"]),
        (b"vtrt", ["is cut short", "fetch it again"]),
        (b"version https://git-lfs.github.com/spec/v1\n", ["Git LFS pointer", "git lfs pull"]),
        (b"onnx", ["is not a TensorRT engine"]),
    ],
)
def test_what_is_no_engine_is_refused(run: Run, tmp_path: Path, data: bytes | None, reasons: list[str]) -> None:
    path = tmp_path / "unet.plan"
    if data is not None:
        path.write_bytes(data)
    assert_refused(run("inspect", path), str(path), *reasons)
    assert_refused(run("verify", path), "is not in a bundle", "nemo-edge inspect")


def test_a_bundle_and_its_engine_are_verified_and_fit_no_matter(run: Run, tmp_path: Path, tiny_bundle: Path) -> None:
    folder = shutil.copytree(tiny_bundle, tmp_path / "bundle")

    def write(staged: Path) -> None:
        plans.write(staged / "engines", plans.standard(), plans.standard_sidecar(targets=("sm999",)))

    amend(folder, open_bundle(folder), write)
    assert json.loads(run("inspect", folder, "--json").out)["engines"][0]["fit"]["runs"] is False
    for path, files in ((folder, len(open_bundle(folder).files)), (folder / "engines" / "unet.plan", 2)):
        ran = run("verify", path, "--json")
        found = json.loads(ran.out)
        assert (ran.code, found["passed"], found["files"], found["engines"][0]["fit"]["runs"]) == (0, True, files, False)
    assert "sm999" in run("verify", folder).out
    (folder / "engines" / "unet.plan").write_bytes(plans.standard((11, 4, 1, 1)))
    ran = run("verify", folder / "engines" / "unet.plan", "--json")
    assert (ran.code, json.loads(ran.out)["problems"], json.loads(ran.out)["engines"]) == (2, ["engines/unet.plan was changed"], [])


def test_a_folder_that_is_no_bundle_is_refused(run: Run, tmp_path: Path) -> None:
    assert_refused(run("verify", tmp_path), "not a finished bundle", "nemo-edge build")
    assert_refused(run("generate", tmp_path, "a pig", "--out", tmp_path / "p.png"), "not a finished bundle")


def test_bench_prints_one_json_object_and_leaves_the_bundle_alone(run: Run, tmp_path: Path, tiny_bundle: Path) -> None:
    before = (tiny_bundle / "manifest.json").read_bytes()
    options = ["--no-eager", "--target", "text_encoder", "--runs", "1", "--seconds", "0", "--threads", "1", "--out", tmp_path / "t.json"]
    ran = run("bench", tiny_bundle, *options, "--json")
    assert ran.code == 0
    found = json.loads(ran.out)
    assert found["latency"] == json.loads((tmp_path / "t.json").read_text())
    assert [t["contender"] for t in found["latency"]["cases"][0]["timings"]] == ["baked"]
    assert (found["gates"], found["passed"]) == ([], True)
    assert (tiny_bundle / "manifest.json").read_bytes() == before
    assert verify(tiny_bundle).passed


def test_a_bench_is_in_the_bundle_and_shown(run: Run, tmp_path: Path, tiny_bundle: Path) -> None:
    folder = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    ran = run("bench", folder, "--no-eager", "--target", "unet", "--runs", "5", "--seconds", "0", "--size", "16x24", "--batch", "2")
    assert ran.code == 3  # τ is hardly above 0
    assert "unet: batch 2, 16 × 24" in ran.out
    assert "a gate failed" in ran.out
    assert str(folder / "report" / "index.html") in ran.out
    assert verify(folder).passed
    assert (folder / "latency.json").is_file()


@pytest.mark.parametrize(
    ("options", "reasons"),
    [
        (["--runs", "0"], ["--runs 0: input should be greater than or equal to 1"]),
        (["--seconds", "-1"], ["--seconds -1.0: input should be greater than or equal to 0"]),
        (["--batch", "0"], ["--batch 0: batches and sizes are whole numbers from 1 on"]),
        (["--batch", "1", "--batch", "1"], ["--batch 1 1: a value is named twice"]),
        (["--target", "encoder"], ["--target encoder: ", "'text_encoder', 'unet', 'vae_decoder' or 'pipeline'"]),
        (["--size", "foo"], ["--size foo: a size is HEIGHTxWIDTH in pixels, like 512x512"]),
        (["--size", "64"], ["--size 64: a size is HEIGHTxWIDTH in pixels, like 512x512"]),
        (["--size", "64x"], ["--size 64x: a size is HEIGHTxWIDTH in pixels, like 512x512"]),
        (["--size", "64x-8"], ["--size 64x-8: a size is HEIGHTxWIDTH in pixels, like 512x512"]),
        (["--size", "0x64"], ["whole numbers from 1 on"]),
        (["--checkpoint", "none"], ["none does not exist", "--checkpoint", "--no-eager"]),
    ],
)
def test_a_bench_that_does_not_fit_is_refused(run: Run, tiny_bundle: Path, options: list[str], reasons: list[str]) -> None:
    assert_refused(run("bench", tiny_bundle, *options), *reasons)


def test_a_size_that_the_engine_cannot_take_is_refused(run: Run, tiny_bundle: Path) -> None:
    ran = run("bench", tiny_bundle, "--no-eager", "--target", "vae_decoder", "--runs", "1", "--seconds", "0", "--size", "34x34")
    assert_refused_last_line(ran, "--size 34x34: sizes are multiples of 8 pixels")


def test_a_bench_of_another_checkpoint_is_refused(run: Run, tiny_bundle: Path, toy_folder: Path) -> None:
    ran = run("bench", tiny_bundle, "--checkpoint", toy_folder)
    assert_refused(ran, f"{toy_folder} is not the checkpoint that this bundle was made from")


AGAIN = (["bench", "{}", "--no-eager"], ["compare", "{}", "{}:masked"], ["gate", "{}", "--recipe", "{recipe}"], ["report", "{}"])


def again(run: Run, command: list[str], folder: Path, recipe: Path) -> Ran:
    return run(*[part.format(folder, folder, recipe=recipe) for part in command])


@pytest.mark.parametrize("command", AGAIN, ids=lambda c: c[0])
def test_a_bundle_of_an_older_schema_is_refused_by_name(
    run: Run, tmp_path: Path, tiny_bundle: Path, tiny_recipe: Path, command: list[str]
) -> None:
    folder = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    content = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**content, "schema_version": 1}))
    ran = again(run, command, folder, tiny_recipe)
    assert_refused(ran, "is of schema 1, and this nemo-edge reads schemas 3 to 4: build the bundle again", code=ran.code)
    assert ran.code == 2


@pytest.mark.parametrize("command", AGAIN, ids=lambda c: c[0])
def test_a_bundle_without_an_engine_was_changed(run: Run, tmp_path: Path, tiny_bundle: Path, tiny_recipe: Path, command: list[str]) -> None:
    folder = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    (folder / "engines" / "unet.onnxruntime.cpu.json").unlink()
    assert_refused(again(run, command, folder, tiny_recipe), "unet.onnxruntime.cpu.json is missing", "build it again; no engine was opened")


@pytest.mark.parametrize("command", AGAIN, ids=lambda c: c[0])
def test_what_is_no_bundle_is_refused(run: Run, tmp_path: Path, tiny_recipe: Path, command: list[str]) -> None:
    ran = again(run, command, tmp_path / "none", tiny_recipe)
    assert_refused(ran, "nemo-edge build" if command[0] != "compare" else "is a bundle: one side must be one")


def test_sides_that_differ_leave_with_3_and_say_where(run: Run, tiny_bundle: Path) -> None:
    sides = (f"{tiny_bundle}:unmitigated", f"{tiny_bundle}:baked")
    ran = run("compare", *sides, "--steps", "1", "--limit", "1", "--tolerance", "1e-6", "--json")
    found = json.loads(ran.out)
    assert (ran.code, found["passed"]) == (3, False)
    assert found["divergence"]["module"].endswith("attn2.to_v")
    ran = run("compare", *sides, "--steps", "1", "--tolerance", "1e-6")
    assert ran.code == 3
    assert "first bad tensor:" in ran.out
    assert "they differ" in ran.out


def test_sides_that_agree_leave_with_0(run: Run, tiny_bundle: Path, model: Path, prompts: Path) -> None:
    ran = run("compare", model, tiny_bundle, "--steps", "1", "--prompts", prompts, "--limit", "1", "--json")
    found = json.loads(ran.out)
    assert (ran.code, found["passed"], found["prompts"]) == (0, True, ["a pig"])
    ran = run("compare", f"{tiny_bundle}:baked", f"{tiny_bundle}:masked", "--steps", "1")
    assert ran.code == 0
    assert "they agree: largest error 0.0e+00" in ran.out


def test_sides_that_cannot_be_compared_are_refused(run: Run, tiny_bundle: Path, model: Path, toy_folder: Path) -> None:
    assert_refused(run("compare", toy_folder, tiny_bundle), "are not of the same checkpoint")
    assert_refused(run("compare", model, f"{tiny_bundle}:half"), "names no variant 'half'")
    assert_refused(run("compare", model, model), "one side must be one")


def gates_in(folder: Path, tiny_recipe: Path, gates: str) -> Path:
    path = recipe_in(folder, tiny_recipe)
    path.write_text(path.read_text() + f"[gates]\n{gates}\n")
    return path


def test_other_gates_leave_with_their_verdict(run: Run, tmp_path: Path, tiny_bundle: Path, tiny_recipe: Path) -> None:
    lenient = gates_in(tmp_path, tiny_recipe, "memorization_score = false\nschedule_floor = false")
    ran = run("gate", tiny_bundle, "--recipe", lenient, "--json")
    found = json.loads(ran.out)
    assert (ran.code, ran.err, found["passed"], found["written"]) == (0, "", True, False)
    strict = gates_in(tmp_path, tiny_recipe, "general_drift = 0")
    ran = run("gate", tiny_bundle, "--recipe", strict)
    assert ran.code == 3
    assert "the bundle was left as it is" in ran.out
    assert verify(tiny_bundle).passed


def test_a_gate_that_names_no_metric_is_refused(run: Run, tmp_path: Path, tiny_bundle: Path, tiny_recipe: Path) -> None:
    recipe = gates_in(tmp_path, tiny_recipe, "slowdown = 1.1")
    assert_refused(run("gate", tiny_bundle, "--recipe", recipe), "unknown key 'gates.slowdown': did you mean 'gates.slow_down'?")
    recipe = gates_in(tmp_path, tiny_recipe, "general_drift = -1")
    assert_refused(run("gate", tiny_bundle, "--recipe", recipe), "gates.general_drift: a gate is a number from 0 on, or false")


def test_a_report_says_where_it_is(run: Run, tmp_path: Path, tiny_bundle: Path) -> None:
    folder = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    ran = run("report", folder, "--summary", tmp_path / "summary.md", "--json")
    assert (ran.code, ran.err) == (0, "")
    identity = open_bundle(folder).identity
    assert json.loads(ran.out) == {"report": str(folder / "report" / "index.html"), "identity": identity}
    assert (tmp_path / "summary.md").read_text().startswith("#")


@pytest.mark.parametrize("command", AGAIN[2:], ids=lambda c: c[0])
def test_a_summary_on_a_full_disk_is_one_line(run: Run, tmp_path: Path, tiny_bundle: Path, tiny_recipe: Path, command: list[str]) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    folder = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    ran = again(run, [*command, "--summary", "/dev/full"], folder, tiny_recipe)
    assert_refused(ran, "the disk is full while writing /dev/full")
    assert verify(folder).passed


@pytest.mark.parametrize("command", AGAIN[2:], ids=lambda c: c[0])
def test_a_summary_in_a_read_only_place_is_refused(
    run: Run, tmp_path: Path, tiny_bundle: Path, tiny_recipe: Path, command: list[str]
) -> None:
    place = Path("/proc/nemo-edge") if os.access("/sys", os.W_OK) else Path("/sys")
    ran = again(run, [*command, "--summary", str(place / "summary.md")], tiny_bundle, tiny_recipe)
    assert ran.code == 2
    assert ran.err.startswith("nemo-edge: ")
    assert ran.err.count("\n") == 1
    assert ran.out == ""


def test_compile_puts_an_engine_into_a_bundle(run: Run, tiny_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    options = ("--backend", "tensorrt-rtx", "--target", "sm86", "--component", "text_encoder")
    found = run("compile", bundle, *options, "--json")
    assert json.loads(found.out)["engines"] == ["engines/text_encoder.tensorrt-rtx.sm86.engine"]
    assert verify(bundle).passed


@pytest.mark.parametrize("options", [("--backend", "onnxruntime"), ("--target", "sm86")])
def test_compile_refuses_options_that_do_not_go_together(run: Run, tiny_bundle: Path, options: tuple[str, ...]) -> None:
    assert_refused(run("compile", tiny_bundle, *options), "take tensorrt" if "--backend" in options else "--target is for tensorrt-rtx")

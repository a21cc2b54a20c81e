"""The command line: exit codes, one line for every complaint, nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from conftest import save_toy_sd, toy_unet
from diffusers import UNet2DConditionModel
from release.test_random_weights import small
from transformers import CLIPTokenizer

import nemo_edge
from nemo_edge import demo
from nemo_edge.cli import main as cli
from nemo_edge.localization.calibration import Calibration
from nemo_edge.model.neurons import NeuronSet, ValueLayer

STAGES = ("calibrate", "localize", "policies", "export", "measure")


class Ran(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """The whole command line in this process, its output as a shell would see it."""
    former = signal.getsignal(signal.SIGTERM)

    def call(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["nemo-edge", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main()
        code = left.value.code
        assert isinstance(code, int)
        return Ran(code, *capfd.readouterr())

    yield call
    signal.signal(signal.SIGTERM, former)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("a pig\nan owl\na bus\n")
    return path


@pytest.fixture
def statistics(tiny_bundle: Path) -> Path:
    return tiny_bundle / "calibration.safetensors"


@pytest.fixture
def model(tiny_recipe: Path) -> Path:
    return tiny_recipe.parent / "model"


def assert_refused(ran: Ran, *reasons: str, code: int = 2) -> None:
    """One line on standard error that gives the reasons, no traceback, nothing on standard output."""
    assert ran.err.startswith("nemo-edge: ")
    assert ran.err.count("\n") == 1, ran.err
    for reason in reasons:
        assert reason in ran.err
    assert (ran.code, ran.out) == (code, "")


def recipe_in(folder: Path, tiny_recipe: Path, *changes: tuple[str, str]) -> Path:
    """The tiny recipe with its texts changed, of the same model and prompts, its output in `folder`."""
    text = tiny_recipe.read_text()
    for name in ("./model", "memorized.csv", "general.txt"):
        text = text.replace(f'"{name}"', f'"{tiny_recipe.parent / name}"')
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["build"], "Missing argument 'recipe'"),
        (["build", "r.toml", "--dry"], "No such option: --dry"),
        (["bild"], "No such command 'bild'"),
        (["generate", "b", "p", "--out", "x.png", "--seed", "-1"], "--seed"),
        (["generate", "b", "p"], "--out"),
        (["export", "m", "--out", "x", "--opset", "12"], "--opset"),
        (["export", "m", "--out", "x", "--dtype", "fp8"], "--dtype fp8: input should be 'fp32', 'fp16' or 'bf16'"),
        (["detect", "m", "p.txt", "--statistics", "s", "--threshold", "2"], "--threshold: τ = 2, expected a finite number above 0"),
        (["detect", "m", "p.txt", "--statistics", "s", "--threshold", "nan"], "--threshold: τ = nan"),
        (["localize", "m", "p.txt", "--statistics", "s", "-o", "x", "--threshold", "0"], "--threshold: τ = 0, expected"),
    ],
)
def test_wrong_usage_is_one_line(run: Run, arguments: list[str], reason: str) -> None:
    assert_refused(run(*arguments), reason)


def test_help_is_no_error(run: Run) -> None:
    ran = run("--help")
    assert ran.code == 0
    assert all(command in ran.out for command in ("build", "calibrate", "detect", "localize", "export", "verify", "generate", "inspect"))


def test_a_defect_is_called_one_and_debug_shows_it(run: Run, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def defective(_bundle: Path) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr("nemo_edge.bundle.manifest.verify", defective)
    assert_refused(run("verify", tiny_bundle), "a defect of nemo-edge: ZeroDivisionError: ours", "--debug", code=1)
    monkeypatch.setattr(sys, "argv", ["nemo-edge", "verify", str(tiny_bundle), "--debug"])
    with pytest.raises(ZeroDivisionError):
        cli.main()


@pytest.mark.parametrize("command", [["inspect"], ["export", "--out", "{}/out"]])
def test_a_checkpoint_that_is_missing_or_empty_is_refused(run: Run, tmp_path: Path, command: list[str]) -> None:
    name, *options = [part.format(tmp_path) for part in command]
    (tmp_path / "empty").mkdir()
    assert_refused(run(name, tmp_path / "none", *options), "does not exist")
    assert_refused(run(name, tmp_path / "empty", *options), "is empty")
    assert [p.name for p in tmp_path.iterdir()] == ["empty"]


def test_a_pickle_checkpoint_is_refused_unless_asked_for(run: Run, tmp_path: Path, model: Path) -> None:
    folder = shutil.copytree(model, tmp_path / "pickled")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(UNet2DConditionModel.from_pretrained(str(model / "unet")).state_dict(), weights.with_suffix(".bin"))
    weights.unlink()
    assert_refused(run("inspect", folder), "is a pickle", "diffusion_pytorch_model.bin", "--allow-pickle")
    assert run("inspect", folder, "--allow-pickle").code == 0


def test_a_unet_without_cross_attention_is_refused(run: Run, tmp_path: Path, tokenizer: CLIPTokenizer) -> None:
    unet = toy_unet(
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        mid_block_type=None,
        layers_per_block=1,
    )
    folder = save_toy_sd(tmp_path / "plain", tokenizer, unet)
    assert_refused(run("inspect", folder), "has no cross-attention", "UNet2DConditionModel")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("p.txt", None, "does not exist"),
        ("p.txt", b"", "holds no prompt"),
        ("p.txt", b"a\0b", "is binary"),
        ("p.txt", b"a\n\xff\n", "not UTF-8 (line 2)"),
        ("p.csv", b"Title\nx\n", "found 'Title'"),
    ],
)
def test_bad_prompts_are_refused(run: Run, tmp_path: Path, name: str, content: bytes | None, reason: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    out = tmp_path / "out.safetensors"
    assert_refused(run("calibrate", tmp_path, tmp_path / name, "--out", out), str(tmp_path / name), reason)
    assert not out.exists()


def test_an_unknown_key_of_a_recipe_names_the_right_one(run: Run, tmp_path: Path, tiny_recipe: Path) -> None:
    recipe = recipe_in(tmp_path, tiny_recipe, ("threshold", "treshold"))
    assert_refused(run("build", recipe), "unknown key 'calibration.treshold': did you mean 'calibration.threshold'?")
    assert [p.name for p in tmp_path.iterdir()] == ["recipe.toml"]


@pytest.mark.parametrize("index", [-1, 8])
def test_a_neuron_out_of_range_names_its_layer(run: Run, tmp_path: Path, tiny_bundle: Path, index: int) -> None:
    content = json.loads((tiny_bundle / "neurons.json").read_text())
    content["indices"][0] = [index]
    (tmp_path / "neurons.json").write_text(json.dumps(content))
    ran = run("export", tmp_path, "--neurons", tmp_path / "neurons.json", "--out", tmp_path / "out")
    assert_refused(ran, f"neuron {index} of {content['layers'][0]['name']} is out of range: the layer has neurons 0 to 7")
    assert not (tmp_path / "out").exists()


def test_neurons_of_another_model_are_refused(run: Run, tmp_path: Path, model: Path) -> None:
    NeuronSet.from_lists([ValueLayer(name="down_blocks.7.to_v", width=320)], [[3]]).save(tmp_path / "neurons.json")
    ran = run("export", model, "--neurons", tmp_path / "neurons.json", "--out", tmp_path / "out")
    assert_refused_last_line(ran, "no value layer down_blocks.7.to_v", "another model")
    assert [p.name for p in tmp_path.iterdir()] == ["neurons.json"]


def test_statistics_of_another_model_name_both_widths(run: Run, toy_folder: Path, prompts: Path, tmp_path: Path) -> None:
    other, widths = tmp_path / "official.pt", (320, 320, 640, 640, 1280, 1280, 1280)
    torch.save([[torch.ones(width) for width in widths] for _ in ("mean", "std")], other)
    ran = run("detect", toy_folder, prompts, "--statistics", other, "--threshold", "0.4")
    assert_refused(ran, "[320, 320, 640, 640, 1280, 1280, 1280]", "[8, 8, 8, 8, 16, 16, 16]", "another model")


def test_the_version_is_shown(run: Run) -> None:
    ran = run("--version")
    assert (ran.code, ran.out, ran.err) == (0, f"nemo-edge {nemo_edge.__version__}\n", "")


def test_detect_prints_one_json_object(run: Run, model: Path, prompts: Path, statistics: Path) -> None:
    ran = run("detect", model, prompts, "--statistics", statistics, "--json")
    found = json.loads(ran.out)
    assert ran.code == 0
    assert found["threshold"] == 1e-6
    assert [row["prompt"] for row in found["prompts"]] == ["a pig", "an owl", "a bus"]
    assert 0 < found["unet_share"] < 1
    assert found["rocs"] == []


def test_detect_leaves_its_lines_and_compares_detectors(run: Run, model: Path, prompts: Path, statistics: Path, tmp_path: Path) -> None:
    general, out = tmp_path / "general.txt", tmp_path / "out"
    general.write_text("a tree\na key\n")
    ran = run("detect", model, prompts, "--statistics", statistics, "--general", general, "-o", out)
    assert ran.code == 0
    assert "AUROC" in ran.out
    assert len((out / "detection.jsonl").read_text().splitlines()) == 5
    curves = json.loads((out / "roc.json").read_text())
    assert [(each["memorized"], each["general"]) for each in curves] == [(3, 2)] * 3
    again = run("detect", model, prompts, "--statistics", statistics, "--general", general, "-o", out, "--json")
    assert (json.loads(again.out)["rows"], json.loads(again.out)["rocs"]) == (0, curves)
    assert_refused(run("detect", model, prompts, "--statistics", statistics, "--threshold", "0.9", "-o", out), "give another folder")


def test_calibrate_shows_how_many_general_prompts_lie_above_the_threshold(run: Run, prompts: Path, tmp_path: Path) -> None:
    prompts.write_text("a pig\na balloon\nA  Pig\na fish\na whale\n")
    options = [demo.CHECKPOINT, prompts, "-o", tmp_path / "s.safetensors", "--limit", "3"]
    found = json.loads(run("calibrate", *options, "--json").out)
    made = Calibration.load(tmp_path / "s.safetensors")
    assert made.threshold is not None
    above = sum(score > made.threshold.value for score in made.highest)
    assert 0 < above < 3
    assert (found["prompts"], found["above_rate"]) == (3, above / 3)  # the pig counts once
    ran = run("calibrate", *options)
    tau = (f"{value:.3f}" for value in (made.threshold.value, made.threshold.mean, made.threshold.std))
    assert ran.out.splitlines()[-2].split() == [*tau, "3", f"{above}", f"({above / 3:.1%})"]


def test_calibrate_refuses_fewer_prompts_than_are_asked_for(run: Run, model: Path, prompts: Path, tmp_path: Path) -> None:
    prompts.write_text("a pig\na balloon\nA  Pig\n")
    ran = run("calibrate", model, prompts, "-o", tmp_path / "s.safetensors", "--limit", "3")
    assert_refused(ran, "holds 2 different prompts, fewer than --limit 3: leave --limit out, or add some")
    assert not (tmp_path / "s.safetensors").exists()


def test_detect_refuses_a_prompt_that_is_in_both_lists(run: Run, model: Path, prompts: Path, statistics: Path, tmp_path: Path) -> None:
    (tmp_path / "general.txt").write_text("a tree\nA PIG\n")
    ran = run("detect", model, prompts, "--statistics", statistics, "--general", tmp_path / "general.txt", "-o", tmp_path / "out")
    assert_refused(ran, "1 of the general prompts in", "general.txt", "prompts.txt", "('A PIG')", "take each out of one of the lists")
    assert not (tmp_path / "out").exists()


def test_localize_groups_what_it_is_told_to(run: Run, model: Path, prompts: Path, statistics: Path, tmp_path: Path) -> None:
    options = ["--statistics", statistics, "--mode", "fast", "-o", tmp_path / "out"]
    assert_refused(run("localize", model, prompts, *options, "--union", "--group-by", "cluster"), "--union", "leave --group-by out")
    assert_refused(run("localize", model, prompts, *options, "--group-by", "colour"), "--group-by colour")
    assert not (tmp_path / "out").exists()
    ran = run("localize", model, prompts, *options, "--union", "--paraphrases", "2", "--json")
    [group] = json.loads(ran.out)["groups"]
    assert (ran.code, group["name"]) == (0, "list")
    assert [member["prompt"] for member in group["members"] if not member["variant"]] == ["a pig", "an owl", "a bus"]
    assert json.loads((tmp_path / "out" / "neurons.json").read_text())["indices"] == group["neurons"]["indices"]


def test_an_output_that_is_a_file_or_not_empty_is_left_alone(run: Run, tmp_path: Path, tiny_recipe: Path) -> None:
    recipe, out = recipe_in(tmp_path, tiny_recipe), tmp_path / "out"
    out.write_text("mine")
    assert_refused(run("build", recipe), "is a file")
    assert out.read_text() == "mine"
    out.unlink()
    out.mkdir()
    (out / "mine").write_text("")
    assert_refused(run("build", recipe), "not empty and not a bundle")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["mine", "out", "recipe.toml"]


def test_a_folder_in_the_place_of_a_file_is_refused_before_the_work(
    run: Run, tmp_path: Path, model: Path, prompts: Path, tiny_bundle: Path
) -> None:
    assert_refused(run("calibrate", model, prompts, "--out", tmp_path), f"{tmp_path} is a folder: give the path of a file")
    assert_refused(run("generate", tiny_bundle, "a pig", "--out", tmp_path), f"{tmp_path} is a folder: give the path of a file")


def test_a_read_only_output_is_refused(run: Run, tmp_path: Path, tiny_recipe: Path) -> None:
    place = tmp_path / "locked"
    place.mkdir(mode=0o555)
    if os.access(place, os.W_OK):
        pytest.skip("this user may write into a read-only folder (os.access says writable)")
    assert_refused(run("build", recipe_in(tmp_path, tiny_recipe, ('"out"', '"locked/out"'))), "is read-only")


def test_a_full_disk_is_explained_and_leaves_nothing(
    run: Run, tmp_path: Path, model: Path, prompts: Path, statistics: Path, tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    recipe = recipe_in(tmp_path, tiny_recipe)
    monkeypatch.setattr(os, "fsync", full)
    assert_refused_last_line(run("calibrate", model, prompts, "--out", tmp_path / "s.safetensors"), "the disk is full", "s.safetensors")
    assert_refused_last_line(run("build", recipe), "the disk is full", "calibration.safetensors")
    kept = {p.name for p in tmp_path.iterdir()}
    assert kept == {"prompts.txt", "recipe.toml", ".out.build"}
    assert not [p for p in (tmp_path / ".out.build").rglob("*") if p.is_file()]


def test_a_full_disk_leaves_no_picture(run: Run, tiny_bundle: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    assert_refused(run("generate", tiny_bundle, "a pig", "--out", "/dev/full"), "the disk is full while writing /dev/full")


def assert_refused_last_line(ran: Ran, *reasons: str) -> None:
    """As `assert_refused`, after the progress bars of the work before it."""
    *_, last = ran.err.splitlines()
    assert_refused(Ran(ran.code, ran.out, last + "\n"), *reasons)
    assert "Traceback" not in ran.err


def test_more_layers_to_skip_than_there_are_are_refused_by_every_command(
    run: Run, tmp_path: Path, tiny_recipe: Path, prompts: Path, statistics: Path
) -> None:
    model, path = tiny_recipe.parent / "model", recipe_in(tmp_path, tiny_recipe)
    path.write_text(path.read_text().replace("[checkpoint]", "[checkpoint]\nclip_skip = 3"))
    own, out = ("--clip-skip", 3), ("--out", tmp_path / "out")
    for command in (
        ("build", path, "--dry-run"),
        ("build", path),
        ("inspect", model, *own),
        ("calibrate", model, prompts, *own, "--out", tmp_path / "s.safetensors"),
        ("detect", model, prompts, "--statistics", statistics, *own, *out),
        ("localize", model, prompts, "--statistics", statistics, *own, *out),
        ("export", model, *own, *out),
    ):
        ran = run(*command)
        assert (ran.code, ran.err.count("\n")) == (2, 1), ran.err
        assert "clip_skip 3 does not fit the checkpoint, whose text encoder has 2 layers: take 0 to 2" in ran.err


def test_a_dry_run_says_what_would_run(run: Run, tmp_path: Path, tiny_recipe: Path) -> None:
    ran = run("build", recipe_in(tmp_path, tiny_recipe), "--dry-run", "--json")
    assert (ran.code, ran.err) == (0, "")
    assert list(json.loads(ran.out)["stages"]) == list(STAGES)
    assert [p.name for p in tmp_path.iterdir()] == ["recipe.toml"]


def test_a_summary_that_cannot_be_written_is_refused_before_the_build(run: Run, tmp_path: Path, tiny_recipe: Path) -> None:
    recipe = recipe_in(tmp_path, tiny_recipe)
    assert_refused(run("build", recipe, "--summary", tmp_path), "is a folder: give the path of a file")
    assert_refused(run("build", recipe, "--summary", tmp_path / "out" / "summary.md"), "lies in the bundle")
    assert {p.name for p in tmp_path.iterdir()} == {"recipe.toml"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--neurons", "n.json"), "--neurons goes with --random-weights"),
        (("--random-weights", "sd14", "--dry-run"), "architecture sd14 is not known: give one of sd15, sd21, sdxl, bk-sdm-small"),
        (("--random-weights", "sd15", "--summary", "s.md"), "--summary: nothing is measured on random weights"),
    ],
)
def test_random_weights_that_cannot_be_are_refused(run: Run, tiny_recipe: Path, options: tuple[str, ...], said: str) -> None:
    assert_refused(run("build", tiny_recipe, *options), said)


def test_random_weights_are_built_inspected_and_verified(run: Run, tiny_recipe: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(tiny_recipe.read_text() + "[export]\nvariants = ['baked']\n")
    few = {"down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"], "up_block_types": ["UpBlock2D", "UpBlock2D"]}
    name = small(tmp_path / "mine", "bk-sdm-small", **{"unet/config.json": {**few, "block_out_channels": [8, 16]}})
    built = run("build", recipe, "--random-weights", name)
    assert built.code == 0
    assert "with random weights, for measuring and not for shipping" in built.out
    for command in ("inspect", "verify"):
        ran = run(command, tmp_path / "out")
        assert (ran.code, ran.err) == (0, "")
        assert f"random weights ({Path(name).name}): nothing was measured" in ran.out
    assert json.loads(run("verify", tmp_path / "out", "--json").out)["random_weights"] == Path(name).name

"""`nemo-edge quantize` from options to the bundle."""

from __future__ import annotations

import json
from pathlib import Path

from cli.test_main import Run, assert_refused, run
from nemo_edge.bundle.manifest import open_bundle

__all__ = ["run"]


def test_a_bundle_is_quantized_and_what_is_to_be_done_is_told(run: Run, tiny_bundle: Path, tmp_path: Path) -> None:
    command = ["quantize", tiny_bundle, "--scheme", "int8", "--pictures", 1, "--keep", "mid_block."]
    shown = run(*command, "-o", tmp_path / "int8")
    assert shown.code == 0, shown.err
    assert "modules are int8" in shown.out
    assert f"measure it: nemo-edge rebake {tmp_path / 'int8'} --neurons {tmp_path / 'int8'}/neurons.json --measure" in shown.out
    assert not open_bundle(tmp_path / "int8").passed
    told = json.loads(run(*command, "-o", tmp_path / "int8", "--json").out)
    assert told["skipped"]
    assert told["kept"]["mid_block.resnets.0.conv1"] == "the recipe keeps it"
    assert "passed" not in told, "nothing was judged"


def test_settings_come_from_a_recipe_and_ranges_from_a_file(run: Run, tiny_bundle: Path, tmp_path: Path) -> None:
    recipe = tiny_bundle.parent / "quantized.toml"
    recipe.write_text((tiny_bundle.parent / "recipe.toml").read_text() + '[quantization]\nscheme = "int8_weights"\nprompts = 2\n')
    told = json.loads(run("quantize", tiny_bundle, "--recipe", recipe, "-o", tmp_path / "w8", "--json").out)
    assert (told["scheme"], told["ranges"]) == ("int8_weights", "none")
    assert_refused(run("quantize", tiny_bundle, "--ranges", tmp_path / "none.json", "-o", tmp_path / "x"), "none.json does not exist")


def test_a_wrong_option_is_named(run: Run, tiny_bundle: Path, tmp_path: Path) -> None:
    assert_refused(run("quantize", tiny_bundle, "--scheme", "int3", "-o", tmp_path / "x"), "--scheme int3: input should be 'int8'")
    assert_refused(run("quantize", tiny_bundle, "--pictures", 0, "-o", tmp_path / "x"), "--pictures 0")
    with_both = run("quantize", tiny_bundle, "--ranges", tmp_path / "r.json", "--pictures", 2, "-o", tmp_path / "x")
    assert_refused(with_both, "--pictures is for finding ranges")
    assert not list(tmp_path.iterdir())

"""A model in one file with a LoRA, the whole way: what is measured, localized and exported is the fused model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from originals import WORDS, of_sd1, refused, write
from safetensors.torch import save_file

from nemo_edge.backends.torch import open_runner
from nemo_edge.measure.comparison import Question, compare
from nemo_edge.model.checkpoint import open_source
from nemo_edge.recipe.recipe import load_recipe
from nemo_edge.recipe.settings import LoraSettings
from nemo_edge.release.build import build, plan

VALUE = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v"

RECIPE = """
name = "single"
output = "out"
[checkpoint]
path = "./model.safetensors"
loras = [{path = "mine.safetensors", scale = 0.5}]
[prompts]
memorized = "memorized.csv"
general = "general.txt"
limit = 1
[calibration]
prompts = 2
threshold = 0.999
[localization]
samples = 2
[export]
variants = ["masked"]
[sampling]
steps = 2
[fidelity]
seeds = 1
general_prompts = 1
agreement_seeds = 0
curve = [1]
"""
"""No score is above τ, so that the search is short."""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("single")
    write(folder / "model.safetensors", of_sd1(), **{"modelspec.resolution": "32x32"})
    torch.manual_seed(9)
    save_file({f"{VALUE}.lora_A.weight": torch.randn(2, 64), f"{VALUE}.lora_B.weight": torch.randn(32, 2)}, folder / "mine.safetensors")
    (folder / "memorized.csv").write_text("Caption;URL\na red pig;u\nan owl;v\n")
    (folder / "general.txt").write_text("\n".join(f"a {word}" for word in ("dog", "cat", "bus", "key", "bell", "tree", "car")))
    (folder / "recipe.toml").write_text(RECIPE)
    return folder / "recipe.toml"


def test_a_dry_run_takes_what_a_build_takes_and_refuses_the_rest(recipe: Path) -> None:
    loaded = load_recipe(recipe)
    assert not plan(loaded).up_to_date
    save_file({f"{VALUE}.lora_A.weight": torch.ones(2, 9), f"{VALUE}.lora_B.weight": torch.ones(32, 2)}, recipe.parent / "else.safetensors")
    other = loaded.checkpoint.model_copy(update={"loras": (LoraSettings(path=recipe.parent / "else.safetensors"),)})
    refused(lambda: plan(loaded.model_copy(update={"checkpoint": other})), "does not fit the checkpoint")
    odd = loaded.sampling.model_copy(update={"height": 33})
    refused(lambda: plan(loaded.model_copy(update={"sampling": odd})), "height 33 is not a multiple of")


def test_a_dry_run_refuses_a_text_encoder_of_another_vocabulary(recipe: Path) -> None:
    tensors = of_sd1()
    name = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
    path = write(recipe.parent / "few.safetensors", {**tensors, name: tensors[name][: WORDS // 2]})
    loaded = load_recipe(recipe)
    few = loaded.checkpoint.model_copy(update={"path": str(path), "loras": ()})
    refused(lambda: plan(loaded.model_copy(update={"checkpoint": few})), f"its text encoder knows {WORDS // 2} of them")


@pytest.mark.slow
def test_a_bundle_is_built_of_the_fused_model(recipe: Path) -> None:
    loaded = load_recipe(recipe)
    bundle = Path(build(loaded).bundle)
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert set(manifest["checkpoint"]) == {"model.safetensors", "loras/0/mine.safetensors × 0.5"}
    assert manifest["recipe"]["checkpoint"]["loras"][0]["path"] == "../mine.safetensors"
    assert build(loaded).skipped
    fused, plain = (open_source(source) for source in (loaded.checkpoint, loaded.checkpoint.model_copy(update={"loras": ()})))
    example = plain.unet_component().example(1)
    outputs = [open_runner(checkpoint.unet_component())(example)["out_sample"] for checkpoint in (fused, plain)]
    reference = f"{recipe.parent / 'model.safetensors'}:unmitigated"
    found = compare(reference, f"{bundle}:unmitigated", Question(("a red pig",), steps=2))
    assert found.passed
    assert abs(outputs[0] - outputs[1]).max() > 10 * found.tolerance * abs(outputs[1]).max()  # without the LoRA it would not have

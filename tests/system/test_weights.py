"""Of a diffusers folder the files that are opened are hashed, whatever lies beside them or is a link."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from nemo_edge.system.errors import InputError
from nemo_edge.system.files import checkpoint_folder, checkpoint_hashes, weight_bytes
from nemo_edge.system.weights import weights_of

INDEX = json.dumps(
    {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    }
)
OPENED = {
    "model_index.json": INDEX,
    "scheduler/scheduler_config.json": "{}",
    "tokenizer/merges.txt": "",
    "tokenizer/vocab.json": "{}",
    "unet/config.json": "{}",
    "unet/diffusion_pytorch_model.safetensors": "unet",
}
BESIDE = (
    "checkpoint-500/optimizer.bin",
    "checkpoint-500/unet/diffusion_pytorch_model.safetensors",
    "logs/text2image/hparams.json",
    "safety_checker/model.safetensors",
    "unet/diffusion_pytorch_model.bin",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet_ema/diffusion_pytorch_model.safetensors",
    "README.txt",
)


def test_what_lies_beside_is_not_hashed(tmp_path: Path, written: Callable[[str, str], Path]) -> None:
    for name, content in OPENED.items():
        written(name, content)
    before = checkpoint_hashes(str(tmp_path))
    assert list(before) == sorted(OPENED)
    for name in BESIDE:
        written(name, "of a training run")
    assert checkpoint_hashes(str(tmp_path)) == before
    assert weight_bytes(str(tmp_path)) == len("unet")


def test_a_part_that_is_a_link_to_a_folder_is_hashed(tmp_path: Path, written: Callable[[str, str], Path]) -> None:
    for name, content in OPENED.items():
        written(name, content)
    before = checkpoint_hashes(str(tmp_path))
    shared = (tmp_path / "unet").rename(tmp_path / "shared")
    (tmp_path / "unet").symlink_to(shared)
    assert checkpoint_hashes(str(tmp_path)) == before
    written("shared/diffusion_pytorch_model.safetensors", "other")
    changed = checkpoint_hashes(str(tmp_path))
    assert {name for name in before if changed[name] != before[name]} == {"unet/diffusion_pytorch_model.safetensors"}


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["model.fp16.safetensors", "model.safetensors"], ["model.safetensors"]),
        (["model.ema.safetensors", "model.fp16.safetensors"], ["model.fp16.safetensors"]),
        (["model.non_ema.safetensors", "model.ema.safetensors"], ["model.ema.safetensors"]),
        (["pytorch_model.bin", "model.fp16.safetensors"], ["model.fp16.safetensors"]),
        (["pytorch_model.bin", "pytorch_lora_weights.safetensors", "optimizer.bin"], ["pytorch_model.bin"]),
        (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], None),
        (["model.fp16-00001-of-00002.safetensors", "model.fp16-00002-of-00002.safetensors"], None),
        (["model-00001-of-00002.fp16.safetensors", "model-00002-of-00002.fp16.safetensors"], None),
        (["notes.safetensors"], []),
    ],
)
def test_of_several_variants_the_plain_one_is_opened_first(
    tmp_path: Path, written: Callable[[str, str], Path], names: list[str], chosen: list[str] | None
) -> None:
    for name in names:
        written(name, name)
    found = weights_of(tmp_path)
    opened = [path.name for path in found.files] if found else []
    assert opened == (sorted(names) if chosen is None else chosen)
    assert found is None or ("fp16" in found.files[0].name) == (found.variant == "fp16")


@pytest.mark.parametrize("variant", ["", ".fp16"])
def test_a_shard_that_its_index_tells_of_is_missed(tmp_path: Path, written: Callable[[str, str], Path], variant: str) -> None:
    names = [f"diffusion_pytorch_model{variant}-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = written(f"diffusion_pytorch_model.safetensors.index{variant}.json", json.dumps({"weight_map": {"a": names[0], "b": names[1]}}))
    written(names[0], "")
    found = weights_of(tmp_path)
    assert found is not None
    assert (found.index, found.missing()) == (index, [names[1]])
    written(names[1], "")
    whole = weights_of(tmp_path)
    assert whole is not None
    assert whole.missing() == []
    written(f"diffusion_pytorch_model{variant}.safetensors", "")
    again = weights_of(tmp_path)
    assert again is not None
    assert again.sharded  # as diffusers does, which asks for an index first


def test_an_index_that_names_files_elsewhere_is_missing_them(tmp_path: Path, written: Callable[[str, str], Path]) -> None:
    """They would be opened, and not hashed."""
    (tmp_path / "elsewhere.safetensors").touch()
    (tmp_path / "unet").mkdir()
    name = "unet/diffusion_pytorch_model-00001-of-00001.safetensors"
    written(name, "")
    written(
        "unet/diffusion_pytorch_model.safetensors.index.json", json.dumps({"weight_map": {"a": "../elsewhere.safetensors", "b": name[5:]}})
    )
    found = weights_of(tmp_path / "unet")
    assert found is not None
    assert found.missing() == ["../elsewhere.safetensors"]


def test_weights_under_the_name_of_another_library_are_none(tmp_path: Path, written: Callable[[str, str], Path]) -> None:
    (tmp_path / "unet").mkdir()
    written("unet/model.safetensors", "")
    assert weights_of(tmp_path / "unet") is None


def test_a_folder_of_the_hubs_cache_is_its_snapshot(tmp_path: Path, written: Callable[[str, str], Path]) -> None:
    root = tmp_path / "models--owner--name"
    for name in ("aa", "bb"):
        written(f"models--owner--name/snapshots/{name}/model_index.json", INDEX)
    with pytest.raises(InputError, match=r"holds 2 snapshots and names none .*snapshots/aa or .*snapshots/bb"):
        checkpoint_folder(str(root))
    written("models--owner--name/refs/main", "bb\n")
    assert [checkpoint_folder(str(root / place)) for place in ("", "snapshots", "snapshots/aa")] == [
        root / "snapshots/bb",
        root / "snapshots/bb",
        root / "snapshots/aa",
    ]
    assert list(checkpoint_hashes(str(root))) == ["model_index.json"]
    written("models--owner--name/refs/main", "cc")  # of a download that was broken off
    (root / "snapshots/bb/model_index.json").unlink()
    (root / "snapshots/bb").rmdir()
    assert checkpoint_folder(str(root)) == root / "snapshots/aa"

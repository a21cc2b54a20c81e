"""Random weights: the architectures are the published ones, and a folder of them is a checkpoint like any other."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPTokenizer

from nemo_edge import demo
from nemo_edge.measure.attacks.text import vocabulary
from nemo_edge.model.architectures import ARCHITECTURES, configurations, modules
from nemo_edge.model.checkpoint import open_checkpoint, value_layers
from nemo_edge.model.configuration import Configuration
from nemo_edge.model.marker import is_random
from nemo_edge.release._footprint import parts
from nemo_edge.release.random_weights import parts_of, write_random
from nemo_edge.system.errors import InputError
from nemo_edge.system.progress import Advance, Progress

CLIP_L, VAE = 123_060_480, 83_653_863
PARAMETERS = {
    "sd15": {"unet": 859_520_964, "text_encoder": CLIP_L, "vae": VAE},
    "sd21": {"unet": 865_910_724, "text_encoder": 340_387_840, "vae": VAE},
    "sdxl": {"unet": 2_567_463_684, "text_encoder": CLIP_L, "text_encoder_2": 694_659_840, "vae": VAE},
    "bk-sdm-small": {"unet": 482_346_884, "text_encoder": CLIP_L, "vae": VAE},
}
"""Of the published weights."""
WIDTHS = {
    "sd15": [320, 320, 640, 640, 1280, 1280, 1280],
    "sd21": [320, 320, 640, 640, 1280, 1280, 1280],
    "sdxl": [640] * 4 + [1280] * 30,
    "bk-sdm-small": [320, 640, 1280],
}
SMALL: dict[str, dict[str, Any]] = {
    "unet/config.json": {"sample_size": 16, "cross_attention_dim": 16, "attention_head_dim": 2, "norm_num_groups": 4},
    "vae/config.json": {"block_out_channels": [8] * 4, "norm_num_groups": 4, "layers_per_block": 1, "sample_size": 128},
    "text_encoder/config.json": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
}


def small(folder: Path, name: str, **changes: dict[str, Any]) -> str:
    """Save an architecture of the package with few channels as a folder of someone's own."""
    found = configurations(name)
    own = {path: {**config, **SMALL.get(path.replace("_2/", "/"), {}), **changes.get(path, {})} for path, config in found.items()}
    unet = own["unet/config.json"]
    unet["block_out_channels"] = [8, 16, 16, 16][: len(unet["block_out_channels"])]
    if name == "sdxl":
        own["text_encoder_2/config.json"]["projection_dim"] = 12
        unet |= {"cross_attention_dim": 32, "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 12 + 6 * 4}
    for path, config in own.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(json.dumps(config))
    return str(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


class Interrupted(Progress):
    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Advance]:
        left = total // 2

        def advance(done: int) -> None:
            nonlocal left
            left -= done
            if left < 0:
                raise KeyboardInterrupt

        yield advance


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_is_the_published_one(name: str) -> None:
    built = modules(name)
    assert {part: sum(p.numel() for p in module.parameters()) for part, module in built.items()} == PARAMETERS[name]
    assert {p.device.type for module in built.values() for p in module.parameters()} == {"meta"}
    assert [layer.width for layer in value_layers(built["unet"])] == WIDTHS[name]


def test_the_papers_neurons_of_stable_diffusion_are_5760() -> None:
    assert sum(WIDTHS["sd15"]) == 5760


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_folder_of_any_of_them_opens_and_runs(name: str, tmp_path: Path) -> None:
    folder = write_random(small(tmp_path / "own", name), tmp_path / "random")
    checkpoint = open_checkpoint(str(folder))
    assert is_random(folder) == "own"
    assert checkpoint.config.prediction_type == ("v_prediction" if name == "sd21" else "epsilon")
    assert len(value_layers(checkpoint.unet)) == len(WIDTHS[name])
    first, second = (checkpoint.encode([prompt]) for prompt in ("a pig", "naïve 猫 " * 40))
    assert not torch.equal(first["encoder_hidden_states"], second["encoder_hidden_states"])
    for component in checkpoint.components():
        sizes = {"height": 16, "width": 16} if component.sizes else {}
        feed = {key: torch.from_numpy(array) for key, array in component.example(1, **sizes).items()}
        if component.name == "unet":
            feed |= first
        with torch.no_grad():
            outputs = component.module(*feed.values())
        assert all(output.isfinite().all() and output.std() > 0 for output in outputs), component.name


def test_every_stored_tensor_arrives(tmp_path: Path) -> None:
    folder = write_random(small(tmp_path / "own", "sdxl"), tmp_path / "random")
    checkpoint = open_checkpoint(str(folder))
    for module, part in zip(checkpoint.text_encoders, ("text_encoder", "text_encoder_2"), strict=True):
        stored, loaded = load_file(folder / part / "model.safetensors"), module.state_dict()
        assert all(key.startswith(("text_model.", "text_projection.")) for key in stored)
        places = {key if key in loaded else key.removeprefix("text_model."): key for key in stored}
        assert places.keys() == loaded.keys()
        assert all(torch.equal(loaded[here], stored[there].float()) for here, there in places.items())


def test_the_same_seed_gives_the_same_bytes_whatever_the_threads(tmp_path: Path) -> None:
    own = small(tmp_path / "own", "sd15")
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        first = write_random(own, tmp_path / "first")
        torch.set_num_threads(2)
        second = write_random(own, tmp_path / "second")
    finally:
        torch.set_num_threads(threads)
    assert contents(first) == contents(second)
    other = write_random(own, tmp_path / "other", seed=1)
    assert load_file(other / "unet/diffusion_pytorch_model.safetensors").keys() == modules(own)["unet"].state_dict().keys()
    assert contents(other)["unet/diffusion_pytorch_model.safetensors"] != contents(first)["unet/diffusion_pytorch_model.safetensors"]


def test_the_weights_have_pytorchs_own_scale(tmp_path: Path) -> None:
    folder = write_random(small(tmp_path / "own", "sd15"), tmp_path / "random", "fp32")
    stored = load_file(folder / "unet/diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}
    conv, bound = stored["down_blocks.1.resnets.1.conv1.weight"], 1 / (16 * 9) ** 0.5
    assert 0.98 * bound < conv.abs().max() <= bound
    assert abs(conv.mean()) < 0.05 * bound
    torch.testing.assert_close(conv.std(), torch.tensor(bound / 3**0.5), rtol=0.05, atol=0)
    assert 0 < stored["down_blocks.1.resnets.1.conv1.bias"].abs().max() <= bound
    assert torch.equal(stored["conv_norm_out.weight"], torch.ones(8))
    assert torch.equal(stored["conv_norm_out.bias"], torch.zeros(8))
    tokens = load_file(folder / "text_encoder/model.safetensors")["text_model.embeddings.token_embedding.weight"]
    torch.testing.assert_close(tokens.std(), torch.tensor(0.02), rtol=0.01, atol=0)


def test_the_tokenizers_keep_clips_ids_and_pass_through_a_bundle(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(write_random(small(tmp_path / "own", "sdxl"), tmp_path / "random")))
    ids = checkpoint.config.token_ids(["A!", "é 猫" * 99])
    assert [t.shape for t in ids] == [(2, 77), (2, 77)]
    assert [t[0, :5].tolist() for t in ids] == [
        [49406, 320, 256, 49407, 49407],
        [49406, 320, 0, 49407, 0],
    ]  # "!" is the padding of the second
    assert all(t.max() == 49407 and t[1, -1] == 49407 for t in ids)
    checkpoint.config.save(tmp_path / "bundle", ["unet"])
    loaded = Configuration.load(tmp_path / "bundle").token_ids(["A!", "é 猫" * 99])
    assert all((a == b).all() for a, b in zip(ids, loaded, strict=True))


def test_a_tokenizer_without_a_vocabulary_has_words_to_attack_with(tmp_path: Path) -> None:
    """Each of them one token of both tokenizers, and the letters are what they were."""
    checkpoint = open_checkpoint(str(write_random(small(tmp_path / "own", "sdxl"), tmp_path / "random")))
    words = vocabulary(checkpoint)
    assert [word.text for word in words] == sorted(word.text for word in words)
    assert len(words) == 12
    assert all(512 <= place < 49406 for word in words for place in word.ids)
    assert checkpoint.config.token_ids(["cats"])[0][0, :6].tolist() == [49406, 512, 83, 338, 49407, 49407]


@pytest.mark.parametrize(("pad", "number"), [({"__type": "AddedToken", "content": "!"}, 0), ("<pad>", 49407)])
def test_the_padding_is_as_configured_where_its_token_is_known(pad: object, number: int, tmp_path: Path) -> None:
    changes = {"tokenizer/tokenizer_config.json": {"pad_token": pad, "model_max_length": 10**30}}
    folder = write_random(small(tmp_path / "own", "sd15", **changes), tmp_path / "random")
    tokenizer = CLIPTokenizer.from_pretrained(str(folder / "tokenizer"))
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.model_max_length) == (number, 49407, 77)


def test_a_tokenizer_with_a_vocabulary_is_kept(tmp_path: Path) -> None:
    changes = {"text_encoder/config.json": {"vocab_size": 514}}
    own = Path(small(tmp_path / "own", "sd15", **changes))
    for file in (demo.CHECKPOINT / "tokenizer").iterdir():
        (own / "tokenizer" / file.name).write_bytes(file.read_bytes())
    written = write_random(str(own), tmp_path / "random")
    assert contents(written / "tokenizer").items() >= {(f.name, f.read_bytes()) for f in (demo.CHECKPOINT / "tokenizer").glob("*.txt")}


def test_parts_that_are_not_drawn_leave_the_index(tmp_path: Path) -> None:
    changes = {
        "model_index.json": {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"], "requires_safety_checker": True}
    }
    folder = write_random(small(tmp_path / "own", "sd15", **changes), tmp_path / "random")
    index = json.loads((folder / "model_index.json").read_text())
    assert (index["safety_checker"], index["requires_safety_checker"]) == ([None, None], False)
    open_checkpoint(str(folder))


def test_a_finished_folder_is_kept_and_another_is_not_written_over(tmp_path: Path) -> None:
    own = small(tmp_path / "own", "sd15")
    folder = write_random(own, tmp_path / "random")
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    os.utime(weights, (1, 1))
    assert write_random(own, folder) == folder
    assert weights.stat().st_mtime == 1
    with pytest.raises(InputError, match="is not own in fp16 with seed 1: remove it"):
        write_random(own, folder, seed=1)
    small(tmp_path / "own", "sd15", **{"vae/config.json": {"scaling_factor": 0.5}})
    with pytest.raises(InputError, match="remove it"):
        write_random(own, folder)


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    own = small(tmp_path / "own", "sd15")
    with pytest.raises(KeyboardInterrupt):
        write_random(own, tmp_path / "out" / "random", progress=Interrupted())
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_what_is_counted_before_the_weights_are_there_is_what_they_are(name: str, tmp_path: Path) -> None:
    own = small(tmp_path / "own", name)
    assert parts_of(own, Progress()) == parts(str(write_random(own, tmp_path / "random")))
    counted = {part.name: part.parameters for part in parts_of(name, Progress())}
    assert counted == PARAMETERS[name]


def test_an_unknown_architecture_names_the_known(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"sd14 is not known: give one of sd15, sd21, sdxl, bk-sdm-small, or a folder"):
        write_random("sd14", tmp_path / "random")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_index.json": {"_class_name": "FluxPipeline"}}, "is a FluxPipeline"),
        ({"model_index.json": {"vae": [None, None]}}, "names no vae"),
        ({"model_index.json": {"unet": ["diffusers", "UNet2DModel"]}}, "is of a UNet2DModel"),
        ({"unet/config.json": {"down_block_types": ["NoBlock"]}}, "does not make a UNet2DConditionModel"),
        ({"text_encoder/config.json": {"vocab_size": 100}}, "vocab_size of the text encoder is 100"),
    ],
)
def test_an_architecture_that_cannot_be_written_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        write_random(small(tmp_path / "own", "sd15", **changes), tmp_path / "random")
    assert [p.name for p in tmp_path.iterdir()] == ["own"]


def test_a_missing_configuration_is_named(tmp_path: Path) -> None:
    own = small(tmp_path / "own", "sd15")
    (Path(own) / "vae/config.json").unlink()
    with pytest.raises(InputError, match=r"vae/config.json does not exist: the architecture is not whole"):
        write_random(own, tmp_path / "random")

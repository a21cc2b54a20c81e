"""LoRAs fused before anything else: the very weights that diffusers makes of them, and a line for what does not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from originals import of_sd1, refused, write
from safetensors.torch import save_file
from torch import Tensor

from nemo_edge.model.checkpoint import Checkpoint, open_checkpoint, open_parts, value_layers
from nemo_edge.recipe.settings import CheckpointSettings, LoraSettings

VALUE = "down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_v"


def pair(name: str, taken: int, given: int, rank: int = 2) -> dict[str, Tensor]:
    """One layer in kohya's names, its alpha half its rank."""
    down, up = torch.randn(rank, taken), torch.randn(given, rank)
    return {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(rank / 2)}


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of the toy's UNet and text encoder, in kohya's names."""
    torch.manual_seed(5)
    text = "lora_te_text_model_encoder_layers_0_"
    tensors = {
        **pair(f"lora_unet_{VALUE}", 16, 8),
        **pair(f"{text}self_attn_q_proj", 16, 16),
        **pair(f"{text}self_attn_out_proj", 16, 16),
        **pair(f"{text}mlp_fc1", 16, 32),
    }
    path = tmp_path_factory.mktemp("lora") / "mine.safetensors"
    save_file(tensors, path)
    return path


def fused_by_diffusers(cls: type, folder: Path, lora: Path, scale: float, components: list[str]) -> dict[str, dict[str, Tensor]]:
    pipeline = cls.from_pretrained(str(folder))
    pipeline.load_lora_weights(str(lora.parent), weight_name=lora.name)
    pipeline.fuse_lora(components=components, lora_scale=scale)
    pipeline.unload_lora_weights()
    return {name: getattr(pipeline, name).state_dict() for name in components}


def check_weights(found: Checkpoint, expected: dict[str, dict[str, Tensor]]) -> None:
    modules = {"unet": found.unet, "text_encoder": found.text_encoders[0], "text_encoder_2": found.text_encoders[-1]}
    for name, weights in expected.items():
        own = modules[name].state_dict()
        assert own.keys() == weights.keys()
        assert all(torch.equal(own[key], value) for key, value in weights.items())


@pytest.mark.parametrize("scale", [1.0, 0.5, -1.25])
def test_fused_weights_are_diffusers_own_bit_for_bit(toy_folder: Path, toy: Checkpoint, lora: Path, scale: float) -> None:
    found = open_checkpoint(str(toy_folder), loras=[LoraSettings(path=lora, scale=scale)])
    expected = fused_by_diffusers(StableDiffusionPipeline, toy_folder, lora, scale, ["unet", "text_encoder"])
    check_weights(found, expected)
    name = value_layers(toy.unet)[0].name
    assert not torch.equal(found.unet.get_submodule(name).weight, toy.unet.get_submodule(name).weight)
    feed = (torch.zeros(1, 4, 8, 8), torch.tensor([3.0]), torch.ones(1, 77, 16))
    assert not torch.equal(found.unet(*feed).sample, toy.unet(*feed).sample)


def test_a_lora_of_xl_is_fused_into_all_its_parts(toy_sdxl: Checkpoint, tmp_path: Path) -> None:
    torch.manual_seed(6)
    encoders = {f"{te}_text_model_encoder_layers_1_self_attn_out_proj": (16, 16) for te in ("lora_te1", "lora_te2")}
    names = {"lora_unet_mid_block_attentions_0_transformer_blocks_2_attn2_to_v": (32, 16), **encoders}
    path = tmp_path / "xl.safetensors"
    save_file({key: value for name, sizes in names.items() for key, value in pair(name, *sizes).items()}, path)
    folder, parts = Path(toy_sdxl.source), ["unet", "text_encoder", "text_encoder_2"]
    found = open_checkpoint(str(folder), loras=[LoraSettings(path=path, scale=0.7)])
    check_weights(found, fused_by_diffusers(StableDiffusionXLPipeline, folder, path, 0.7, parts))


def test_a_scale_of_nought_changes_nothing(toy_folder: Path, toy: Checkpoint, lora: Path) -> None:
    found = open_checkpoint(str(toy_folder), loras=[LoraSettings(path=lora, scale=0)])
    check_weights(found, {"unet": toy.unet.state_dict(), "text_encoder": toy.text_encoders[0].state_dict()})


def test_several_loras_are_fused_one_after_the_other(toy_folder: Path, lora: Path, tmp_path: Path) -> None:
    torch.manual_seed(7)
    second = tmp_path / "second.safetensors"
    save_file(pair(f"lora_unet_{VALUE}", 16, 8), second)
    found = open_checkpoint(str(toy_folder), loras=[LoraSettings(path=lora), LoraSettings(path=second, scale=0.3)])
    pipeline = StableDiffusionPipeline.from_pretrained(str(toy_folder))
    for path, scale in ((lora, 1.0), (second, 0.3)):
        pipeline.load_lora_weights(str(path.parent), weight_name=path.name)
        pipeline.fuse_lora(lora_scale=scale)
        pipeline.unload_lora_weights()
    check_weights(found, {"unet": pipeline.unet.state_dict()})
    assert list(found.fused) == ["loras/0/mine.safetensors × 1.0", "loras/1/second.safetensors × 0.3"]


def test_a_part_alone_gets_the_same_weights(toy_folder: Path, lora: Path) -> None:
    source = CheckpointSettings(path=str(toy_folder), loras=[{"path": lora, "scale": 0.5}])
    whole, part = open_checkpoint(source.path, loras=source.loras), open_parts(source, ("text_encoder",))
    check_weights(part, {"text_encoder": whole.text_encoders[0].state_dict()})
    assert part.unet.device.type == "meta"
    half = open_parts(source, ("unet",), torch.float16).unet.get_submodule(value_layers(part.unet)[0].name).weight
    assert torch.equal(half, whole.unet.get_submodule(value_layers(part.unet)[0].name).weight.half())  # summed in float32


def test_a_lora_is_fused_into_a_single_file(tmp_path: Path) -> None:
    torch.manual_seed(8)
    model = write(tmp_path / "sd1.safetensors", of_sd1())
    save_file(pair(f"lora_unet_{VALUE}", 64, 32), tmp_path / "lora.safetensors")
    name = value_layers(open_checkpoint(str(model)).unet)[0].name
    plain, fused = (
        open_checkpoint(str(model), loras=loras).unet.get_submodule(name).weight
        for loras in ((), (LoraSettings(path=tmp_path / "lora.safetensors"),))
    )
    assert not torch.equal(plain, fused)


def test_file_and_scale_are_part_of_the_hash(toy_folder: Path, toy: Checkpoint, lora: Path) -> None:
    hashes = {open_checkpoint(str(toy_folder), parts=(), loras=[LoraSettings(path=lora, scale=scale)]).content_hash() for scale in (1, 0.5)}
    assert len({toy.content_hash(), *hashes}) == 3


@pytest.mark.parametrize("parts", [None, ()])
@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (lambda: pair("lora_unet_down_blocks_0_attentions_5_transformer_blocks_0_attn2_to_v", 16, 8), "another architecture"),
        (lambda: pair(f"lora_unet_{VALUE}", 768, 320), "another architecture"),
        (lambda: {**pair(f"lora_unet_{VALUE}", 16, 8), **pair("lora_unet_up_blocks_9_resnets_0_conv1", 8, 8)}, "2 layers, of which the"),
        (lambda: {**pair(f"lora_unet_{VALUE}", 16, 8), **pair("lora_te2_text_model_encoder_layers_0_mlp_fc1", 8, 8)}, "2 layers, of which"),
        (
            lambda: {
                f"down_blocks.0.attn2.processor.to_v_lora.{k}.weight": torch.zeros(*n) for k, n in {"down": (2, 16), "up": (8, 2)}.items()
            },
            "does not fit",
        ),
        (lambda: {**pair(f"lora_unet_{VALUE}", 16, 8), f"lora_unet_{VALUE}.dora_scale": torch.ones(8, 1)}, "is a DoRA"),
        (lambda: {f"lora_unet_{VALUE}.hada_w1_a": torch.ones(8, 1)}, "is a LoHa"),
        (lambda: {**pair(f"lora_unet_{VALUE}", 16, 8), "lora_unet_conv_in.diff_b": torch.ones(8)}, r"holds lora_unet_conv_in\.diff_b"),
        (
            lambda: {**pair(f"lora_unet_{VALUE}", 16, 8), "lora_unet_conv_in.lora_down.weight": torch.ones(2, 4, 3, 3)},
            "is not whole: of lora_unet",
        ),
        (lambda: {f"lora_unet_{VALUE}.lora_up.weight": torch.ones(8, 2)}, "is not whole"),
        (lambda: {"emb_params": torch.zeros(3, 16)}, "is no LoRA"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_weight_is_read(
    toy_folder: Path, tmp_path: Path, tensors: Callable[[], dict[str, Tensor]], words: str, parts: tuple[str, ...] | None
) -> None:
    save_file(tensors(), tmp_path / "lora.safetensors")
    refused(lambda: open_checkpoint(str(toy_folder), parts=parts, loras=[LoraSettings(path=tmp_path / "lora.safetensors")]), words)


def test_files_that_are_no_loras_are_called_by_their_name(toy_folder: Path, tmp_path: Path, written: Callable[[str, bytes], Path]) -> None:
    pointer = written("pointer.safetensors", b"version https://git-lfs.github.com/spec/v1\n")
    for path, words in ((pointer, "is a pointer of Git LFS"), (written("lora.bin", b"x"), r"is no \.safetensors file")):
        refused(lambda p=path: open_checkpoint(str(toy_folder), parts=(), loras=[LoraSettings(path=p)]), words)
    for path, words in ((tmp_path, "is a folder"), (tmp_path / "none.safetensors", "does not exist")):
        refused(lambda p=path: open_checkpoint(str(toy_folder), parts=(), loras=[LoraSettings(path=p)]), words)

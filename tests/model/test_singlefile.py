"""Whole models in one file: opened without a network, with the very outputs of the models they were made from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from originals import of_sd1, of_sd2, of_sdxl, original_text, original_unet, original_vae, refused, sdxl_unet, write

from nemo_edge.model.checkpoint import Checkpoint, open_checkpoint, value_layers
from nemo_edge.model.singlefile import laid_out

V_NOTE = "does not say what its UNet predicts: v is assumed"


@pytest.fixture(scope="module")
def sd1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("file") / "sd1.safetensors", of_sd1())


@torch.no_grad()
def check_same(found: Checkpoint, unet: torch.nn.Module, **more: torch.Tensor) -> None:
    torch.manual_seed(3)
    wide = unet.config.cross_attention_dim
    feed = (torch.randn(1, 4, 8, 8), torch.tensor([7.0]), torch.randn(1, 77, wide))
    given = {"added_cond_kwargs": more} if more else {}
    assert torch.equal(found.unet(*feed, **given).sample, unet(*feed, **given).sample)
    latents = torch.randn(1, 4, 4, 4)
    assert torch.equal(found.vae.decode(latents).sample, original_vae().decode(latents).sample)


def test_a_whole_model_gives_its_outputs_back_bit_for_bit(sd1: Path) -> None:
    found = open_checkpoint(str(sd1))
    check_same(found, original_unet())
    ids = torch.tensor([[49406, 320, 1125, 539, 320, 2368, 49407]])
    assert torch.equal(found.text_encoders[0](ids).last_hidden_state, original_text()(ids).last_hidden_state)
    assert [layer.width for layer in value_layers(found.unet)] == [32, 64]
    assert found.notes == ()
    assert set(found.files) == {"sd1.safetensors"}


def test_prompts_are_read_by_clips_own_vocabulary(sd1: Path) -> None:
    ids = open_checkpoint(str(sd1), parts=()).config.token_ids(["a photo of a cat", "naïve café, 123"])[0]
    assert ids[0, :8].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407, 49407]
    assert ids[1, :8].tolist() == [49406, 1097, 35689, 563, 15304, 267, 272, 273]


def test_a_model_of_2_x_is_opened_and_what_is_assumed_is_said(tmp_path: Path) -> None:
    found = open_checkpoint(str(write(tmp_path / "sd2.safetensors", of_sd2())))
    check_same(found, original_unet(attention_head_dim=(1, 1), use_linear_projection=True))
    assert found.config.prediction_type == "v_prediction"
    assert found.config.latent_shape == (4, 96, 96)
    assert V_NOTE in found.notes[0]
    assert "sd2.yaml" in found.notes[0]
    ids = found.config.token_ids(["a photo"])[0]
    assert ids[0, :6].tolist() == [49406, 320, 1125, 49407, 0, 0]  # as OpenCLIP pads


def test_what_the_unet_predicts_is_told_by_the_configuration_beside_it(tmp_path: Path) -> None:
    path = write(tmp_path / "sd2.safetensors", of_sd2())
    before = open_checkpoint(str(path), parts=()).content_hash()
    (tmp_path / "sd2.yaml").write_text("model:\n  params:\n    image_size: 64\n    parameterization: eps\n")
    found = open_checkpoint(str(path), parts=())
    assert (found.config.prediction_type, found.config.latent_shape, found.notes) == ("epsilon", (4, 64, 64), ())
    assert found.content_hash() != before


def test_a_model_of_xl_is_opened_with_both_text_encoders(tmp_path: Path) -> None:
    found = open_checkpoint(str(write(tmp_path / "xl.safetensors", of_sdxl())))
    assert found.config.family == "sdxl"
    check_same(found, sdxl_unet(), text_embeds=torch.randn(1, 48), time_ids=torch.randn(1, 6))
    encoded = found.encode(["a cat"])
    assert encoded["encoder_hidden_states"].shape == (1, 77, 128)
    assert encoded["text_embeds"].shape == (1, 48)


@pytest.mark.parametrize(
    ("marks", "notes", "expected"),
    [
        ({}, {}, ("epsilon", None)),
        ({"v_pred": torch.zeros(0)}, {}, ("v_prediction", None)),
        ({"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, {}, ("v_prediction", True)),
        ({}, {"modelspec.prediction_type": "v"}, ("v_prediction", None)),
    ],
)
def test_marks_of_a_file_are_read(
    tmp_path: Path, marks: dict[str, torch.Tensor], notes: dict[str, str], expected: tuple[str, object]
) -> None:
    found = open_checkpoint(str(write(tmp_path / "file.safetensors", {**of_sd1(), **marks}, **notes)), parts=())
    assert (found.config.prediction_type, found.config.scheduler.get("rescale_betas_zero_snr") or None) == expected


def test_parts_that_are_not_wanted_have_no_weights(sd1: Path) -> None:
    found = open_checkpoint(str(sd1), parts=("vae",))
    assert found.unet.device.type == "meta"
    assert found.vae.device.type == "cpu"


def test_a_half_precision_file_is_held_in_float32(tmp_path: Path) -> None:
    path = write(tmp_path / "half.safetensors", {name: value.half() for name, value in of_sd1().items()})
    weight = open_checkpoint(str(path)).unet.conv_in.weight
    assert torch.equal(weight, original_unet().conv_in.weight.half().float())


def test_a_pickle_of_a_whole_model_is_opened_where_it_is_allowed(tmp_path: Path) -> None:
    torch.save({"state_dict": of_sd1()}, tmp_path / "model.ckpt")
    refused(lambda: open_checkpoint(str(tmp_path / "model.ckpt")), "is a pickle")
    check_same(open_checkpoint(str(tmp_path / "model.ckpt"), allow_pickle=True), original_unet())


def test_the_configurations_of_a_file_are_gone_afterwards(sd1: Path) -> None:
    with laid_out(sd1) as layout:
        assert (layout.folder / "tokenizer" / "vocab.json").is_file()
    assert not layout.folder.exists()


@pytest.mark.parametrize("lost", ["model.diffusion_model.out.0.bias", "first_stage_model.decoder.mid.attn_1.q.weight"])
def test_a_file_that_lacks_a_tensor_is_refused(tmp_path: Path, lost: str) -> None:
    tensors = of_sd1()
    del tensors[lost]
    refused(lambda: open_checkpoint(str(write(tmp_path / "file.safetensors", tensors)), parts=()), "is not whole: its .* lacks 1 of")


@pytest.mark.parametrize("name", ["label_emb.0.0.weight", "input_blocks.1.1.extra.weight"])
def test_a_unet_with_more_than_is_known_is_refused(tmp_path: Path, name: str) -> None:
    tensors = {**of_sd1(), f"model.diffusion_model.{name}": torch.zeros(4, 4)}
    refused(
        lambda: open_checkpoint(str(write(tmp_path / "file.safetensors", tensors)), parts=()), f"its UNet also has .*{name.split('.')[-2]}"
    )


@pytest.mark.parametrize(
    ("channels", "words"), [(9, "an inpainting model"), (8, "InstructPix2Pix"), (5, "its UNet takes 5 channels, its latents have 4")]
)
def test_a_unet_of_other_channels_is_refused(tmp_path: Path, channels: int, words: str) -> None:
    path = write(tmp_path / "file.safetensors", of_sd1(original_unet(in_channels=channels)))
    refused(lambda: open_checkpoint(str(path), parts=()), words)


def test_a_text_encoder_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    tensors = of_sd1()
    name = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
    found = open_checkpoint(str(write(tmp_path / "file.safetensors", {**tensors, name: tensors[name][:100]})))
    refused(lambda: found.encode(["a cat"]), "gives ids up to 49407, but its text encoder knows 100")

"""Which kinds of checkpoint are taken and which are refused in a line, from their JSON files alone."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from conftest import other_vae, save_toy_sd, toy_unet
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file
from transformers import CLIPTokenizer

from nemo_edge.model import inspection
from nemo_edge.model._betas import _SCHEDULERS
from nemo_edge.model.checkpoint import Checkpoint, open_checkpoint
from nemo_edge.model.configuration import _KIN, _UNSAID, Configuration
from nemo_edge.model.inspection import check_folder, check_kind, check_layers
from nemo_edge.release.doctor import diagnose
from nemo_edge.system.errors import InputError, MissingDependency

INDEX, UNET, VAE, NOISE, TEXT = (
    "model_index.json",
    "unet/config.json",
    "vae/config.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
)
TRAINED = [0.1] * 1000


def edited(folder: Path, file: str, changes: dict[str, Any], gone: tuple[str, ...] = ()) -> Path:
    """Change a JSON file of a copy, and take keys out."""
    config = {**json.loads((folder / file).read_text()), **changes}
    (folder / file).write_text(json.dumps({key: value for key, value in config.items() if key not in gone}))
    return folder


@pytest.fixture
def sd(toy_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(toy_folder, tmp_path / "sd"))


@pytest.fixture
def xl(toy_sdxl: Checkpoint, tmp_path: Path) -> Path:
    return Path(shutil.copytree(toy_sdxl.source, tmp_path / "xl"))


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    (INDEX, {"_class_name": ["my_pipeline", "MyPipeline"]}, r"its pipeline is code of its own \(my_pipeline MyPipeline\)"),
    (INDEX, {"_class_name": "MyPipeline"}, r"is a MyPipeline; nemo-edge takes .*; if it draws text-to-image as a StableDiffusionPipeline"),
    (
        INDEX,
        {"_class_name": "FluxPipeline", "unet": [None, None]},
        "is a FluxPipeline; nemo-edge takes .*XLPipeline, LatentConsistencyModelPipeline$",
    ),
    (INDEX, {"_class_name": "StableDiffusionXLImg2ImgPipeline"}, "names no text_encoder_2"),
    (INDEX, {"unet": ["my_unet", "UNet2DConditionModel"]}, r"its unet is code of its own \(my_unet UNet2DConditionModel\)"),
    (INDEX, {"unet": ["diffusers", "UNetMotionModel"]}, "its unet is a UNetMotionModel; nemo-edge takes UNet2DConditionModel"),
    (INDEX, {"vae": ["diffusers", "AsymmetricAutoencoderKL"]}, "its vae is a AsymmetricAutoencoderKL; nemo-edge takes AutoencoderKL"),
    (INDEX, {"text_encoder": ["transformers", "BertModel"]}, "its text_encoder is a BertModel; nemo-edge takes CLIPTextModel"),
    (INDEX, {"tokenizer": ["transformers", "BertTokenizer"]}, "its tokenizer is a BertTokenizer; nemo-edge takes CLIPTokenizer"),
    (INDEX, {"vae": [None, None]}, "names no vae"),
    (UNET, {"_class_name": "UNet3DConditionModel"}, "its unet is a UNet3DConditionModel by its own configuration"),
    (TEXT, {"model_type": "bert"}, "its text_encoder is of the kind bert; nemo-edge takes CLIP's"),
    (TEXT, {"auto_map": {"AutoModel": "mine.py--M"}}, "its text_encoder wants code of its own"),
    (UNET, {"quantization_config": {"quant_method": "bitsandbytes"}}, r"its unet is quantized \(quantization_config in its config\.json\)"),
    (UNET, {"in_channels": 9}, r"takes 9 channels \(inpainting\), and its VAE's latents have 4"),
    (UNET, {"in_channels": 8}, r"takes 8 channels \(editing by instructions\), and its VAE's latents have 4"),
    (UNET, {"out_channels": 8}, "takes 4 channels and gives 8"),
    (UNET, {"num_class_embeds": 10}, r"wants class labels \(num_class_embeds is 10\)"),
    (UNET, {"class_embed_type": "timestep"}, "wants class labels"),
    (UNET, {"encoder_hid_dim_type": "ip_image_proj"}, "wants projected or image embeddings"),
    (UNET, {"addition_embed_type": "text_image"}, "addition_embed_type is text_image"),
    (UNET, {"addition_embed_type": "text_time"}, "addition_embed_type is text_time"),
    (UNET, {"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}, "has a UNetMidBlock2DSimpleCrossAttn"),
    (UNET, {"cross_attention_dim": 24}, "attends to 24 values a token, and its text encoders give 16"),
    (UNET, {"cross_attention_dim": [16, 16, 32, 32]}, "attends to 16 and 32 values a token"),
    (UNET, {"sample_size": None}, r"does not say the height and width .*sample_size is null.*\[64, 64\] for pictures of 512 x 512"),
    (UNET, {"sample_size": [8, 0]}, "does not say the height and width"),
    (VAE, {"latent_channels": 16}, "takes 4 channels, and its VAE's latents have 16"),
    (VAE, {"out_channels": 6}, "its VAE gives 6 channels"),
    (VAE, {"scaling_factor": "0.18"}, 'scaling_factor is "0.18": give the number'),
    (VAE, {"scaling_factor": None}, "scaling_factor is null: give the number"),
    (VAE, {"latents_mean": [0.0, 0.1]}, "latents_mean are not 4 numbers"),
    (INDEX, {"scheduler": ["diffusers", "EDMEulerScheduler"]}, "is a EDMEulerScheduler, which has no schedule of betas"),
    (INDEX, {"scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]}, "no schedule of betas"),
    (NOISE, {"_class_name": "EDMDPMSolverMultistepScheduler"}, "is a EDMDPMSolverMultistepScheduler, which has no schedule of betas"),
    (NOISE, {"sigma_data": 0.5}, r"is of EDM \(sigma_data\), without a schedule of betas"),
    (NOISE, {"use_flow_sigmas": True}, r"is of flow matching \(use_flow_sigmas\)"),
    (NOISE, {"shift": 3.0}, r"is of flow matching \(shift\)"),
    (NOISE, {"timestep_type": "continuous"}, "continuous noise levels"),
    (NOISE, {"prediction_type": "flow_prediction"}, "prediction_type is flow_prediction; nemo-edge takes epsilon"),
    (NOISE, {"rescale_betas_zero_snr": True}, "ends in pure noise .* set prediction_type to what it was trained for"),
    (NOISE, {"trained_betas": [*TRAINED[:-1], 1.0]}, "ends in pure noise"),
    (NOISE, {"trained_betas": [0.1, 0.2]}, "trained_betas are not 1000 numbers"),
    (NOISE, {"beta_schedule": "sigmoid"}, "beta_schedule is sigmoid"),
    (NOISE, {"beta_end": None}, "beta_end is None, which is no beta"),
]


@pytest.mark.parametrize(("scheduler", "library"), [("LMSDiscreteScheduler", "scipy"), ("DPMSolverSDEScheduler", "torchsde")])
def test_a_scheduler_whose_library_is_absent_is_told_before_the_work(
    sd: Path, scheduler: str, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    edited(sd, INDEX, {"scheduler": ["diffusers", scheduler]})
    edited(sd, NOISE, {"_class_name": scheduler})
    monkeypatch.setattr(inspection, "find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match=f"its {scheduler} needs {library}: pip install {library}"):
        check_folder(sd)


@pytest.mark.parametrize(("file", "changes", "reason"), REFUSED)
def test_a_kind_that_is_not_taken_is_refused_in_one_line(sd: Path, file: str, changes: dict[str, Any], reason: str) -> None:
    edited(sd, file, changes)
    with pytest.raises(InputError, match=reason) as caught:
        open_checkpoint(str(sd))
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=reason):
        diagnose(str(sd))


@pytest.mark.parametrize(
    ("file", "changes", "reason"),
    [
        (INDEX, {"text_encoder": [None, None], "tokenizer": [None, None]}, "has no first text encoder, as the refiner"),
        (INDEX, {"requires_aesthetics_score": True}, "wants an aesthetic score, as the refiner"),
        (INDEX, {"text_encoder_2": ["transformers", "CLIPTextModel"]}, "nemo-edge takes CLIPTextModelWithProjection"),
        (UNET, {"addition_embed_type": None}, "is none of Stable Diffusion XL"),
        (UNET, {"projection_class_embeddings_input_dim": 12 + 5 * 4}, "adds 32 values to the time, where .* are 36"),
        (UNET, {"sample_size": None}, r"\[128, 128\] for pictures of 1024 x 1024"),
    ],
)
def test_what_is_not_xl_is_refused_in_one_line(xl: Path, file: str, changes: dict[str, Any], reason: str) -> None:
    edited(xl, file, changes)
    with pytest.raises(InputError, match=reason):
        open_checkpoint(str(xl))


TAKEN: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    *((INDEX, {"_class_name": name}, ()) for name in ("StableDiffusionImg2ImgPipeline", "LatentConsistencyModelPipeline")),
    (INDEX, {"feature_extractor": ["transformers", "CLIPImageProcessor"]}, ()),
    (INDEX, {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"], "requires_safety_checker": True}, ()),
    (INDEX, {"image_encoder": ["transformers", "CLIPVisionModelWithProjection"]}, ()),
    (NOISE, {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}, ()),
    (NOISE, {"trained_betas": TRAINED}, ()),
    (UNET, {"time_cond_proj_dim": None}, ("class_embed_type", "encoder_hid_dim_type", "mid_block_type", "in_channels", "out_channels")),
    (UNET, {"sample_size": [16, 24]}, ()),
    (VAE, {}, ("scaling_factor", "force_upcast", "latents_mean", "latents_std", "shift_factor", "latent_channels")),
    (NOISE, {"_class_name": "DDIMScheduler"}, ("prediction_type", "num_train_timesteps", "timestep_spacing", "rescale_betas_zero_snr")),
]


@pytest.mark.parametrize(("file", "changes", "gone"), TAKEN)
def test_what_people_have_is_opened(sd: Path, toy: Checkpoint, file: str, changes: dict[str, Any], gone: tuple[str, ...]) -> None:
    opened = open_checkpoint(str(edited(sd, file, changes, gone)))
    read = Configuration.load(sd)
    own = "LatentConsistencyModelPipeline" if "LatentConsistencyModelPipeline" in changes.values() else "StableDiffusionPipeline"
    assert opened.config.index["_class_name"] == read.index["_class_name"] == own
    assert torch.equal(opened.unet.get_parameter("conv_in.weight"), toy.unet.get_parameter("conv_in.weight"))
    assert (read.latent_shape, read.factor) == (opened.config.latent_shape, opened.config.factor)
    assert read.scheduler["num_train_timesteps"] == opened.config.scheduler["num_train_timesteps"] == 1000
    assert read.vae["scaling_factor"] == opened.config.vae["scaling_factor"]


def test_a_weight_is_needed_in_every_part(sd: Path) -> None:
    (sd / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(InputError, match="holds no weights in vae"):
        check_folder(sd)


def test_a_tokenizer_without_its_words_is_refused(sd: Path) -> None:
    (sd / "tokenizer" / "tokenizer.json").unlink()
    (sd / "tokenizer" / "vocab.json").unlink(missing_ok=True)
    with pytest.raises(InputError, match=r"lacks tokenizer/vocab\.json and merges\.txt"):
        check_folder(sd)


def test_broken_and_absent_configurations_are_named(sd: Path) -> None:
    (sd / VAE).write_text("{")
    with pytest.raises(InputError, match=r"vae/config\.json cannot be read"):
        check_kind(sd)
    (sd / VAE).unlink()
    with pytest.raises(InputError, match=r"vae/config\.json does not exist: the checkpoint was not copied whole"):
        check_kind(sd)


def test_code_beside_the_parts_is_not_run(sd: Path, tmp_path: Path) -> None:
    for name in ("pipeline.py", "unet/my_unet.py", "my_pipeline.py"):
        (sd / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass MyPipeline: pass\n")
        with pytest.raises(InputError, match="which nemo-edge does not run"):
            open_checkpoint(str(sd))
        (sd / name).unlink()
    open_checkpoint(str(sd))
    edited(sd, INDEX, {"_class_name": ["my_pipeline", "MyPipeline"], "unet": ["my_unet", "MyUNet"]})
    with pytest.raises(InputError, match="which nemo-edge does not run"):
        open_checkpoint(str(sd))
    assert not (tmp_path / "ran").exists()


def test_a_size_of_before_diffusers_0_9_is_corrected_wherever_it_is_read(sd: Path) -> None:
    edited(sd, UNET, {"_diffusers_version": "0.6.0", "sample_size": 8})
    assert open_checkpoint(str(sd)).config.latent_shape == Configuration.load(sd).latent_shape == (4, 64, 64)
    edited(sd, UNET, {"sample_size": [8, 12]})
    assert open_checkpoint(str(sd)).config.latent_shape == Configuration.load(sd).latent_shape == (4, 8, 12)


@pytest.mark.parametrize(("length", "expected"), [(None, 16), (512, 16), (12, 12)])
def test_a_tokenizer_gives_as_many_tokens_as_its_encoder_takes(sd: Path, length: int | None, expected: int) -> None:
    edited(sd, "tokenizer/tokenizer_config.json", {"model_max_length": length}, () if length else ("model_max_length",))
    opened = open_checkpoint(str(sd))
    assert opened.encode(["a pig"])["encoder_hidden_states"].shape == (1, expected, 16)
    opened.config.save(sd.parent / "bundle", ["unet"])
    assert [ids.shape for ids in Configuration.load(sd.parent / "bundle").token_ids(["a pig"])] == [(1, expected)]
    assert json.loads((sd.parent / "bundle/tokenizer/tokenizer_config.json").read_text())["model_max_length"] == expected


def test_a_tiny_vae_is_opened_and_decodes(sd: Path) -> None:
    tiny = other_vae(sd)
    edited(sd, VAE, {}, ("block_out_channels", "scaling_factor", "force_upcast"))
    opened, latents = open_checkpoint(str(sd)), torch.randn(1, 4, 16, 16)
    read = Configuration.load(sd)
    assert (opened.config.factor, read.factor, read.vae["scaling_factor"]) == (2, 2, 1.0)
    with torch.no_grad():
        assert torch.equal(opened.vae_component().module(latents)[0], tiny.decode(latents).sample)


def test_layers_without_value_neurons_are_told_from_the_configuration() -> None:
    plain = toy_unet(down_block_types=("DownBlock2D",) * 4, mid_block_type="UNetMidBlock2D").config
    with pytest.raises(InputError, match="no cross-attention in its down and mid blocks"):
        check_layers(plain, "paper")
    check_layers(plain, "all")
    check_layers(toy_unet(mid_block_type=None).config, "paper")


@pytest.mark.parametrize(("part", "cls"), [("unet", UNet2DConditionModel), ("vae", AutoencoderKL)])
def test_what_a_configuration_does_not_say_is_what_diffusers_takes(part: str, cls: Callable[..., Any]) -> None:
    own = inspect.signature(cls.__init__).parameters  # type: ignore[misc]
    assert {key: own[key].default for key in _UNSAID[part]} == dict(_UNSAID[part])


def test_every_class_that_is_named_is_one_of_diffusers() -> None:
    gone = {"StableDiffusionInpaintPipelineLegacy", "StableDiffusionKDiffusionPipeline", "StableDiffusionXLKDiffusionPipeline"}
    assert [name for name in (*_SCHEDULERS, *_KIN) if not hasattr(diffusers, name) and name not in gone] == []


def test_an_old_checkpoint_is_opened(tmp_path: Path, tokenizer: CLIPTokenizer) -> None:
    folder = save_toy_sd(tmp_path / "old", tokenizer)
    noise = {"_class_name": "PNDMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    (folder / NOISE).write_text(json.dumps({**noise, "skip_prk_steps": True, "_diffusers_version": "0.6.0"}))
    edited(folder, INDEX, {"scheduler": ["diffusers", "PNDMScheduler"], "_diffusers_version": "0.6.0"})
    opened = open_checkpoint(str(folder))
    opened.config.save(tmp_path / "bundle", ["unet"])
    shutil.copy(tmp_path / "bundle/tokenizer/vocab.json", folder / "tokenizer")
    shutil.copy(tmp_path / "bundle/tokenizer/merges.txt", folder / "tokenizer")
    before = opened.encode(["a red pig"])["encoder_hidden_states"]
    (folder / "tokenizer/tokenizer.json").unlink()
    assert torch.equal(open_checkpoint(str(folder)).encode(["a red pig"])["encoder_hidden_states"], before)
    weights = load_file(folder / "unet/diffusion_pytorch_model.safetensors")
    assert torch.equal(opened.unet.get_parameter("conv_in.weight"), weights["conv_in.weight"])

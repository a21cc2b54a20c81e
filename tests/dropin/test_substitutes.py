"""What stands in for diffusers' modules answers as they do, exactly, since PyTorch itself runs it here; and says what it cannot do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from nemo_edge.backends.torch import open_runner
from nemo_edge.dropin.substitutes import EngineDecoder, EngineTextEncoder, EngineUNet
from nemo_edge.model.checkpoint import Checkpoint, value_layers
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.model.surgery import gate, silenced
from nemo_edge.system.errors import InputError


def some(checkpoint: Checkpoint) -> NeuronSet:
    layers = value_layers(checkpoint.unet)
    return NeuronSet.from_lists(layers, [range(0, layer.width, 2) for layer in layers])


def unet_of(checkpoint: Checkpoint, *, masked: bool = True) -> EngineUNet:
    component = checkpoint.unet_component()
    if masked:
        component = gate(component, checkpoint.unet, value_layers(checkpoint.unet))
    return EngineUNet(open_runner(component), checkpoint.config, some(checkpoint))


def text_encoder_of(checkpoint: Checkpoint, index: int = 0) -> EngineTextEncoder:
    return EngineTextEncoder(open_runner(checkpoint.text_component(index)), checkpoint.config.text_encoders[index])


def decoder_of(checkpoint: Checkpoint) -> EngineDecoder:
    return EngineDecoder(open_runner(checkpoint.vae_component()), checkpoint.config.vae)


def arguments(checkpoint: Checkpoint, rows: int = 4) -> dict[str, Any]:
    """What a pipeline calls a UNet with."""
    feed = {name: torch.from_numpy(array) for name, array in checkpoint.unet_component().example(rows).items()}
    added = {name: feed[name] for name in ("text_embeds", "time_ids") if name in feed}
    conditions: dict[str, Any] = {"timestep_cond": None, "cross_attention_kwargs": None, "added_cond_kwargs": added or None}
    return {"sample": feed["sample"], "encoder_hidden_states": feed["encoder_hidden_states"], **conditions, "return_dict": False}


@pytest.fixture(params=["sd", "sdxl"])
def checkpoint(request: pytest.FixtureRequest, toy: Checkpoint, toy_sdxl: Checkpoint) -> Checkpoint:
    return toy if request.param == "sd" else toy_sdxl


@pytest.mark.parametrize("time", [torch.tensor(37), torch.tensor([37.5]), 37, torch.tensor([1.0, 2.0, 3.0, 4.0])], ids=str)
def test_the_unet_is_diffusers_own_for_every_form_of_a_time(checkpoint: Checkpoint, time: torch.Tensor | float) -> None:
    unet = unet_of(checkpoint, masked=False)
    with torch.no_grad():
        expected = checkpoint.unet(timestep=time, **arguments(checkpoint))[0]
    assert torch.equal(unet(timestep=time, **arguments(checkpoint))[0], expected)
    assert torch.equal(unet(timestep=time, **{**arguments(checkpoint), "return_dict": True}).sample, expected)


def test_the_masked_unet_silences_the_bundle_s_neurons_in_all_rows_until_it_is_told_otherwise(checkpoint: Checkpoint) -> None:
    unet, call = unet_of(checkpoint), {"timestep": 5, **arguments(checkpoint)}
    with torch.no_grad():
        plain = checkpoint.unet(**call)[0]
        with silenced(checkpoint.unet, some(checkpoint)):
            silent = checkpoint.unet(**call)[0]
    assert not torch.equal(plain, silent)
    assert torch.equal(unet(**call)[0], silent)
    for mask, expected in (("off", plain), (None, silent), (np.ones(some(checkpoint).total), plain), (some(checkpoint), silent)):
        unet.mask = mask
        assert torch.equal(unet(**call)[0], expected)


def test_masks_that_do_not_fit_are_refused(toy: Checkpoint) -> None:
    unet = unet_of(toy)
    total = some(toy).total
    with pytest.raises(InputError, match=rf"the mask has shape \[79\], expected \[{total}\]"):
        unet.mask = np.ones(79)
    assert np.array_equal(unet.mask, some(toy).mask())
    unet.mask = np.ones((2, total))
    for rows in (1, 3, 6):
        with pytest.raises(InputError, match=f"the mask is of 2 pictures, and the UNet was called with {rows} rows: set a mask of as many"):
            unet(timestep=5, **arguments(toy, rows=rows))
    baked = unet_of(toy, masked=False)
    assert baked.mask is None
    with pytest.raises(InputError, match=r"this UNet is baked and takes no mask: load the masked variant of the bundle"):
        baked.mask = "off"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_answer_has_the_type_of_what_came(toy: Checkpoint, dtype: torch.dtype) -> None:
    call = {"timestep": 5, **arguments(toy)}
    typed = {**call, "sample": call["sample"].to(dtype), "encoder_hidden_states": call["encoder_hidden_states"].to(dtype)}
    got, exact = unet_of(toy)(**typed)[0], unet_of(toy)(**call)[0]
    assert got.dtype == dtype
    assert (got.float() - exact).abs().max() < 0.03 * exact.abs().max()


def test_text_encoders_answer_as_transformers_do(toy: Checkpoint, toy_sdxl: Checkpoint) -> None:
    for checkpoint, index in ((toy, 0), (toy_sdxl, 0), (toy_sdxl, 1)):
        ids = torch.from_numpy(checkpoint.config.token_ids(["a pig", "a bus"])[index])
        own, hidden = checkpoint.text_encoders[index], checkpoint.config.family == "sdxl"
        with torch.no_grad():
            expected = own(ids, output_hidden_states=hidden)
        got = text_encoder_of(checkpoint, index)(ids, attention_mask=None, output_hidden_states=hidden)
        assert list(got.keys()) == list(expected.keys())
        assert torch.equal(got[0], expected[0])
        assert got[0].ndim == (2 if index else 3)  # by which the pipeline of XL knows the pooled output
        assert torch.equal(got.last_hidden_state, expected.last_hidden_state)
        if hidden:
            assert all(torch.equal(a, b) for a, b in zip(got.hidden_states, expected.hidden_states, strict=True))
        assert torch.equal(text_encoder_of(checkpoint, index)(ids, return_dict=False)[0], expected[0])


def test_the_decoder_is_diffusers_own_sliced_or_not(toy: Checkpoint) -> None:
    latents, vae = torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(0)), decoder_of(toy)
    with torch.no_grad():
        expected = toy.vae.decode(latents, return_dict=False)[0]
    assert torch.equal(vae.decode(latents, return_dict=False, generator=None)[0], expected)
    assert vae.decode(latents.half()).sample.dtype == torch.float16
    vae.enable_slicing()
    with torch.no_grad():
        alone = torch.cat([toy.vae.decode(one, return_dict=False)[0] for one in latents.split(1)])
    assert torch.equal(vae.decode(latents).sample, alone)
    vae.disable_slicing()
    assert torch.equal(vae.decode(latents).sample, expected)


def test_configurations_are_those_of_the_modules(toy_sdxl: Checkpoint) -> None:
    unet, text, vae = unet_of(toy_sdxl), text_encoder_of(toy_sdxl, 1), decoder_of(toy_sdxl)
    assert dict(unet.config) == dict(toy_sdxl.unet.config)
    assert unet.config.sample_size == 16
    assert unet.add_embedding.linear_1.in_features == toy_sdxl.unet.add_embedding.linear_1.in_features
    assert text.config.projection_dim == 12
    assert dict(vae.config) == dict(toy_sdxl.vae.config)


def test_a_pipeline_may_correct_the_configuration_of_an_old_unet(toy: Checkpoint) -> None:
    """diffusers does so for sizes below 64 that older versions wrote."""
    unet = unet_of(toy)
    unet._internal_dict = type(unet.config)({**unet.config, "_diffusers_version": "0.8.1"})
    own = StableDiffusionPipeline.from_pretrained(toy.source, safety_checker=None).components
    StableDiffusionPipeline(**{**own, "unet": unet}, requires_safety_checker=False)
    assert unet.config.sample_size == 64


def test_an_engine_has_no_weights_and_goes_where_it_is_put(toy: Checkpoint) -> None:
    unet, text, vae = unet_of(toy), text_encoder_of(toy), decoder_of(toy)
    for module in (unet, text, vae):
        assert (list(module.parameters()), list(module.state_dict())) == ([], [])
        assert (module.device, module.dtype) == (torch.device("cpu"), torch.float32)
        assert module.to(torch.float16).eval().requires_grad_(False) is module
        assert module.to("meta").device == torch.device("meta")
        assert module.dtype == (torch.float32 if module is vae else torch.float16)  # nobody need cast what decodes


def test_text_comes_in_the_type_the_encoder_was_cast_to(toy: Checkpoint) -> None:
    ids = torch.from_numpy(toy.config.token_ids(["a pig"])[0])
    assert text_encoder_of(toy).half()(ids)[0].dtype == torch.float16


def test_a_compiled_unet_is_the_engine(toy: Checkpoint) -> None:
    unet, call = unet_of(toy), {"timestep": 5, **arguments(toy)}
    silent = unet(**call)[0]
    compiled: Any = torch.compile(unet)
    assert torch.equal(compiled(**call)[0], silent)
    assert compiled.config is unet.config
    compiled.mask = "off"
    assert not torch.equal(compiled(**call)[0], silent)
    torch.compiler.reset()  # a frame that broke once is left alone
    with pytest.raises(RuntimeError, match=r"the UNet is an engine, which is compiled already: leave torch\.compile out, or its fullgraph"):
        torch.compile(unet, fullgraph=True)(**call)


LORA = r"the UNet is an engine and takes no LoRA: fuse it into the checkpoint .*, save that, and build the bundle anew"
IP_ADAPTER = r"the UNet is an engine and takes no IP-Adapter, .*: use the checkpoint's own UNet for that"
RESIDUALS = r"the UNet is an engine and takes no residuals of a ControlNet or T2I-Adapter, .*: use the checkpoint's own UNet for that"


@pytest.mark.parametrize(
    ("conditions", "reason"),
    [
        ({"cross_attention_kwargs": {"scale": 0.5}}, f"scale: {LORA}"),
        ({"cross_attention_kwargs": {"ip_adapter_masks": []}}, f"ip_adapter_masks: {IP_ADAPTER}"),
        ({"cross_attention_kwargs": {"gligen": {"boxes": 1}}}, "gligen: the UNet is an engine and its graph has nothing of that name"),
        ({"added_cond_kwargs": {"image_embeds": [torch.zeros(1)]}}, f"image_embeds: {IP_ADAPTER}"),
        ({"down_block_additional_residuals": (torch.zeros(1),)}, f"down_block_additional_residuals: {RESIDUALS}"),
        ({"mid_block_additional_residual": torch.zeros(1)}, f"mid_block_additional_residual: {RESIDUALS}"),
        ({"down_intrablock_additional_residuals": [torch.zeros(1)]}, f"down_intrablock_additional_residuals: {RESIDUALS}"),
        ({"timestep_cond": torch.zeros(1)}, "timestep_cond: the UNet is an engine and its graph has nothing of that name"),
        ({"class_labels": torch.zeros(1)}, "class_labels: the UNet is an engine"),
        ({"added_cond_kwargs": {"text_embeds": torch.zeros(4, 1)}}, "the feed has no input 'text_embeds'"),
        ({"sample": torch.zeros(4, 4, 12, 16)}, "height 24 is not a multiple of 16 pixels, .*: take 16 or 32"),
        ({"encoder_hidden_states": torch.zeros(4, 7, 16)}, r"'encoder_hidden_states' has shape \[4, 7, 16\], expected \[batch, 16, 16\]"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_the_graph_has_no_input_for_is_refused(toy: Checkpoint, conditions: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        unet_of(toy)(timestep=5, **{**arguments(toy), **conditions})


def test_nothing_asked_for_is_nothing_refused(toy: Checkpoint) -> None:
    call = {"timestep": 5, **arguments(toy)}
    empty = {"cross_attention_kwargs": {}, "class_labels": None, "mid_block_additional_residual": None}
    assert torch.equal(unet_of(toy)(**{**call, **empty})[0], unet_of(toy)(**call)[0])


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("load_lora_adapter", LORA),
        ("fuse_lora", LORA),
        ("_load_ip_adapter_weights", IP_ADAPTER),
        ("encoder_hid_proj", IP_ADAPTER),
        ("set_attn_processor", "the UNet is an engine and has its attention compiled in: leave the call out"),
        ("attn_processors", "the UNet is an engine and has its attention compiled in"),
        ("enable_freeu", "the UNet is an engine and has its skip connections compiled in, .*: use the checkpoint's own UNet"),
        ("down_blocks", "the UNet is an engine and its graph has nothing of that name: use the checkpoint's own module for that"),
    ],
)
def test_what_only_a_module_with_weights_does_is_refused(toy: Checkpoint, name: str, reason: str) -> None:
    unet = unet_of(toy)
    assert not hasattr(unet, name)
    with pytest.raises(InputError, match=f"{name}: {reason}"):
        getattr(unet, name)


def test_what_the_other_engines_do_not_do_is_refused(toy: Checkpoint) -> None:
    ids = torch.from_numpy(toy.config.token_ids(["a pig"])[0])
    with pytest.raises(InputError, match="gives its last hidden state only: leave clip_skip out"):
        text_encoder_of(toy)(ids, output_hidden_states=True)
    with pytest.raises(InputError, match="attention_mask: the text encoder is an engine"):
        text_encoder_of(toy)(ids, attention_mask=torch.ones(1))
    with pytest.raises(InputError, match="has its token embeddings compiled in: put the new ones into the checkpoint"):
        text_encoder_of(toy).get_input_embeddings()
    with pytest.raises(InputError, match=r"for image-to-image and inpainting set `pipe.vae` to the checkpoint's own, AutoencoderKL"):
        decoder_of(toy).encode(torch.zeros(1))
    with pytest.raises(InputError, match="enable_tiling: the VAE is an engine and decodes whole pictures"):
        decoder_of(toy).enable_tiling()

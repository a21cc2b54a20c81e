"""diffusers' own pipelines, unmodified, draw with a bundle's engines what they draw with the checkpoint and its neurons silenced."""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pytest
import torch
from conftest import save_toy_sdxl
from diffusers import (
    AutoencoderKL,
    AutoPipelineForImage2Image,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
)
from once import once
from PIL import Image
from transformers import CLIPTokenizer

import nemo_edge
from nemo_edge.bundle.manifest import Manifest, open_bundle, publish, staging
from nemo_edge.dropin.load import load_pipeline, load_unet
from nemo_edge.export.production import OnnxFile, compile_stage, export_stage
from nemo_edge.model.checkpoint import open_checkpoint, value_layers
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.model.surgery import bake_
from nemo_edge.recipe.settings import CheckpointSettings, ExportSettings
from nemo_edge.recipe.targets import EngineSettings
from nemo_edge.sampling.generate import Request, draw
from nemo_edge.sampling.noise import initial_noise
from nemo_edge.system.errors import BundleError, InputError
from nemo_edge.system.progress import Progress

PROMPTS = ["a red pig", "a bus"]
CLASSES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "sd": (StableDiffusionPipeline, StableDiffusionImg2ImgPipeline, {"safety_checker": None}),
    "sdxl": (StableDiffusionXLPipeline, StableDiffusionXLImg2ImgPipeline, {"add_watermarker": False}),
}
XL = {
    "block_out_channels": (8, 8),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "transformer_layers_per_block": (1, 1),
    "layers_per_block": 1,
}


class Model(NamedTuple):
    """A checkpoint and its bundle."""

    folder: Path
    bundle: Path
    family: str

    @property
    def neurons(self) -> NeuronSet:
        return NeuronSet.load(self.bundle / "neurons.json")

    def eager(self, *, mitigated: bool = True, image: bool = False) -> Any:
        """diffusers' own pipeline of the checkpoint, its neurons baked out."""
        text, other, options = CLASSES[self.family]
        pipeline = (other if image else text).from_pretrained(self.folder, **options)
        if mitigated:
            bake_(pipeline.unet, self.neurons)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


def make_xl(
    folder: Path,
    tokenizer: CLIPTokenizer,
    tiny_bundle: Path,
    dtype: Literal["fp32", "fp16"] = "fp32",
    change: Callable[[Path], object] = lambda folder: None,
) -> Model:
    """A bundle of Stable Diffusion XL's shape, made of the stages of a build that need no memories; it may be shipped."""
    source = CheckpointSettings(path=str(save_toy_sdxl(folder / "model", tokenizer, **XL)))
    change(folder / "model")
    layers = value_layers(open_checkpoint(source.path).unet)
    neurons = NeuronSet.from_lists(layers, [range(0, layer.width, 3) for layer in layers])
    places = ("text_encoder", "text_encoder_2", "unet_masked", "vae_decoder")
    with staging(folder / "bundle") as staged:
        export_stage(source, ExportSettings(variants=("masked",), dtype=dtype), neurons, staged, {}, Progress())
        compile_stage(staged, EngineSettings(), [OnnxFile(f"{p}/model.onnx", "fp32" if p == "vae_decoder" else dtype) for p in places])
        neurons.save(staged / "neurons.json")
        own = {"family": "StableDiffusionXLPipeline", "variants": ("masked",), "gates": (), "passed": True}
        publish(staged, folder / "bundle", open_bundle(tiny_bundle).model_copy(update=own))
    return Model(folder / "model", folder / "bundle", "sdxl")


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory, tokenizer: CLIPTokenizer, tiny_bundle: Path) -> Model:
    """The float32 one of `make_xl`, once for all processes of this run. Tests leave it as it is."""
    folder = once(tmp_path_factory, "xl", lambda folder: make_xl(folder, tokenizer, tiny_bundle))
    return Model(folder / "model", folder / "bundle", "sdxl")


@pytest.fixture(scope="module")
def sd(tiny_recipe: Path, tiny_bundle: Path) -> Model:
    return Model(tiny_recipe.parent / "model", tiny_bundle, "sd")


@pytest.fixture(scope="module", params=["sd", "sdxl"])
def model(request: pytest.FixtureRequest) -> Model:
    found: Model = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="module")
def engines(model: Model) -> Iterator[Any]:
    """The pipeline of the bundle's masked engines."""
    with load_pipeline(model.bundle, "masked") as pipeline:
        pipeline.set_progress_bar_config(disable=True)
        yield pipeline


@pytest.fixture
def pipeline(engines: Any) -> Iterator[Any]:
    """`engines`, which get their scheduler and the bundle's mask back."""
    scheduler = engines.scheduler
    yield engines
    engines.scheduler, engines.unet.mask = scheduler, None


def noise(*seeds: int) -> torch.Tensor:
    return torch.from_numpy(initial_noise(seeds, (4, 16, 16)))


def latents(pipeline: Any, **options: Any) -> torch.Tensor:
    call = {"prompt": PROMPTS, "num_inference_steps": 3, "guidance_scale": 7.0, "latents": noise(0, 1), "output_type": "latent"}
    found: torch.Tensor = pipeline(**{**call, **options}).images
    return found


def assert_close(got: torch.Tensor, expected: torch.Tensor) -> None:
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()


def assert_same_pictures(got: np.ndarray, expected: np.ndarray) -> None:
    """Of pictures from 0 to 1: equal to one grey level."""
    assert got.shape == expected.shape
    assert np.abs(np.rint(255 * got) - np.rint(255 * expected)).max() <= 1


def test_the_pipeline_draws_the_pictures_of_the_baked_checkpoint(model: Model) -> None:
    expected = latents(model.eager(), output_type="np")
    for variant in open_bundle(model.bundle).variants:
        with load_pipeline(model.bundle, variant) as pipeline:
            assert isinstance(pipeline, CLASSES[model.family][0])
            assert_same_pictures(latents(pipeline, output_type="np"), expected)
    assert np.abs(expected[0] - expected[1]).max() > 0.1  # the pictures are no constant


def test_off_is_the_unmitigated_checkpoint_and_masks_change_between_calls(model: Model, pipeline: Any) -> None:
    plain, silent = latents(model.eager(mitigated=False)), latents(model.eager())
    assert (plain - silent).abs().max() > 2e-4 * plain.abs().max()
    for mask, expected in (("off", plain), (None, silent), (NeuronSet.empty(model.neurons.layers), plain), (model.neurons.mask(), silent)):
        pipeline.unet.mask = mask
        assert_close(latents(pipeline), expected)


def test_a_mask_given_at_the_start_takes_the_masked_variant(model: Model) -> None:
    with load_unet(model.bundle, mask="off") as unet:
        assert np.array_equal(unet.mask, np.ones(model.neurons.total))
    with load_unet(model.bundle, "masked") as unet:
        assert np.array_equal(unet.mask, model.neurons.mask())
    with load_unet(str(model.bundle)) as unet:
        assert (unet.mask is None) == (open_bundle(model.bundle).variants[0] == "baked")


SCHEDULERS = [DDIMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler, HeunDiscreteScheduler]


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda cls: cls.__name__)
def test_any_scheduler_is_put_into_it_as_into_any_pipeline(model: Model, pipeline: Any, scheduler: Any) -> None:
    eager = model.eager()
    for one in (eager, pipeline):
        one.scheduler = scheduler.from_config(one.scheduler.config)
    assert_close(latents(pipeline), latents(eager))


@pytest.mark.parametrize(
    "options",
    [
        {"negative_prompt": ["a dog", "a cat"]},
        {"guidance_scale": 0.0},
        {"guidance_scale": 1.0},
        {"guidance_rescale": 0.7},
        {"prompt": "a red pig", "latents": noise(5)},
        {"num_images_per_prompt": 2, "latents": noise(0, 1, 2, 3)},
        {"num_images_per_prompt": 2, "latents": None},
        {"height": 48, "width": 16, "latents": None},
        {"output_type": "pt"},
    ],
    ids=lambda options: "-".join(options),
)
def test_what_a_pipeline_is_asked_for_it_gives(model: Model, pipeline: Any, options: dict[str, Any]) -> None:
    def drawn(one: Any) -> torch.Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in range(2 * options.get("num_images_per_prompt", 1))]
        return latents(one, **options, generator=generators if "latents" in options and options["latents"] is None else None)

    assert_close(drawn(pipeline), drawn(model.eager()))


def test_a_unet_goes_into_a_pipeline_of_one_s_own(model: Model) -> None:
    own, expected = model.eager(mitigated=False), latents(model.eager())
    for variant in open_bundle(model.bundle).variants:
        with load_unet(model.bundle, variant) as own.unet:
            assert_close(latents(own), expected)


def test_callbacks_see_the_latents_and_change_them(model: Model, pipeline: Any) -> None:
    seen: dict[str, list[torch.Tensor]] = {"engine": [], "eager": []}

    def halve(kept: list[torch.Tensor]) -> Callable[..., dict[str, torch.Tensor]]:
        def callback(_pipeline: Any, _index: int, _time: Any, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            kept.append(values["latents"])
            return {"latents": values["latents"] / 2}

        return callback

    got = latents(pipeline, callback_on_step_end=halve(seen["engine"]))
    expected = latents(model.eager(), callback_on_step_end=halve(seen["eager"]))
    assert_close(got, expected)
    assert len(seen["engine"]) == len(seen["eager"]) == 3
    for mine, theirs in zip(seen["engine"], seen["eager"], strict=True):
        assert_close(mine, theirs)


def test_image_to_image_takes_the_user_s_vae(model: Model, pipeline: Any) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8))
    call = {"prompt": "a red pig", "image": picture, "strength": 0.7, "num_inference_steps": 4, "output_type": "np"}

    def drawn(one: Any) -> np.ndarray:
        one.set_progress_bar_config(disable=True)
        return np.asarray(one(**call, generator=torch.Generator().manual_seed(0)).images)

    expected = drawn(model.eager(image=True))
    own = model.eager(mitigated=False, image=True)
    own.unet = pipeline.unet
    assert_same_pictures(drawn(own), expected)
    vae = AutoencoderKL.from_pretrained(model.folder, subfolder="vae")
    assert_same_pictures(drawn(AutoPipelineForImage2Image.from_pipe(pipeline, vae=vae)), expected)
    with pytest.raises(InputError, match=r"decodes only, a bundle holds no encoder: for image-to-image and inpainting set `pipe.vae`"):
        drawn(AutoPipelineForImage2Image.from_pipe(pipeline))


def test_generate_draws_the_same_picture(sd: Model, tmp_path: Path) -> None:
    (path,) = draw(sd.bundle, Request("a red pig", seed=3, overrides={"steps": 4, "guidance": 5.0}), tmp_path / "p.png")
    expected = np.asarray(Image.open(path)).astype(int)
    with load_pipeline(sd.bundle) as pipeline:
        options = {"num_inference_steps": 4, "guidance_scale": 5.0, "latents": noise(3), "output_type": "pil"}
        (got,) = pipeline("a red pig", **options).images
    assert np.abs(np.asarray(got) - expected).max() <= 1


@pytest.mark.parametrize("prompt", ["a red pig", ["a red pig"]])
def test_it_samples_as_the_recipe_does_unless_told_otherwise(sd: Model, tmp_path: Path, prompt: str | list[str]) -> None:
    """Scheduler with its noise on the way, spacing, steps, guidance, negative prompt and size; what the call says goes first."""
    own = {"scheduler": "euler_a", "timestep_spacing": "trailing", "steps": 4, "guidance": 3.0, "negative_prompt": "a crab", "height": 48}
    with staging(tmp_path / "new") as staged:
        shutil.copytree(sd.bundle, staged, dirs_exist_ok=True, ignore=shutil.ignore_patterns("manifest.json"))
        manifest = open_bundle(sd.bundle)
        sampling = {**manifest.recipe["sampling"], **own}
        publish(staged, tmp_path / "new", manifest.model_copy(update={"recipe": {**manifest.recipe, "sampling": sampling}}))
    (path,) = draw(tmp_path / "new", Request("a red pig", seed=3), tmp_path / "p.png")
    (other,) = draw(tmp_path / "new", Request("a red pig", seed=3, overrides={"steps": 3, "guidance": 1.0}), tmp_path / "o.png")
    with load_pipeline(tmp_path / "new") as pipeline:
        for told, file in (({}, path), ({"num_inference_steps": 3, "guidance_scale": 1.0}, other)):
            (got,) = pipeline(prompt, generator=torch.Generator().manual_seed(3), **told).images
            expected = np.asarray(Image.open(file)).astype(int)
            assert expected.shape == (48, 32, 3)
            assert np.abs(np.asarray(got) - expected).max() <= 1


def test_half_the_bits_are_half_the_bits_of_what_goes_in_and_out(pipeline: Any) -> None:
    exact = latents(pipeline)
    try:
        pipeline.to(torch.float16, silence_dtype_warnings=True)
        got = latents(pipeline, latents=noise(0, 1).half())
    finally:
        pipeline.to(torch.float32)
    assert got.dtype == torch.float16
    assert (got - exact).abs().max() < 0.05 * exact.abs().max()


def test_clip_skip_needs_hidden_states_which_only_xl_has(model: Model, pipeline: Any) -> None:
    if model.family == "sdxl":
        assert_close(latents(pipeline, clip_skip=1), latents(model.eager(), clip_skip=1))
        return
    with pytest.raises(InputError, match="leave clip_skip out, or use the checkpoint's own text encoder"):
        latents(pipeline, clip_skip=1)


REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "lora": (lambda p: p.load_lora_weights("a/lora"), r"load_lora_weights: .* takes no LoRA: fuse it into the checkpoint .* bundle anew"),
    "fuse": (lambda p: p.fuse_lora(), "fuse_lora: .* takes no LoRA"),
    "adapters": (lambda p: p.set_adapters("a"), "set_adapters: .* takes no LoRA"),
    "scale": (lambda p: latents(p, cross_attention_kwargs={"scale": 0.5}), "scale: .* takes no LoRA"),
    "ip_adapter": (lambda p: p.load_ip_adapter("an/adapter"), "takes no IP-Adapter"),
    "ip_image": (lambda p: latents(p, ip_adapter_image=Image.new("RGB", (8, 8))), "takes no IP-Adapter"),
    "ip_embeds": (lambda p: latents(p, ip_adapter_image_embeds=[torch.zeros(2, 1, 4)]), "image_embeds: .* takes no IP-Adapter"),
    "inversion": (lambda p: p.load_textual_inversion("a/word"), "put the new ones into the checkpoint, and build the bundle anew"),
    "freeu": (lambda p: p.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4), "FreeU scales: use the checkpoint's own UNet"),
    "fused_qkv": (lambda p: p.fuse_qkv_projections(), "has its attention compiled in"),
    "save": (lambda p: p.save_pretrained("there"), "save_pretrained: .* copy the folder of the bundle"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_engines_do_not_do_is_refused_in_one_line(pipeline: Any, name: str) -> None:
    call, reason = REFUSED[name]
    with pytest.raises(InputError, match=reason) as caught:
        call(pipeline)
    assert "\n" not in str(caught.value)


def test_what_is_harmless_changes_nothing(pipeline: Any) -> None:
    before = latents(pipeline)
    pipeline.enable_attention_slicing()
    pipeline.unet.to(memory_format=torch.channels_last)
    pipeline.vae.enable_slicing()
    pipeline.to("cpu")
    assert torch.equal(latents(pipeline), before)


def test_a_closed_pipeline_and_a_closed_unet_say_so(model: Model) -> None:
    pipeline = load_pipeline(model.bundle)
    pipeline.close()
    with pytest.raises(InputError, match="this runner is closed: open the engine again"):
        latents(pipeline)
    own = model.eager()
    with load_unet(model.bundle) as own.unet:
        pass
    with pytest.raises(InputError, match="this runner is closed"):
        latents(own)


def test_a_bundle_that_must_not_be_shipped_is_warned_of(sd: Model, sdxl: Model, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=f"{re.escape(str(sd.bundle))} failed a gate: it must not be shipped") as caught:
        load_unet(sd.bundle).close()
    assert caught[0].filename == __file__  # the line that opened it
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_unet(sdxl.bundle).close()
    random = shutil.copytree(sdxl.bundle, tmp_path / "random")
    manifest: Manifest = open_bundle(random).model_copy(update={"random_weights": "sdxl", "passed": False})
    (random / "manifest.json").write_text(manifest.model_dump_json())
    with pytest.warns(UserWarning, match="random carries random weights: it must not be shipped"):
        load_pipeline(random).close()


def test_a_bundle_that_was_changed_is_not_opened(sdxl: Model, tmp_path: Path) -> None:
    folder = shutil.copytree(sdxl.bundle, tmp_path / "changed")
    (folder / "vae_decoder" / "model.onnx").write_bytes(b"native code")
    for load in (load_unet, load_pipeline):
        with pytest.raises(BundleError, match=r"vae_decoder/model\.onnx was changed\): build it again; no engine was opened"):
            load(folder)


def test_what_a_bundle_does_not_have_is_refused(sd: Model, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="this bundle has no variant 'half': it has baked, masked"):
        load_unet(sd.bundle, "half")
    with pytest.raises(InputError, match="a baked engine takes no mask"):
        load_pipeline(sd.bundle, "baked", mask="off")
    with pytest.raises(InputError, match=r"the mask has shape \[3\], expected"):
        load_unet(sd.bundle, mask=np.ones(3))
    with pytest.raises(InputError, match=r"^backend = 'trt': "):
        load_unet(sd.bundle, backend="trt")
    with pytest.raises(BundleError, match="does not exist: make one with `nemo-edge build`"):
        load_pipeline(tmp_path / "none")


def test_a_scheduler_that_is_not_known_is_named(sdxl: Model, tmp_path: Path) -> None:
    with staging(tmp_path / "new") as staged:
        shutil.copytree(sdxl.bundle, staged, dirs_exist_ok=True, ignore=shutil.ignore_patterns("manifest.json"))
        path = staged / "scheduler" / "scheduler_config.json"
        path.write_text(path.read_text().replace("EulerDiscreteScheduler", "UNet2DConditionModel"))
        publish(staged, tmp_path / "new", open_bundle(sdxl.bundle))
    with pytest.raises(InputError, match="own scheduler is a UNet2DConditionModel, which nemo-edge does not sample with: name another"):
        load_pipeline(tmp_path / "new")


def test_the_package_hands_out_both() -> None:
    assert (nemo_edge.load_unet, nemo_edge.load_pipeline) == (load_unet, load_pipeline)
    with pytest.raises(AttributeError, match="has no attribute 'load_vae'"):
        nemo_edge.load_vae  # noqa: B018

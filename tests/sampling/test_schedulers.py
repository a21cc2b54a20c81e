"""Pictures are those of diffusers' pipelines, whichever scheduler a recipe names and whatever a checkpoint was saved with."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import save_toy_sd, save_toy_sdxl, toy_unet
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    SchedulerMixin,
    StableDiffusionPipeline,
    TCDScheduler,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
)
from transformers import CLIPTokenizer

from nemo_edge.model.checkpoint import Checkpoint, open_checkpoint
from nemo_edge.model.configuration import Configuration
from nemo_edge.recipe.settings import SamplingSettings
from nemo_edge.sampling.loop import Pipeline, denoise, generate
from nemo_edge.sampling.pipelines import eager_pipeline
from nemo_edge.sampling.schedulers import make_scheduler, scheduled
from nemo_edge.system.errors import InputError

PROMPTS, SEEDS = ["a red pig", "an owl"], [3, 4]
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
NAMES: dict[str, tuple[str, Callable[..., SchedulerMixin]]] = {
    "ddim": ("ddim", DDIMScheduler.from_config),
    "pndm": ("pndm", PNDMScheduler.from_config),
    "euler": ("euler", EulerDiscreteScheduler.from_config),
    "euler_a": ("euler_a", EulerAncestralDiscreteScheduler.from_config),
    "dpmsolver++": ("dpmsolver++", DPMSolverMultistepScheduler.from_config),
    "unipc": ("unipc", UniPCMultistepScheduler.from_config),
    "lcm": ("lcm", LCMScheduler.from_config),
}
SAVED = {
    "pndm": lambda kind: PNDMScheduler(**BETAS, skip_prk_steps=True, steps_offset=1, prediction_type=kind),
    "euler": lambda kind: EulerDiscreteScheduler(**BETAS, timestep_spacing="leading", prediction_type=kind),
    "zero terminal SNR": lambda kind: DDIMScheduler(
        **BETAS,
        clip_sample=False,
        set_alpha_to_one=False,
        prediction_type=kind,
        rescale_betas_zero_snr=kind == "v_prediction",
        timestep_spacing="trailing",
    ),
}


def small_unet(**changes: object) -> UNet2DConditionModel:
    blocks = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
    return toy_unet(**{"sample_size": 8, "block_out_channels": (8, 8), "layers_per_block": 1, **blocks, **changes})


def saved(folder: Path, tokenizer: CLIPTokenizer, scheduler: SchedulerMixin, **changes: object) -> Path:
    return save_toy_sd(folder, tokenizer, small_unet(**changes), scheduler)


def in_diffusers(pipeline: Any, **options: Any) -> np.ndarray:
    """What diffusers' own call makes of the same prompts and seeds, start noise and all."""
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    call = {"num_inference_steps": 4, "guidance_scale": 5.0, "generator": generators, **options}
    pictures = pipeline(PROMPTS, output_type="np", **call).images
    return np.rint(pictures * 255).astype(np.uint8)


def apart(one: np.ndarray, other: np.ndarray) -> int:
    assert one.shape == other.shape
    return int(np.abs(one.astype(int) - other).max())


@pytest.fixture(scope="module", params=[(name, kind) for name in SAVED for kind in ("epsilon", "v_prediction", "sample")], ids=str)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tokenizer: CLIPTokenizer) -> Path:
    name, kind = request.param
    return saved(tmp_path_factory.mktemp("saved") / "model", tokenizer, SAVED[name](kind))


def test_every_name_makes_the_pictures_of_diffusers_call(checkpoint: Path) -> None:
    """0 of 255 apart, the scheduler made of the pipeline's own configuration alone. A new pipeline of Stable Diffusion never clips."""
    found: dict[str, int] = {}
    pipeline = StableDiffusionPipeline.from_pretrained(checkpoint, safety_checker=None)
    own, opened = pipeline.scheduler, eager_pipeline(open_checkpoint(str(checkpoint)))
    refused = {"pndm", "euler_a"} if own.config.prediction_type == "sample" else set()
    for name, (scheduler, make) in NAMES.items():
        settings = SamplingSettings(scheduler=scheduler, steps=4, guidance=5.0)  # type: ignore[arg-type]
        if name in refused:
            with pytest.raises(InputError, match="for a model that predicts 'sample'"):
                generate(opened, PROMPTS, SEEDS, settings)
            continue
        theirs = StableDiffusionPipeline(**{**pipeline.components, "scheduler": make(own.config)}, requires_safety_checker=False)
        found[name] = apart(generate(opened, PROMPTS, SEEDS, settings), in_diffusers(theirs))
    assert len(found) == len(NAMES) - len(refused)
    assert set(found.values()) == {0}, found


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tokenizer: CLIPTokenizer) -> Checkpoint:
    return open_checkpoint(str(saved(tmp_path_factory.mktemp("model") / "sd", tokenizer, SAVED["pndm"]("epsilon"))))


def named(scheduler: SchedulerMixin) -> dict[str, Any]:
    return {**scheduler.config, "_class_name": type(scheduler).__name__}


def with_scheduler(model: Checkpoint, scheduler: SchedulerMixin) -> tuple[Any, Pipeline]:
    """diffusers' pipeline of a model with another scheduler of its own, and ours."""
    text, tokenizer = model.text_encoders[0], model.config.tokenizers[0]
    theirs = StableDiffusionPipeline(model.vae, text, tokenizer, model.unet, scheduler, None, None, requires_safety_checker=False)
    config = replace(model.config, scheduler=named(scheduler))
    return theirs, replace(eager_pipeline(model), config=config)


def drawn(pipeline: Pipeline, seeds: Sequence[int] = SEEDS, **settings: Any) -> np.ndarray:
    wanted = SamplingSettings(**{"steps": 4, "guidance": 5.0, **settings})
    return generate(pipeline, [PROMPTS[SEEDS.index(seed)] for seed in seeds], seeds, wanted)


OWN = [
    DDIMScheduler(**BETAS),
    DDPMScheduler(**BETAS),
    DEISMultistepScheduler(**BETAS),
    DPMSolverMultistepScheduler(**BETAS, algorithm_type="sde-dpmsolver++"),
    DPMSolverSinglestepScheduler(**BETAS),
    EulerAncestralDiscreteScheduler(**BETAS, timestep_spacing="trailing"),
    EulerDiscreteScheduler(**BETAS, use_karras_sigmas=True),
    HeunDiscreteScheduler(**BETAS),
    KDPM2AncestralDiscreteScheduler(**BETAS),
    KDPM2DiscreteScheduler(**BETAS),
    LCMScheduler(**BETAS),
    PNDMScheduler(**BETAS),
    TCDScheduler(**BETAS),
    UniPCMultistepScheduler(**BETAS),
]


@pytest.mark.parametrize("scheduler", OWN, ids=lambda s: type(s).__name__)
def test_a_checkpoints_own_scheduler_is_the_default(model: Checkpoint, scheduler: SchedulerMixin) -> None:
    theirs, own = with_scheduler(model, scheduler)
    assert apart(drawn(own), in_diffusers(theirs)) == 0


@pytest.mark.parametrize(
    ("settings", "changes"),
    [
        ({"scheduler": "sde-dpmsolver++"}, {"algorithm_type": "sde-dpmsolver++"}),
        ({"scheduler": "dpmsolver++", "karras": True}, {"use_karras_sigmas": True}),
        ({"scheduler": "dpmsolver++", "timestep_spacing": "trailing"}, {"timestep_spacing": "trailing"}),
    ],
)
def test_what_a_recipe_sets_is_diffusers_key(model: Checkpoint, settings: dict[str, Any], changes: dict[str, Any]) -> None:
    theirs, own = with_scheduler(model, SAVED["pndm"]("epsilon"))
    plain = drawn(own, scheduler="dpmsolver++")
    theirs.scheduler = DPMSolverMultistepScheduler.from_config(theirs.scheduler.config, **changes)
    assert apart(drawn(own, **settings), in_diffusers(theirs)) == 0
    assert apart(drawn(own, **settings), plain) > 0


@pytest.mark.parametrize("name", ["euler_a", "sde-dpmsolver++", "lcm"])
def test_noise_on_the_way_is_each_pictures_own(model: Checkpoint, name: str) -> None:
    """One at a time, in a batch in any order, and again: the same pictures."""
    _, own = with_scheduler(model, SAVED["euler"]("epsilon"))
    together = drawn(own, scheduler=name)
    alone = np.concatenate([drawn(own, [seed], scheduler=name) for seed in SEEDS])
    assert apart(together, alone) <= 1  # rows of a batch are rounded otherwise
    assert apart(together, drawn(own, scheduler=name)) == 0
    assert apart(together, drawn(own, SEEDS[::-1], scheduler=name)[::-1]) <= 1


def test_ddim_of_a_configuration_without_clipping_clips_nothing(model: Checkpoint) -> None:
    """diffusers' own DDIM would clip by default, which falsifies pictures: `from_config` alone is not what is wanted."""
    theirs, own = with_scheduler(model, SAVED["euler"]("epsilon"))
    assert drawn(own, scheduler="ddim").std() > 0
    assert not scheduled(own.config, SamplingSettings(scheduler="ddim")).config.clip_sample
    theirs.scheduler = DDIMScheduler.from_config(theirs.scheduler.config)
    assert apart(drawn(own, scheduler="ddim"), in_diffusers(theirs)) > 0
    theirs.scheduler = DDIMScheduler.from_config(theirs.scheduler.config, clip_sample=False)
    assert apart(drawn(own, scheduler="ddim"), in_diffusers(theirs)) == 0


@pytest.mark.parametrize(("given", "clips"), [({}, False), ({"clip_sample": False}, False), ({"clip_sample": True}, True)])
@pytest.mark.parametrize("scheduler", ["checkpoint", "ddim"])
def test_xl_clips_where_its_own_configuration_says_so(
    tmp_path: Path, tokenizer: CLIPTokenizer, given: dict[str, bool], clips: bool, scheduler: str
) -> None:
    folder = save_toy_sdxl(tmp_path / "xl", tokenizer)
    written = {"_class_name": "DDIMScheduler", **BETAS, "steps_offset": 1, **given}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(written))
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "scheduler": ["diffusers", "DDIMScheduler"]}))
    settings = SamplingSettings(scheduler=scheduler)  # type: ignore[arg-type]
    for config in (open_checkpoint(str(folder), parts=()).config, Configuration.load(folder, tokenizers=False)):
        assert make_scheduler(config, settings).config.clip_sample is clips


@pytest.mark.parametrize("name", ["checkpoint", "ddim", "dpmsolver++"])
def test_a_bundle_samples_as_the_checkpoint_of_an_old_configuration(tmp_path: Path, tokenizer: CLIPTokenizer, name: str) -> None:
    """Keys that the file lacks are diffusers' defaults, whether the file, the open pipeline or a bundle's copy is read."""
    folder = saved(tmp_path / "sd", tokenizer, DDIMScheduler(**BETAS))
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({"_class_name": "DDIMScheduler", **BETAS}))
    opened = open_checkpoint(str(folder))
    opened.config.save(tmp_path / "bundle", ["unet"])
    theirs = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    if name != "checkpoint":
        cls = {"ddim": DDIMScheduler, "dpmsolver++": DPMSolverMultistepScheduler}[name]
        clipping = {"clip_sample": False} if name == "ddim" else {}
        theirs.scheduler = cls.from_config(theirs.scheduler.config, **clipping)
    expected = in_diffusers(theirs)
    configs = (opened.config, Configuration.load(tmp_path / "bundle"), replace(Configuration.load(folder), index=opened.config.index))
    for config in configs:
        assert apart(drawn(replace(eager_pipeline(opened), config=config), scheduler=name), expected) == 0


@pytest.mark.parametrize("guidance", [0.0, 0.7, 1.0])
def test_guidance_up_to_1_is_one_row_a_picture(model: Checkpoint, guidance: float) -> None:
    theirs, own = with_scheduler(model, EulerDiscreteScheduler(**BETAS, timestep_spacing="trailing"))
    settings = SamplingSettings(steps=2, guidance=guidance, negative_prompt="a crab")
    assert [len(step.output_RCHW) for step in denoise(own, PROMPTS, SEEDS, settings)] == [2, 2]
    expected = in_diffusers(theirs, num_inference_steps=2, guidance_scale=guidance, negative_prompt=["a crab"] * 2)
    assert apart(generate(own, PROMPTS, SEEDS, settings), expected) == 0


@pytest.mark.parametrize(
    ("scheduler", "settings", "message"),
    [
        (FlowMatchEulerDiscreteScheduler(), {}, "own scheduler is a FlowMatchEulerDiscreteScheduler.*sampling.scheduler = 'ddim', 'pndm'"),
        (PNDMScheduler(**BETAS), {"karras": True}, "sampling.karras: PNDMScheduler has no use_karras_sigmas: leave it out"),
        (DPMSolverSinglestepScheduler(**BETAS), {"timestep_spacing": "trailing"}, "sampling.timestep_spacing: DPMSolverSinglestep"),
        (PNDMScheduler(**BETAS), {"scheduler": "lcm", "steps": 60}, "steps 60 are not what LCMScheduler takes"),
    ],
)
def test_what_cannot_be_sampled_is_refused(model: Checkpoint, scheduler: SchedulerMixin, settings: dict[str, Any], message: str) -> None:
    config = replace(model.config, scheduler=named(scheduler))
    with pytest.raises(InputError, match=message):
        scheduled(config, SamplingSettings(**settings))

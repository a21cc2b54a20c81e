"""The tables of a recipe: every setting of a build and every default, but for what runs it (`targets`).

Knows names and ranges only; whether a file exists is found out by the stage that opens it.
"""

from __future__ import annotations

__all__ = [
    "AttackKind",
    "AttackSettings",
    "CalibrationSettings",
    "CheckpointSettings",
    "ENGINE_TOLERANCES",
    "ExportSettings",
    "FidelitySettings",
    "GateSettings",
    "LatencySettings",
    "LocalizationSettings",
    "LoraSettings",
    "PromptSettings",
    "SCORE",
    "SamplingSettings",
    "Scheduler",
    "Settings",
    "Start",
    "Target",
    "TextWay",
    "Way",
    "check_threshold",
]

from collections.abc import Iterable
from math import inf
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from nemo_edge.recipe.limits import MOST_PIXELS, Count, Factor, Pixels, Rows, Seconds, Seed, Size
from nemo_edge.recipe.revisions import with_revision
from nemo_edge.recipe.targets import Rival
from nemo_edge.system.errors import InputError

SCORE = "MS-SSIM of torchmetrics 1.3.2"
"""The memorization score by its name: results and a τ of another one are not taken for those of this."""
Variant = Literal["baked", "masked"]
Target = Literal["text_encoder", "unet", "vae_decoder", "pipeline"]
AttackKind = Literal["text", "embedding"]
"""Of an attack: what an API user can send, or what an owner of the weights can tell the UNet."""
Start = Literal["prompt", "noise", "unrelated"]
TextWay = Literal["paraphrases", "random tokens", "greedy search", "random search"]
Way = Start | TextWay
Scheduler = Literal["checkpoint", "ddim", "pndm", "euler", "euler_a", "dpmsolver++", "sde-dpmsolver++", "unipc", "lcm"]


def check_threshold(tau: float, source: str, remedy: str) -> float:
    """Return τ as it came from `source` (may be empty). Raises `InputError`, with the remedy, unless it is above 0 and below 1.

    No score is above τ = 1 and none above one that is not a number, so that nothing would count as memorized.
    """
    if 0 < tau < 1:
        return tau
    raise InputError(f"{source}{': ' if source else ''}τ = {tau:g}, expected a finite number above 0 and below 1: {remedy}")


def _given_threshold(tau: float) -> float:
    try:
        return check_threshold(tau, "", "leave it out, and it is computed")
    except InputError as error:
        raise ValueError(str(error)) from error


class Settings(BaseModel):
    """A table of a recipe: unknown keys are refused, and nothing changes afterwards."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class LoraSettings(Settings):
    """A LoRA that is fused into the weights before anything else, so that all that follows sees the fused model."""

    path: Path
    """The LoRA's `.safetensors` file."""
    scale: float = Field(default=1.0, allow_inf_nan=False)
    """What its part of the weights is multiplied by; its own alpha comes on top."""


class CheckpointSettings(Settings):
    """Which model: a diffusers folder, a hub id, or a single `.safetensors` file."""

    path: str
    """The folder, the file (relative to the recipe) or the id, which may have its revision behind it: `owner/name@revision`."""
    revision: str | None = None
    """Of a hub id: a commit, a tag or a branch. It becomes part of the path; without one a bundle keeps the commit that was the newest."""
    allow_pickle: bool = False
    """Open pickle weights (.bin, .ckpt), which can run any code when loaded."""
    device: Literal["cpu", "cuda"] = "cpu"
    """What eager PyTorch runs on: calibration, the search for neurons, and what engines are held against."""
    loras: tuple[LoraSettings, ...] = ()
    """LoRAs, in the order in which they are fused: `[{path = "mine.safetensors", scale = 0.8}]`."""
    clip_skip: int = Field(default=0, ge=0)
    """How many of the text encoders' last layers a prompt is read without, as diffusers counts them; 1 is the "clip skip 2" of others.
    No or the negative prompt is read with all of them, as there."""

    @model_validator(mode="before")
    @classmethod
    def _pin(cls, given: Any) -> Any:
        path, revision = (given.get(name) for name in ("path", "revision")) if isinstance(given, dict) else (None, None)
        if not isinstance(path, str) or not isinstance(revision, str):
            return given
        return {**given, "path": with_revision(path, revision), "revision": None}

    @property
    def fused(self) -> dict[str, Path]:
        """The files of the LoRAs, by names that tell their order and scale: so they are hashed beside the checkpoint's own files."""
        return {f"loras/{i}/{lora.path.name} × {lora.scale!r}": lora.path for i, lora in enumerate(self.loras)}


class PromptSettings(Settings):
    """Which prompts: those to examine for memories, and general ones that stand for everybody's use."""

    memorized: Path
    """The prompts whose memories are to go: a list with a column `Caption` or `prompt`, and `image` for training pictures that you have."""
    general: Path
    """Ordinary prompts, none of them memorized: the first of the list calibrate, the last are drawn to see that nothing else changed."""
    limit: int | None = Field(default=None, ge=1)
    """Use the first so many of the memorized prompts."""


class CalibrationSettings(Settings):
    """Reference statistics of the value neurons and the threshold τ, both from the general prompts."""

    statistics: Path | None = None
    """A finished statistics file (our `.safetensors`, or the official `.pt`); nothing is computed then but τ."""
    threshold: Annotated[float, AfterValidator(_given_threshold)] | None = None
    """τ itself, where it is known; the paper's for Stable Diffusion 1.4 is 0.428."""
    prompts: int = Field(default=300, ge=2, le=1_000_000)
    """How many of the general prompts are used."""


class LocalizationSettings(Settings):
    """The method's settings; the defaults are the official code's."""

    mode: Literal["paper", "fast"] = "paper"
    """`paper`: the official code's decisions; `fast`: group testing, a set of another choice with the same guarantee."""
    layers: Literal["paper", "all"] = "paper"
    """`paper`: down and mid blocks, as paper (§3) and code have it; `all`: the up blocks too, ours."""
    seed: Seed = 1
    """One seed for all latents: the code's (the paper's Alg. 1 seeds each latent with its number)."""
    samples: int = Field(default=10, ge=2, le=64)
    """Latents, 10 in paper (§3.1) and code."""
    steps: int = Field(default=50, ge=2, le=1000)
    """DDIM steps of the schedule, of which the second is used: the code's (the paper's δ is of the first)."""
    guidance: Factor = 7.0
    """What the UNet of a consistency model (LCM), which is told the guidance, is told; no other sees it."""
    initial_theta: float = Field(default=5.0, gt=0, le=100)
    """θ at the start, in standard deviations: paper (Alg. 2) and code."""
    theta_step: float = Field(default=0.25, ge=0.001, le=100)
    """How much θ falls in a step: paper and code."""
    min_theta: Factor = 1.0
    """Where θ ends: paper and code; that it is itself never evaluated is the code's."""
    initial_k: int = Field(default=0, ge=0, le=1_000_000)
    """Neurons of highest activation taken from each layer at the start, one more in each step: paper and code."""
    dtype: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Of the UNet during the search; decisions that are too close for it are made again in fp32."""
    channels_last: bool = False
    """Of the UNet's tensors."""
    compiled: bool = False
    """Let torch.compile have the UNet's parts, which takes minutes."""
    group_by: Literal["prompt", "cluster", "list"] = "prompt"
    """What has one set of neurons, refined together: each prompt, each cluster of near-duplicate prompts, or the whole list."""
    paraphrases: int = Field(default=0, ge=0, le=1000)
    """Variants of each memorized prompt that must not bring its memory back."""
    prompts: Rows = 8
    """Prompts that are searched together and share forwards."""
    rows: Rows | None = None
    """Rows of the UNet in one forward; not given: as the model's size and the device have it, 64 at most."""


class ExportSettings(Settings):
    """The ONNX files."""

    variants: tuple[Variant, ...] = Field(default=("baked", "masked"), min_length=1)
    """Which UNets: `baked` has the neurons zeroed for good, `masked` takes a mask of neurons with each request."""
    dtype: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Of the weights in the files. 16 bits halve size and memory; a runtime on the CPU computes fp16 in fp32 and has no bf16."""
    fp32: tuple[Literal["text_encoder", "text_encoder_2", "unet", "vae_decoder"], ...] = ()
    """Components that stay in float32 whatever the `dtype`. The decoder of Stable Diffusion XL does in any case where its
    checkpoint says so (`force_upcast`), and so does one whose outputs are not finite in `dtype`."""
    opset: int = Field(default=23, ge=18, le=24)
    """Version of ONNX's operators. A higher one asks for newer runtimes; a lower one is for runtimes that refuse this."""
    height: Pixels | None = None
    """Pin the height of the pictures (pixels); any height where it is not given."""
    width: Pixels | None = None
    """Pin the width of the pictures (pixels); any width where it is not given."""
    batch: Rows | None = None
    """Pin the batch of every graph, of which the UNet has two rows a picture with guidance; any batch where it is not given."""

    @field_validator("variants")
    @classmethod
    def _check_variants(cls, variants: tuple[Variant, ...]) -> tuple[Variant, ...]:
        if len(set(variants)) < len(variants):
            raise ValueError("a variant is named twice")
        return variants

    def pinned(self, sizes: Iterable[str], factor: int) -> dict[str, int]:
        """The dimensions that are fixed: those of `sizes` that are, in latents of `factor` pixels, and the batch."""
        wanted = {"height": self.height, "width": self.width}
        fixed = {name: pixels // factor for name, pixels in wanted.items() if pixels and name in sizes}
        return {**fixed, **({"batch": self.batch} if self.batch else {})}


class SamplingSettings(Settings):
    """How pictures are made: what diffusers' own pipeline makes of the same settings."""

    scheduler: Scheduler = "checkpoint"
    """`checkpoint`: the model's own, as it is configured; another is made of its configuration, and clips latents only if that does."""
    timestep_spacing: Literal["leading", "linspace", "trailing"] | None = None
    """Where the steps lie on the noise schedule (diffusers' key); not given: as configured."""
    karras: bool | None = None
    """Noise levels after Karras et al. 2022, for euler, dpmsolver++, sde-dpmsolver++ and unipc; not given: as configured."""
    steps: int = Field(default=50, ge=1, le=1000)
    """Denoising steps of a picture. Time grows with them; schedulers of higher order (dpmsolver++, unipc) need fewer."""
    guidance: Factor = 7.0
    """Guidance scale: higher follows the prompt more closely, with less variety. Up to 1 there is none, and the UNet takes one row a
    picture. A UNet of a consistency model (LCM) is told the scale, and takes one row in any case."""
    negative_prompt: str = ""
    """What guidance leads away from; empty: from what an empty prompt draws."""
    height: Pixels | None = None
    """Height of the pictures (pixels); what the model was trained on where it is not given. Memory and time grow with it."""
    width: Pixels | None = None
    """Width of the pictures (pixels); as for the height."""


class FidelitySettings(Settings):
    """How the finished engines are examined."""

    seeds: Rows = 10
    """Pictures of each memorized prompt, with and without its memory, from the seeds 0 up to this number."""
    general_prompts: Count = 16
    """Held-out general prompts whose pictures are compared."""
    general_seeds: Rows = 2
    """Pictures of each general prompt; their diversity needs two."""
    agreement_seeds: int = Field(default=1, ge=0, le=4096)
    """Pictures of each memorized prompt that eager makes too, with the same neurons silenced, to compare the engines' with."""
    curve: tuple[Annotated[Factor, Field(gt=0)], ...] = Field(default=(0.5, 1, 4, 16), max_length=64)
    """Sizes of the neuron sets whose effect on general prompts is drawn, relative to the set found: up to 1 a part of it,
    above it random neurons too."""
    sscd: Path | None = None
    """SSCD's TorchScript file, to be measured beside the ℓ2 distance."""


class AttackSettings(Settings):
    """How a finished bundle is attacked: with text that anyone can type, and with embeddings that an owner of the weights optimises."""

    controls: Path | None = None
    """Folder of pictures like the training pictures that the model never saw: what comes back of these was painted by the attack."""
    limit: int | None = Field(default=None, ge=1)
    """Attack the first so many of the known training pictures, and take as many of the controls."""
    text: tuple[TextWay, ...] = ("paraphrases", "random tokens", "greedy search", "random search")
    """Attacks with text: small changes of the prompt's words, words of the vocabulary thrown into it, and words searched for by the
    diffusion loss on the known picture, one after the other or by chance. Empty: none."""
    starts: tuple[Start, ...] = ("prompt",)
    """What an embedding is at first: that of the memorized prompt, standard normal noise, or that of an unrelated prompt. Empty: none."""
    unrelated: str = Field(default="a photo of a dog", pattern=r"\S")
    """The unrelated prompt. Pictures that the model never saw, which have no prompt, are attacked from it too."""
    steps: int = Field(default=50, ge=1, le=10_000)
    """Steps of an embedding's optimiser. Beyond 100 it begins to paint pictures that the model never saw (Finding DoRI)."""
    batches: Count = 2000
    """What a search for text may ask of the UNet for a picture: batches of 8 rows; one with a gradient counts as three."""
    words: int = Field(default=4, ge=1, le=32)
    """Words of a text that is searched for; with batches left the search begins again, with other noise."""
    candidates: Count = 64
    """Words of the vocabulary that a greedy search tries at each place."""
    gradients: bool = True
    """Choose these words by the loss's gradient; else by chance, as one does who has no weights."""
    variants: int = Field(default=16, ge=1, le=1000)
    """Paraphrases of a prompt, and as many of it with random tokens."""
    seeds: int = Field(default=4, ge=1, le=1000)
    """Pictures drawn with each embedding and each text, from the seeds 0 up to this number."""
    seed: Seed = 0
    """Of the attack's own noise, times and chances."""

    @field_validator("starts", "text")
    @classmethod
    def _check_distinct(cls, ways: tuple[Way, ...]) -> tuple[Way, ...]:
        if len(set(ways)) < len(ways):
            raise ValueError("one is named twice")
        return ways

    @model_validator(mode="after")
    def _check_any(self) -> Self:
        if not self.text and not self.starts:
            raise ValueError("neither text nor starts: there is no attack left")
        return self

    @property
    def searches(self) -> tuple[TextWay, ...]:
        """The attacks with text that look for it by the loss on a known picture."""
        return tuple(way for way in self.text if way in ("greedy search", "random search"))


class LatencySettings(Settings):
    """How times are taken. Eager PyTorch and every engine take turns, each in a process of its own."""

    targets: tuple[Target, ...] = Field(default=("text_encoder", "unet", "vae_decoder", "pipeline"), min_length=1)
    """What is timed: single components, and `pipeline`, a picture from its prompt on."""
    batches: tuple[int, ...] = Field(default=(1,), min_length=1)
    """Pictures at once."""
    sizes: tuple[Size, ...] = ()
    """Heights and widths in pixels, "512x768" or [512, 768]; the sampling's where none is given."""
    steps: int | None = Field(default=None, ge=1, le=1000)
    """Denoising steps of the whole pipeline; the sampling's where it is not given."""
    runs: Count = 10
    """Measured calls, at least; so many rounds in which the contenders take turns."""
    seconds: Seconds = 3.0
    """Time measured for each contender, at least."""
    warmup_s: Seconds = 10.0
    """Longest warm-up of a contender in one case."""
    stability: float = Field(default=0.05, gt=0, le=1000)
    """The warm-up ends when the medians of two windows of three calls differ by no more than this share."""
    variation: float = Field(default=0.1, gt=0, le=1000)
    """Coefficient of variation above which a timing is called noisy."""
    threads: Rows | None = None
    """Threads of every contender; the engine's where it is not given."""
    eager: bool = True
    """Measure eager PyTorch beside the engines."""
    compiled: bool = False
    """Measure `torch.compile` too, which needs a C++ compiler."""
    beside: tuple[Rival, ...] = ("eager bf16",)
    """What takes its turns too: eager with its weights cast, unless `eager = false`, and other runtimes of the ONNX files on the CPU."""

    @field_validator("batches", "sizes", "targets", "beside")
    @classmethod
    def _check_distinct(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(values)) < len(values):
            raise ValueError("a value is named twice")
        numbers = [n for value in values if not isinstance(value, str) for n in (value if isinstance(value, tuple) else [value])]
        if any(number < 1 for number in numbers):
            raise ValueError("batches and sizes are whole numbers from 1 on")
        if any(number > MOST_PIXELS for number in numbers):
            raise ValueError(f"batches and sizes are {MOST_PIXELS} at the most")
        if any(number % 8 for value in values if isinstance(value, tuple) for number in value):
            raise ValueError("sizes are multiples of 8 pixels")
        return values


def _limit(value: object) -> object:
    """A limit as it was meant: 0 is a number, though pydantic takes it for `False` where it is whole."""
    if value is False or value is None:
        return value
    if isinstance(value, int | float) and value is not True and 0 <= value < inf:
        return float(value)
    raise ValueError("a gate is a number from 0 on, or false, which turns it off; leave the key out for its default")


ENGINE_TOLERANCES = {"fp32": 1e-4, "fp16": 0.05, "bf16": 0.2}
"""Largest error of engine against eager where a recipe says nothing, by the type of the weights."""


def _count(value: object) -> object:
    found = _limit(value)
    return int(found) if isinstance(found, float) and found.is_integer() else found


Limit = Annotated[float | Literal[False], BeforeValidator(_limit)]


class GateSettings(Settings):
    """What the bundle must hold to be shipped; a gate set to `false` in TOML is not applied."""

    memorization_score: Limit | None = None
    """Highest score left on a memorized prompt; τ where it is not given."""
    schedule_floor: Annotated[int | Literal[False], BeforeValidator(_count)] = 0
    """How many prompts may end at the schedule's floor, with a score above τ."""
    paraphrases: Limit = 0.0
    """Highest share of the variants that are memorized too which still bring a memory back, where variants were made."""
    replication: Limit = 0.0
    """Highest share of the examined prompts that return a known training picture, their own or another's, from any seed."""
    attack_text: Limit = 0.0
    """Highest share of the attacked memories that text brings back, where [attack] has text; an attack that is too weak decides nothing."""
    attack_embedding: Limit = False
    """The same for optimised embeddings, where [attack] has starts."""
    general_drift: Limit = 0.1
    """Largest mean drift of general pictures, 1 - SSIM, against the unmitigated model."""
    latent_drift: Limit = False
    """Largest mean drift of the general pictures' latents, relative ℓ2 distance."""
    diversity_loss: Limit = 0.1
    """Largest share of the diversity of general pictures that may be lost."""
    engine_error: Limit | None = None
    """Largest error of engine against eager along the trajectory, relative to the largest value of the tensor; where it is
    not given, 1e-4 for fp32, 0.05 for fp16, 0.2 for bf16."""
    mitigation_agreement: Limit | None = None
    """Largest difference of a prompt's score or copy distance between engine and eager; as for `engine_error`, 1e-3, 0.05, 0.1."""
    mask_of_ones: Limit | None = None
    """Largest error of the masked engine with a mask of ones against the unmitigated engine; 0 for fp32, else `engine_error`'s."""
    slow_down: Limit = 1.05
    """Highest time of an engine's UNet over that of the unmitigated engine: the lower end of the interval. Noisy times do not decide."""
    eager_ratio: Limit = False
    """Highest time of an engine's UNet over that of eager PyTorch, the lower end of the interval."""

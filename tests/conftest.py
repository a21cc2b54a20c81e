"""Toy checkpoints, seeded and tiny, of the families the product takes; and the demo checkpoint that ships with it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:  # two processes of two threads each are far slower than two of one
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    EulerDiscreteScheduler,
    SchedulerMixin,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from once import once
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from nemo_edge import demo
from nemo_edge.demo.glyphs import font_path
from nemo_edge.localization.calibration import calibrate
from nemo_edge.localization.localizer import Localizer
from nemo_edge.model.checkpoint import Checkpoint, open_checkpoint
from nemo_edge.recipe.recipe import Recipe, load_recipe
from nemo_edge.recipe.settings import GateSettings, LocalizationSettings
from nemo_edge.release.build import BuildResult, build
from nemo_edge.release.review import judge_again
from nemo_edge.serving.golden import Golden, check_golden, make_golden
from nemo_edge.serving.repository import ship
from nemo_edge.serving.server import Environment, Server, find_environment, serve
from nemo_edge.system.errors import MissingDependency

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


def pytest_configure(config: pytest.Config) -> None:
    """Hear Ctrl-C, which a shell has its background jobs ignore, and with them the programs that tests start and interrupt; and give the
    run a cache of its own."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if "PYTEST_XDIST_WORKER" not in os.environ:  # graphs that are traced are kept for all processes of a run, and not beyond it
        cache = tempfile.TemporaryDirectory(prefix="nemo-edge-tests-")
        os.environ["XDG_CACHE_HOME"] = cache.name
        config.add_cleanup(cache.cleanup)


OF_THE_DEMO = ("tests/demo/test_demo.py", "tests/journeys/test_readme.py")
"""Files with tests on the built demo: one process runs them, which builds it once."""
LONGEST = (
    *OF_THE_DEMO,
    "tests/release/test_rebake.py",
    "tests/release/test_build.py",
    "tests/export/test_component.py",
    "tests/export/test_parts.py",
    "tests/localization/test_localizer.py",
    "tests/cli/test_main.py",
    "tests/cli/test_bundle.py",
    "tests/journeys/test_killed.py",
    "tests/journeys/test_random_build.py",
    "tests/journeys/test_notebook.py",
    "tests/journeys/test_processes.py",
    "tests/journeys/test_guidance_embedding.py",
    "tests/dropin/test_load.py",
    "tests/measure/test_bench.py",
    "tests/journeys/test_clip_skip.py",
    "tests/serving/models/test_pipeline.py",
)
"""Files that take minutes, in the order in which they are begun, so that no process is left with one of them at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin the longest files first."""
    place = {file: number for number, file in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.nodeid.partition("::")[0], len(LONGEST)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Under `--dist loadfile`, give those on the built demo to one process, and files to processes in the order of the items."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            return OF_THE_DEMO[0] if file in OF_THE_DEMO else file

    config.option.loadscopereorder = False
    return ByFile(config, log)


def shared_data(name: str) -> Path:
    """A file of the public data beside the checkout; the test is skipped where it is absent."""
    path = SHARED_DATA / name
    if not path.is_file():
        pytest.skip(f"the public data file {name} is not beside the checkout")
    return path


@pytest.fixture(scope="session")
def tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(str(demo.CHECKPOINT / "tokenizer"))


def toy_unet(seed: int = 0, **changes: object) -> UNet2DConditionModel:
    """A UNet of Stable Diffusion 1.x's topology with seven value layers, random weights, ε-prediction."""
    torch.manual_seed(seed)
    settings = {
        "sample_size": 16,
        "block_out_channels": (8, 8, 16, 16),
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "layers_per_block": 2,
        "cross_attention_dim": 16,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    }
    return UNet2DConditionModel(**{**settings, **changes}).eval().requires_grad_(False)


def toy_text_encoder(tokenizer: CLIPTokenizer, cls: type = CLIPTextModel) -> CLIPTextModel:
    torch.manual_seed(1)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
        projection_dim=12,
    )
    return cls(config).eval()


def toy_vae() -> AutoencoderKL:
    torch.manual_seed(2)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=32,
    ).eval()


def other_vae(folder: Path) -> AutoencoderTiny:
    """Put a tiny VAE of another class into a saved checkpoint, and return it."""
    torch.manual_seed(3)
    widths = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    vae = AutoencoderTiny(**widths, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1)).eval()
    shutil.rmtree(folder / "vae")
    vae.save_pretrained(folder / "vae")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "vae": ["diffusers", "AutoencoderTiny"]}))
    return vae


def save_toy_sd(
    folder: Path,
    tokenizer: CLIPTokenizer,
    unet: UNet2DConditionModel | None = None,
    scheduler: SchedulerMixin | None = None,
    **schedule: object,
) -> Path:
    scheduler = scheduler or DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1, **schedule
    )
    StableDiffusionPipeline(
        vae=toy_vae(),
        text_encoder=toy_text_encoder(tokenizer),
        tokenizer=tokenizer,
        unet=unet or toy_unet(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def save_toy_sdxl(folder: Path, tokenizer: CLIPTokenizer, **changes: object) -> Path:
    settings: dict[str, object] = {
        "block_out_channels": (8, 16, 16),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 3),
        "cross_attention_dim": 32,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 12 + 6 * 4,
    }
    unet = toy_unet(**{**settings, **changes})
    StableDiffusionXLPipeline(
        vae=toy_vae(),
        text_encoder=toy_text_encoder(tokenizer),
        text_encoder_2=toy_text_encoder(tokenizer, CLIPTextModelWithProjection),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet,
        scheduler=EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1),
        add_watermarker=False,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: CLIPTokenizer) -> Path:
    return save_toy_sd(tmp_path_factory.mktemp("toy") / "sd", tokenizer)


@pytest.fixture(scope="session")
def toy(toy_folder: Path) -> Checkpoint:
    """A tiny ε-prediction Stable Diffusion checkpoint of 7 + 9 value layers, open. Tests leave it as it was."""
    return open_checkpoint(str(toy_folder))


@pytest.fixture(scope="session")
def toy_sdxl(tmp_path_factory: pytest.TempPathFactory, tokenizer: CLIPTokenizer) -> Checkpoint:
    return open_checkpoint(str(save_toy_sdxl(tmp_path_factory.mktemp("toy") / "sdxl", tokenizer)))


@pytest.fixture(scope="session")
def demo_checkpoint() -> Checkpoint:
    return open_checkpoint(str(demo.CHECKPOINT))


@pytest.fixture(scope="session")
def demo_localizer(demo_checkpoint: Checkpoint) -> Localizer:
    """A localizer of the demo, of four samples and τ 0.7, calibrated on few prompts."""
    texts = ["a mushroom", "whale carrot on a pink background", "a banana on a black background", "a whale", "doughnut pig"]
    settings = LocalizationSettings(samples=4)
    return Localizer(demo_checkpoint, calibrate(demo_checkpoint, texts, settings, with_threshold=False).statistics, 0.7, settings)


@pytest.fixture(scope="session")
def demo_recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """The demo's own recipe, which builds into a folder of this run: with half the pictures of a prompt, fewer timings, and one memory
    attacked of the four."""
    recipe = load_recipe(Path(__file__).parents[1] / "engines" / "demo.toml")
    assert recipe.attack is not None
    assert recipe.latency is not None
    changes = {
        "attack": recipe.attack.model_copy(update={"limit": 1}),
        "fidelity": recipe.fidelity.model_copy(update={"seeds": recipe.fidelity.seeds // 2}),
        "latency": recipe.latency.model_copy(update={"seconds": 0.5, "warmup_s": 0.2}),
    }
    return recipe.model_copy(update={"output": tmp_path_factory.mktemp("demo") / "demo", **changes})


@pytest.fixture(scope="session")
def demo_build(demo_recipe: Recipe) -> BuildResult:
    """The demo, built as its recipe says, which takes minutes: files that use it are in `OF_THE_DEMO`. Tests leave it as it is."""
    return build(demo_recipe)


@pytest.fixture
def font() -> Path:
    """The font that the demo's pictures are drawn with; tests that draw are skipped without it."""
    try:
        return font_path()
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str, str | bytes], Path]:
    """Write a file into the test's folder and return its path."""

    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


TINY_RECIPE = """
name = "tiny"
output = "out"
[checkpoint]
path = "./model"
[prompts]
memorized = "memorized.csv"
general = "general.txt"
limit = 2
[calibration]
prompts = 4
threshold = 1e-6
[localization]
samples = 3
[sampling]
steps = 3
[fidelity]
seeds = 2
general_prompts = 2
"""


def write_tiny(folder: Path, tokenizer: CLIPTokenizer) -> Path:
    """Write the recipe of a build of two value layers and two prompts, with its model, into a folder."""
    unet = toy_unet(
        block_out_channels=(8, 8),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
    )
    save_toy_sd(folder / "model", tokenizer, unet)
    (folder / "memorized.csv").write_text("Caption;URL\na red pig;u\n<script>alert(1)</script> owl;v\nthird;w\n")
    (folder / "general.txt").write_text("\n".join(f"a {word}" for word in ("dog", "cat", "bus", "key", "bell", "tree", "car")))
    (folder / "recipe.toml").write_text(TINY_RECIPE)
    return folder / "recipe.toml"


@pytest.fixture(scope="session")
def tiny_recipe(tmp_path_factory: pytest.TempPathFactory, tokenizer: CLIPTokenizer) -> Path:
    """The recipe of `write_tiny`; τ is hardly above 0, so that both prompts count as memorized."""
    return write_tiny(tmp_path_factory.mktemp("tiny"), tokenizer)


@pytest.fixture(scope="session")
def tiny_origin(tmp_path_factory: pytest.TempPathFactory, tokenizer: CLIPTokenizer) -> Path:
    """The folder where the tiny bundle was made, once for all processes of this run."""
    return once(tmp_path_factory, "tiny", lambda folder: build(load_recipe(write_tiny(folder, tokenizer))))


@pytest.fixture(scope="session")
def tiny_bundle(tiny_recipe: Path, tiny_origin: Path) -> Path:
    """The bundle of `tiny_recipe`, its stages' cache beside it. Tests leave both as they are and copy what they change."""
    for name in ("out", ".out.build"):
        shutil.copytree(tiny_origin / name, tiny_recipe.parent / name, dirs_exist_ok=True)
    return tiny_recipe.parent / "out"


@pytest.fixture(scope="session")
def shippable(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle judged by gates that it passes. Tests leave it as it is."""
    bundle = shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("shippable") / "bundle")
    judge_again(bundle, GateSettings(memorization_score=False, schedule_floor=False), write=True)
    return bundle


@pytest.fixture(scope="session")
def triton_environment() -> Environment:
    """The environment of the Triton server; tests are skipped without it."""
    try:
        return find_environment(Path(__file__).parents[1] / ".venv-triton")
    except MissingDependency as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def golden(shippable: Path) -> Golden:
    return make_golden(shippable)


@pytest.fixture(scope="session")
def triton(triton_environment: Environment, shippable: Path, golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A Triton server with the models of `shippable`, which has given the golden picture. Tests leave its models as they are."""
    repository = tmp_path_factory.mktemp("triton") / "repository"
    ship(shippable, repository)
    with serve(repository, triton_environment, lambda server: check_golden(golden, server.grpc)) as server:
        yield server

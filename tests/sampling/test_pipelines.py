"""Pipelines are opened whole: the engines of each variant, the unmitigated one that is made from two, and eager's."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import plans
import pytest

from nemo_edge.model.checkpoint import Checkpoint, open_checkpoint, value_layers
from nemo_edge.model.component import VALUE_MASK
from nemo_edge.model.configuration import Configuration
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.model.surgery import silenced
from nemo_edge.recipe.recipe import Recipe, load_recipe
from nemo_edge.recipe.targets import EngineSettings
from nemo_edge.sampling.loop import Pipeline, denoise, generate
from nemo_edge.sampling.pipelines import UNMITIGATED, eager_pipeline, has_unmitigated, open_pipeline, original_weights
from nemo_edge.system.errors import InputError, MissingDependency

PROMPTS, SEEDS = ["a red pig", "a bus"], [0, 1]
ENGINE = EngineSettings(threads=1)


@pytest.fixture(scope="module")
def recipe(tiny_recipe: Path) -> Recipe:
    return load_recipe(tiny_recipe)


@pytest.fixture(scope="module")
def checkpoint(tiny_recipe: Path) -> Checkpoint:
    return open_checkpoint(str(tiny_recipe.parent / "model"))


@pytest.fixture(scope="module")
def neurons(tiny_bundle: Path) -> NeuronSet:
    return NeuronSet.load(tiny_bundle / "neurons.json")


@pytest.fixture(scope="module", params=[ENGINE, EngineSettings(backend="openvino", threads=1)], ids=["onnxruntime", "openvino"])
def engine(request: pytest.FixtureRequest) -> EngineSettings:
    found: EngineSettings = request.param
    return found


@pytest.fixture(scope="module")
def engines(tiny_bundle: Path, engine: EngineSettings) -> Iterator[dict[str, Pipeline]]:
    with ExitStack() as stack:
        config = Configuration.load(tiny_bundle)
        yield {v: open_pipeline(config, tiny_bundle, engine, v, stack) for v in ("baked", "masked", UNMITIGATED)}


def last(pipeline: Pipeline, recipe: Recipe, mask: np.ndarray | None = None) -> np.ndarray:
    *_, step = denoise(pipeline, PROMPTS, SEEDS, recipe.sampling, mask)
    return step.latents_BCHW


def test_a_bundle_s_engines_draw_what_the_silenced_checkpoint_draws(
    checkpoint: Checkpoint, recipe: Recipe, engines: dict[str, Pipeline], neurons: NeuronSet
) -> None:
    with silenced(checkpoint.unet, neurons):
        expected = generate(eager_pipeline(checkpoint), PROMPTS, SEEDS, recipe.sampling)
    for variant, mask in (("baked", None), ("masked", neurons.mask())):
        got = generate(engines[variant], PROMPTS, SEEDS, recipe.sampling, mask)
        assert np.abs(got.astype(int) - expected).max() <= 1, variant


def test_the_unmitigated_engine_is_the_masked_one_with_a_mask_of_ones_bit_for_bit(
    recipe: Recipe, engines: dict[str, Pipeline], neurons: NeuronSet
) -> None:
    assert not engines[UNMITIGATED].masked
    ones = np.ones(neurons.total, np.float32)
    step = next(denoise(engines[UNMITIGATED], PROMPTS, SEEDS, recipe.sampling))
    masked = engines["masked"].unet({**step.feed, VALUE_MASK: np.repeat(ones[None], 4, axis=0)})
    assert np.array_equal(masked["out_sample"], step.output_RCHW)
    assert np.array_equal(last(engines["masked"], recipe, ones), last(engines[UNMITIGATED], recipe))


def test_the_unmitigated_engine_differs_from_the_baked_one_and_is_eager(
    checkpoint: Checkpoint, recipe: Recipe, engines: dict[str, Pipeline]
) -> None:
    plain, baked, eager = (last(p, recipe) for p in (engines[UNMITIGATED], engines["baked"], eager_pipeline(checkpoint)))
    assert np.abs(plain - baked).max() > 1e-4
    assert np.abs(plain - eager).max() < 1e-4 * np.abs(eager).max()


def test_opening_the_unmitigated_engine_changes_no_file(
    tiny_bundle: Path, recipe: Recipe, engine: EngineSettings, engines: dict[str, Pipeline]
) -> None:
    with ExitStack() as stack:
        again = open_pipeline(Configuration.load(tiny_bundle), tiny_bundle, engine, "baked", stack)
        assert np.array_equal(last(again, recipe), last(engines["baked"], recipe))


def test_original_weights_are_the_checkpoint_s_by_their_names_in_the_baked_graph(checkpoint: Checkpoint, tiny_bundle: Path) -> None:
    found = original_weights(tiny_bundle)
    expected = [checkpoint.unet.get_submodule(layer.name).weight.numpy().T for layer in value_layers(checkpoint.unet)]
    assert len(found) == len(expected) == 2
    assert all(np.array_equal(a, b) for a, b in zip(found.values(), expected, strict=True))


@pytest.mark.parametrize("lacking", ["unet", "unet_masked"])
def test_a_bundle_without_both_variants_has_no_unmitigated_engine(tiny_bundle: Path, tmp_path: Path, lacking: str) -> None:
    folder = shutil.copytree(tiny_bundle, tmp_path / "bundle", ignore=lambda _, names: [n for n in names if n == lacking])
    with ExitStack() as stack, pytest.raises(InputError, match=r"has no unmitigated engine: build it with export\.variants"):
        open_pipeline(Configuration.load(folder), folder, ENGINE, UNMITIGATED, stack)
    with pytest.raises(InputError, match="has no unmitigated engine"):
        original_weights(folder)


def test_both_variants_are_needed_for_the_unmitigated_one() -> None:
    assert has_unmitigated(("baked", "masked"), ENGINE)
    assert has_unmitigated(("masked", "baked"), ENGINE)
    assert not has_unmitigated(("baked",), ENGINE)
    assert not has_unmitigated(("masked",), ENGINE)


def test_an_engine_that_was_not_built_and_a_provider_that_is_not_here_are_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    config = Configuration.load(tiny_bundle)
    with (
        ExitStack() as stack,
        pytest.raises(InputError, match=r"has no cuda engine of text_encoder: build it with engine\.provider = 'cuda'"),
    ):
        open_pipeline(config, tiny_bundle, EngineSettings(provider="cuda"), "baked", stack)
    folder = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    for path in (folder / "engines").iterdir():
        path.with_name(path.name.replace("cpu", "tensorrt")).write_text(path.read_text().replace('"cpu"', '"tensorrt"'))
    with ExitStack() as stack, pytest.raises(MissingDependency):
        open_pipeline(config, folder, EngineSettings(provider="tensorrt"), "baked", stack)


def test_tensorrt_has_no_unmitigated_engine_of_its_own() -> None:
    for backend in ("tensorrt", "tensorrt-rtx"):
        assert not has_unmitigated(("baked", "masked"), EngineSettings(backend=backend))


def test_engines_of_tensorrt_are_looked_for_and_judged_before_one_is_opened(tiny_bundle: Path, tmp_path: Path) -> None:
    folder, config = shutil.copytree(tiny_bundle, tmp_path / "bundle"), Configuration.load(tiny_bundle)
    engine = EngineSettings(backend="tensorrt-rtx")
    for place in ("text_encoder", "unet_masked", "vae_decoder"):
        with ExitStack() as stack, pytest.raises(InputError, match=f"has no TensorRT-RTX engine of {place}: build it with"):
            open_pipeline(config, folder, engine, UNMITIGATED, stack)
        name = f"engines/{place}.tensorrt-rtx.sm75.engine"
        plans.write(folder, plans.compiled("SM75"), plans.sidecar(component=place, plan=name, targets=("sm75",)), name)
    for variant in (UNMITIGATED, "masked"):
        with (
            ExitStack() as stack,
            pytest.raises(MissingDependency, match=r"engine of text_encoder in .*: built for sm75; this machine has "),
        ):
            open_pipeline(config, folder, engine, variant, stack)
    with ExitStack() as stack, pytest.raises(InputError, match="has no TensorRT-RTX engine of unet: build it with"):
        open_pipeline(config, folder, engine, "baked", stack)


def test_leaving_the_stack_closes_every_engine(tiny_bundle: Path) -> None:
    with ExitStack() as stack:
        pipeline = open_pipeline(Configuration.load(tiny_bundle), tiny_bundle, ENGINE, "baked", stack)
    for runner in (*pipeline.text, pipeline.unet, pipeline.vae):
        with pytest.raises(InputError, match="this runner is closed"):
            runner({})


def test_a_compiled_pipeline_leaves_the_checkpoint_s_modules_alone(checkpoint: Checkpoint, recipe: Recipe) -> None:
    before = type(checkpoint.unet)
    compiled = eager_pipeline(checkpoint, compiled=True)  # nothing is compiled before the first call
    assert type(checkpoint.unet) is before
    assert compiled.unet.inputs == eager_pipeline(checkpoint).unet.inputs

"""Activations, counted while pictures are drawn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from nemo_edge.export.quantization._observation import Observed, observe
from nemo_edge.export.quantization._operators import operators
from nemo_edge.graph.onnxfile import Graph, open_graph
from nemo_edge.model.configuration import Configuration
from nemo_edge.recipe.settings import SamplingSettings
from nemo_edge.recipe.targets import EngineSettings
from nemo_edge.sampling.loop import Pipeline, denoise
from nemo_edge.sampling.pipelines import open_pipeline
from nemo_edge.system.errors import InputError
from nemo_edge.system.progress import Progress

SAMPLING = SamplingSettings(scheduler="ddim", steps=2, guidance=3.0)


@pytest.fixture(scope="module")
def graph(tiny_bundle: Path) -> Graph:
    return open_graph(tiny_bundle / "unet" / "model.onnx")


@pytest.fixture(scope="module")
def pipeline(tiny_bundle: Path) -> Iterator[Pipeline]:
    with ExitStack() as stack:
        yield open_pipeline(Configuration.load(tiny_bundle), tiny_bundle, EngineSettings(), "baked", stack)


def watched(graph: Graph) -> Observed:
    chosen, _ = operators(graph, ())
    return Observed(graph, {o.input: o.module for o in chosen} | {"out_sample": "conv_out"}, None)


def test_what_is_watched_says_the_same_and_counts_every_value(graph: Graph, pipeline: Pipeline) -> None:
    unet = watched(graph)
    *_, last = denoise(pipeline, ["a dog"], [0], SAMPLING)
    expected = pipeline.unet(last.feed)
    got = unet(last.feed)
    assert got.keys() == {"out_sample"}
    np.testing.assert_allclose(got["out_sample"], expected["out_sample"], atol=1e-5)
    counted = unet.histograms["out_sample"]
    assert counted.counts.sum() == got["out_sample"].size
    assert counted.largest == np.abs(got["out_sample"]).max()
    given = unet.histograms["encoder_hidden_states"]
    assert given.largest == np.abs(last.feed["encoder_hidden_states"]).max()


def test_what_was_interrupted_goes_on_and_counts_the_same(graph: Graph, pipeline: Pipeline, tmp_path: Path) -> None:
    prompts, whole, first, second = ["a dog", "a cat", "a bus"], watched(graph), watched(graph), watched(graph)
    observe(pipeline, whole, prompts, 0, SAMPLING, tmp_path / "whole.npz", Progress())
    observe(pipeline, first, prompts[:2], 0, SAMPLING, tmp_path / "kept.npz", Progress())
    observe(pipeline, second, prompts, 0, SAMPLING, tmp_path / "kept.npz", Progress())
    for name, histogram in whole.histograms.items():
        np.testing.assert_array_equal(histogram.counts, second.histograms[name].counts)
        assert histogram.largest == second.histograms[name].largest


def test_what_is_not_finite_is_told_with_module_step_and_prompt(graph: Graph, pipeline: Pipeline, tmp_path: Path) -> None:
    unet = watched(graph)
    name = next(iter(unet.histograms))

    def refuse(values: np.ndarray) -> None:
        raise ValueError("a value is not finite")

    unet.histograms[name].add = refuse  # type: ignore[method-assign]
    module = {o.input: o.module for o in operators(graph, ())[0]}[name]
    with pytest.raises(InputError, match=rf"{module}: a value is not finite, .* \(step 1 of 'a dog'\)"):
        observe(pipeline, unet, ["a dog"], 0, SAMPLING, tmp_path / "kept.npz", Progress())
    assert not (tmp_path / "kept.npz").exists()

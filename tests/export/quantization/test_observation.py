"""Activations, counted while pictures are drawn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from nemo_edge.backends.onnxruntime import OnnxRuntimeRunner
from nemo_edge.export.quantization import _observation, ranges
from nemo_edge.export.quantization._observation import Observed, _thinning, observe
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


LAYERS, CHANNELS, SIDE = 24, 8, 512


def chain(path: Path) -> tuple[Graph, dict[str, str]]:
    """Convolutions one after the other, and what is watched of them: twice so many tensors, of 8 MB each where a side is `SIDE`."""
    weight = np.random.default_rng(0).standard_normal((CHANNELS, CHANNELS, 3, 3)).astype(np.float32) * 0.1
    nodes, tensors, last = [], {}, "x"
    for number in range(LAYERS):
        made, after = f"made{number}", f"after{number}"
        nodes.append(helper.make_node("Conv", [last, "w"], [made], name=f"conv{number}", pads=[1] * 4))
        nodes += [helper.make_node("Sigmoid", [made], [f"s{number}"]), helper.make_node("Mul", [made, f"s{number}"], [after])]
        tensors |= {made: f"module {number}", after: f"module {number + 1}"}
        last = after
    nodes.append(helper.make_node("Identity", [last], ["y"]))
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, CHANNELS, "height", "width"]) for name in "xy")
    graph = helper.make_graph(nodes, "chain", [x], [y], [numpy_helper.from_array(weight, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), str(path))
    return open_graph(path), tensors


def noise(side: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).standard_normal((1, CHANNELS, side, side), np.float32)}


def test_what_the_graph_thins_out_counts_as_the_whole_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (_observation, ranges):
        monkeypatch.setattr(module, "COUNTED", 1000)
    graph, tensors = chain(tmp_path / "chain.onnx")
    model = _thinning(graph.model, [*tensors])
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors)
    with OnnxRuntimeRunner(graph.path, graph=model.SerializeToString(), in_order=True) as runner:
        found = runner(noise(24))
    for name in tensors:
        some, whole = ranges.Histogram(), ranges.Histogram()
        some.add_some(found[f"{name}_some"], float(found[f"{name}_largest"].max()))
        whole.add(found[name])
        assert found[name].size == CHANNELS * 24 * 24 > found[f"{name}_some"].size
        assert some.largest == whole.largest == np.abs(found[name]).max()
        np.testing.assert_array_equal(some.counts, whole.counts)


def test_the_graph_thins_out_a_wide_tensor_through_all_its_channels(tmp_path: Path) -> None:
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, "tokens", 1280]) for name in "xy"]
    nodes = [helper.make_node("Relu", ["x"], ["made"], name="relu"), helper.make_node("Identity", ["made"], ["y"])]
    model = helper.make_model(helper.make_graph(nodes, "wide", ports[:1], ports[1:]), opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    onnx.save(model, str(tmp_path / "wide.onnx"))
    channels = np.broadcast_to(1 + np.arange(1280, dtype=np.float32), (1, 512, 1280))
    with OnnxRuntimeRunner(tmp_path / "wide.onnx", graph=_thinning(model, ["made"]).SerializeToString()) as runner:
        some = runner({"x": channels})["made_some"]
    np.testing.assert_array_equal(some.ravel(), channels.ravel()[:: ranges.step_of(channels.size)])
    assert np.unique(some).size == 1280


def test_a_pinned_batch_is_counted_in_its_parts(tmp_path: Path) -> None:
    graph, tensors = chain(tmp_path / "chain.onnx")
    rows, name = np.concatenate([noise(24)["x"], 2 * noise(24)["x"]]), "after0"
    with Observed(graph, tensors, None) as both, Observed(graph, tensors, None) as single:
        both({"x": rows})
        for row in rows:
            single({"x": row[None]})
    assert both.histograms[name].counts.sum() == 2 * CHANNELS * 24 * 24
    assert both.histograms[name].largest == single.histograms[name].largest
    np.testing.assert_array_equal(both.histograms[name].counts, single.histograms[name].counts)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_is_found_by_the_graph(tmp_path: Path, bad: float) -> None:
    graph, tensors = chain(tmp_path / "chain.onnx")
    with Observed(graph, tensors, None) as unet:
        unet(noise(24))
        feed = noise(24)
        feed["x"][0, 3, 11, 5] = bad
        with pytest.raises(InputError, match=r"^module 0: a value is not finite, so that no range holds it$"):
            unet(feed)


def peak_mb(path: Path, side: int) -> float:
    """What a call of a chain that is watched adds to the largest memory of a process."""
    import resource

    graph, tensors = chain(path)
    with Observed(graph, tensors, 1) as unet:
        unet(noise(24))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        unet(noise(side))
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3


def test_tensors_are_not_kept_until_the_end_of_a_call(tmp_path: Path) -> None:
    with get_context("spawn").Pool(1) as pool:
        peak = pool.apply(peak_mb, (tmp_path / "chain.onnx", SIDE))
    watched_mb = 2 * LAYERS * CHANNELS * SIDE**2 * 4 / 1e6
    assert peak < watched_mb / 2


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

    def refuse(values: np.ndarray, largest: float) -> None:
        raise ValueError("a value is not finite")

    unet.histograms[name].add_some = refuse  # type: ignore[method-assign]
    module = {o.input: o.module for o in operators(graph, ())[0]}[name]
    with pytest.raises(InputError, match=rf"{module}: a value is not finite, .* \(step 1 of 'a dog'\)"):
        observe(pipeline, unet, ["a dog"], 0, SAMPLING, tmp_path / "kept.npz", Progress())
    assert not (tmp_path / "kept.npz").exists()

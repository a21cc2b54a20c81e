"""Any two runners of one checkpoint are compared, and nothing else is."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from nemo_edge.bundle.manifest import amend, open_bundle
from nemo_edge.measure.comparison import Comparison, Question, compare
from nemo_edge.measure.mitigation import Measurement
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.system.errors import BundleError, InputError

QUESTION = Question(steps=2)


@pytest.fixture(scope="module")
def model(tiny_recipe: Path) -> Path:
    return tiny_recipe.parent / "model"


@pytest.fixture
def edited(tiny_bundle: Path, tmp_path: Path) -> Path:
    """The bundle with one weight of the masked graph's `conv_in` changed, and its hash with it."""
    folder = shutil.copytree(tiny_bundle, tmp_path / "edited")

    def change(staged: Path) -> None:
        from nemo_edge.graph.onnxfile import open_graph

        path = staged / "unet_masked" / "model.onnx"
        graph = open_graph(path)
        (name, _) = graph.weights(["conv_in"])["conv_in"]
        (tensor,) = [t for t in graph.model.graph.initializer if t.name == name]
        place = {entry.key: entry.value for entry in tensor.external_data}
        data = bytearray(path.with_name(place["location"]).read_bytes())
        start = int(place.get("offset", 0))
        data[start : start + 4] = np.float32(3.0).tobytes()
        path.with_name(place["location"]).unlink()
        path.with_name(place["location"]).write_bytes(data)

    amend(folder, open_bundle(folder), change)
    return folder


def test_an_engine_agrees_with_eager(model: Path, tiny_bundle: Path) -> None:
    found = compare(str(model), str(tiny_bundle), QUESTION)
    assert found.passed
    assert (found.reference, found.candidate) == (f"{model}:mitigated", f"{tiny_bundle}:baked")
    assert 0 < found.agreement.largest_error <= found.tolerance == 1e-4
    assert (found.steps, found.drift_start, found.divergence) == (2, None, None)
    measured = Measurement.read(tiny_bundle)
    own = (*(m.prompt for m in measured.variants[0].mitigations[:2]), *measured.general_prompts[:2])
    assert found.prompts == own
    assert Comparison.model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize(
    ("reference", "candidate"), [("", ":masked"), (":unmitigated", ":unmitigated"), ("", ":unmitigated"), (":mitigated", "")]
)
def test_eager_is_silenced_as_the_engine_is(model: Path, tiny_bundle: Path, reference: str, candidate: str) -> None:
    assert compare(f"{model}{reference}", f"{tiny_bundle}{candidate}", QUESTION).passed


def test_sides_may_be_swapped(model: Path, tiny_bundle: Path) -> None:
    found = compare(f"{tiny_bundle}:masked", str(model), QUESTION)
    assert found.passed
    assert found.candidate == f"{model}:mitigated"


def test_baked_and_masked_are_bit_identical(tiny_bundle: Path) -> None:
    found = compare(f"{tiny_bundle}:baked", f"{tiny_bundle}:masked", Question(steps=2, tolerance=1e-30))
    assert found.agreement.largest_error == 0
    assert found.agreement.picture_levels == 0
    assert found.passed


@pytest.mark.parametrize("other", [":baked", ":masked"])
def test_the_unmitigated_engine_differs_at_a_value_layer(tiny_bundle: Path, other: str) -> None:
    found = compare(f"{tiny_bundle}:unmitigated", f"{tiny_bundle}{other}", Question(steps=2, tolerance=1e-6))
    assert not found.passed
    assert found.divergence is not None
    assert found.divergence.component == "unet"
    touched = [layer.name for layer, chosen in NeuronSet.load(tiny_bundle / "neurons.json").items() if chosen]
    assert found.divergence.module == touched[0]
    assert found.drift_start == 0


def test_a_fault_in_an_engine_is_located(model: Path, edited: Path) -> None:
    for sides in ((str(model), f"{edited}:masked"), (f"{edited}:masked", str(model))):
        found = compare(*sides, QUESTION)
        assert not found.passed
        assert found.divergence is not None
        assert (found.divergence.component, found.divergence.module) == ("unet", "conv_in")
    assert compare(str(model), f"{edited}:baked", QUESTION).passed


def test_questions_are_answered_as_they_are_asked(model: Path, tiny_bundle: Path) -> None:
    strict = compare(str(model), str(tiny_bundle), Question(["a bus"], seed=7, steps=1, tolerance=1e-12))
    assert (strict.prompts, strict.steps, strict.tolerance, strict.passed) == (("a bus",), 1, 1e-12, False)
    default = compare(str(model), str(tiny_bundle), Question(["a bus"]))
    assert default.steps == 3
    other = compare(str(model), str(tiny_bundle), Question(["a bus"], seed=8, steps=1, tolerance=1e-12))
    assert other.agreement.steps != strict.agreement.steps


@pytest.mark.parametrize(
    ("reference", "candidate", "reason"),
    [
        ("{model}", "{model}", "neither .* nor .* is a bundle: one side must be one"),
        ("{other}", "{bundle}", "are not of the same checkpoint: their weights have other hashes"),
        ("{bundle}", "{other}", "are not of the same checkpoint"),
        ("{model}", "{bundle}:half", "names no variant 'half': take one of baked, masked, mitigated, unmitigated"),
        ("{model}:half", "{bundle}", "names no variant 'half'"),
        ("{bundle}", "{model}/none", "none does not exist"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    model: Path, tiny_bundle: Path, toy_folder: Path, reference: str, candidate: str, reason: str
) -> None:
    places = {"model": model, "bundle": tiny_bundle, "other": toy_folder}
    with pytest.raises(InputError, match=reason):
        compare(reference.format(**places), candidate.format(**places), QUESTION)


def test_a_variant_that_the_bundle_lacks_is_refused(model: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_bundle, tmp_path / "baked")
    amend(folder, open_bundle(folder).model_copy(update={"variants": ("baked",)}), lambda staged: shutil.rmtree(staged / "unet_masked"))
    with pytest.raises(InputError, match=r"has no masked engine: it has baked$"):
        compare(str(model), f"{folder}:masked", QUESTION)
    with pytest.raises(InputError, match=r"has no unmitigated engine: it has baked$"):
        compare(str(model), f"{folder}:unmitigated", QUESTION)


def test_the_masked_engine_alone_is_unmitigated_by_its_mask(model: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_bundle, tmp_path / "masked")
    amend(folder, open_bundle(folder).model_copy(update={"variants": ("masked",)}), lambda staged: shutil.rmtree(staged / "unet"))
    assert compare(str(model), f"{folder}:unmitigated", QUESTION).passed
    assert compare(str(model), str(folder), QUESTION).passed


def test_a_changed_bundle_is_refused_before_it_is_opened(model: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_bundle, tmp_path / "changed")
    (folder / "unet" / "model.onnx").write_bytes(b"code")
    for sides in ((str(model), str(folder)), (str(folder), str(model)), (str(tiny_bundle), f"{folder}:masked")):
        with pytest.raises(BundleError, match=r"unet/model\.onnx was changed.*no engine was opened"):
            compare(*sides, QUESTION)


def test_a_folder_whose_name_has_a_colon_is_a_folder(model: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_bundle, tmp_path / "a:masked")
    found = compare(str(model), str(folder), QUESTION)
    assert found.candidate == f"{folder}:baked"
    assert found.passed

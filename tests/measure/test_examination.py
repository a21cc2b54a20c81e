"""A bundle is examined whole, an interrupted examination goes on, and what must be exact is."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nemo_edge.localization.calibration import Calibration
from nemo_edge.localization.localizer import read_results
from nemo_edge.measure.examination import Subject, _Examination, examine
from nemo_edge.measure.localcopies import local_distances
from nemo_edge.measure.mitigation import Measurement
from nemo_edge.measure.readings import WHOLE, load_readings
from nemo_edge.measure.replication import Training, load_picture, tiled_distances
from nemo_edge.model.checkpoint import open_checkpoint
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.recipe.prompts import Prompt
from nemo_edge.recipe.recipe import Recipe, load_recipe
from nemo_edge.recipe.settings import FidelitySettings
from nemo_edge.system.progress import Advance, Progress

PROMPTS = ("a red pig", "<script>alert(1)</script> owl")
GENERAL = ("a tree", "a car")


def subject_of(recipe: Recipe, bundle: Path, images: Sequence[Path | None] = (None, None)) -> Subject:
    memorized = [Prompt(text=text, image=image) for text, image in zip(PROMPTS, images, strict=True)]
    general = [Prompt(text=text) for text in GENERAL]
    found = {r.prompt: r for r in read_results(bundle / "localization.jsonl")}
    calibration = Calibration.load(bundle / "calibration.safetensors")
    checkpoint, neurons = open_checkpoint(recipe.checkpoint.path), NeuronSet.load(bundle / "neurons.json")
    return Subject(checkpoint, bundle, recipe, memorized, general, [found[text] for text in PROMPTS], calibration, neurons)


@pytest.fixture(scope="module")
def recipe(tiny_recipe: Path) -> Recipe:
    fidelity = FidelitySettings(seeds=2, general_prompts=2, general_seeds=2, curve=(0.5, 1, 1.5))
    return load_recipe(tiny_recipe).model_copy(update={"fidelity": fidelity})


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for name in "ab":
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def subject(recipe: Recipe, tiny_bundle: Path, images: Path) -> Subject:
    """Of two prompts, the second with a training picture."""
    return subject_of(recipe, tiny_bundle, (None, images / "a.png"))


@pytest.fixture(scope="module")
def examined(subject: Subject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("examined")
    examine(subject, folder, Progress())
    return folder


@pytest.fixture(scope="module")
def measurement(examined: Path) -> Measurement:
    return Measurement.read(examined)


def names(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_every_picture_is_on_disk(examined: Path) -> None:
    expected = [f"{p:03d}/{w}-{s:02d}.png" for p in range(2) for w in ("before", "baked", "masked", "random") for s in range(2)]
    expected += ["001/training.png"]
    expected += [f"general/{p:03d}-{w}-{s:02d}.png" for p in range(2) for w in ("before", "baked", "masked") for s in range(2)]
    assert names(examined / "pictures") == sorted(expected)
    assert names(examined)[0] == "measurement.json"
    for name in expected:
        with Image.open(examined / "pictures" / name) as picture:
            assert (picture.size, picture.mode) == ((32, 32), "RGB")


def test_everything_is_measured(subject: Subject, measurement: Measurement) -> None:
    assert measurement.threshold == 1e-6
    assert measurement.general_scores == subject.calibration.highest
    assert measurement.general_prompts == GENERAL
    assert measurement.neurons == len(subject.neurons) > 0
    assert measurement.layers == tuple(layer.name for layer in subject.neurons.layers)
    assert [v.variant for v in measurement.variants] == ["baked", "masked"]
    for found, result in zip(measurement.found, subject.localizations, strict=True):
        assert [(n.layer, n.neuron) for n in found] == [(i, n) for i, chosen in enumerate(result.refined.indices) for n in chosen]
    for variant in measurement.variants:
        assert [m.prompt for m in variant.mitigations] == list(PROMPTS)
        assert all(m.agreement_error < 1e-3 for m in variant.mitigations)
        assert all(m.score_before == r.score for m, r in zip(variant.mitigations, subject.localizations, strict=True))
        assert variant.trajectory.largest_error < 1e-4
        assert variant.general.mean > 1e-6  # the mitigation does something
        assert len(variant.general.per_prompt) == 2
        assert variant.general.diversity_before > 0.1
    assert measurement.untouched is not None
    assert measurement.untouched.largest_error < 1e-4


def test_a_mask_of_ones_is_the_unmitigated_engine_exactly(measurement: Measurement) -> None:
    assert measurement.mask_of_ones == 0


def test_with_a_training_picture_copies_are_counted_and_compared_with_eager_s(
    measurement: Measurement, examined: Path, images: Path
) -> None:
    assert measurement.copy_threshold is not None
    assert measurement.copy_threshold > 0
    assert measurement.local_pairs == 4  # two general prompts from two seeds, one training picture
    for variant in measurement.variants:
        without, known = variant.mitigations
        assert (without.before.copies, without.distance_error) == (None, None)
        assert without.after.others is not None  # its pictures are compared with the other prompt's
        for which, view in (("before", known.before), (variant.variant, known.after), ("random", known.random)):
            pictures = np.stack([np.asarray(Image.open(examined / f"pictures/001/{which}-{seed:02d}.png")) for seed in range(2)])
            distances = tiled_distances(pictures, load_picture(images / "a.png", (32, 32))[None])
            assert view.copies == (distances <= measurement.copy_threshold).sum()
            assert view.distance == pytest.approx(np.median(distances))
            assert view.reading == WHOLE
            assert measurement.local_threshold is not None
            parts = local_distances(pictures, Training.of([load_readings(images / "a.png", (32, 32))], (32, 32)))
            assert view.local_copies == (parts <= measurement.local_threshold).sum()
            assert view.local_distance == pytest.approx(np.median(parts))
            assert view.others == 0  # there is no other training picture
        assert known.distance_error is not None
        assert 0 <= known.distance_error < 1e-2


def test_the_bundle_s_own_measurement_has_no_training_picture(tiny_bundle: Path) -> None:
    measured = Measurement.read(tiny_bundle)
    assert measured.copy_threshold is None
    assert all(m.distance_error is None and m.before.distance is None for v in measured.variants for m in v.mitigations)


def test_the_curve_goes_from_nothing_over_parts_to_everything_and_beyond(subject: Subject, measurement: Measurement) -> None:
    whole = len(subject.neurons)
    points = [(p.chosen, p.neurons) for p in measurement.curve]
    others = subject.neurons.total - whole
    expected = [("found", 0), ("found", max(1, round(whole / 2))), ("found", whole)]
    expected += [("random", min(whole, others)), ("random", min(round(1.5 * whole), others))]
    assert points == list(dict.fromkeys(expected))
    nothing, everything = measurement.curve[0], next(p for p in measurement.curve if p.neurons == whole)
    assert nothing.drift == pytest.approx(0, abs=1e-6)
    assert nothing.latents == 0
    masked = measurement.variants[1].general
    assert (everything.drift, everything.latents) == pytest.approx((masked.mean, masked.latents), abs=1e-5)
    assert everything.diversity == pytest.approx(masked.diversity_after, abs=1e-5)


def test_random_neurons_of_the_curve_are_none_that_were_found(subject: Subject) -> None:
    found = subject.neurons
    sets = dict(enumerate(_Examination(subject, {}, Path("none"), Progress())._curve_sets()))
    assert len(sets) == 5
    for chosen, neurons in sets.values():
        assert len(neurons & found) == (len(neurons) if chosen == "found" else 0)


def test_without_neurons_the_curve_is_a_point(subject: Subject) -> None:
    empty = NeuronSet.empty(subject.neurons.layers)
    nothing = [r.model_copy(update={"memorized": False, "initial": empty, "refined": empty}) for r in subject.localizations]
    without = replace(subject, localizations=nothing, neurons=empty)
    assert list(_Examination(without, {}, Path("none"), Progress())._curve_sets()) == [("found", empty)]


def test_an_interrupted_examination_draws_what_is_missing_alone(
    subject: Subject, examined: Path, measurement: Measurement, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nemo_edge.measure.examination.pictures_at_once", lambda pixels: 2)  # a prompt at a time
    folder = shutil.copytree(examined, tmp_path / "again")
    (folder / "measurement.json").unlink()
    memorized = [path for path in (folder / "pictures").glob("0*/*.png") if path.name != "training.png"]
    missing = folder / "pictures/001/masked-01.png"
    missing.unlink()
    before = {path: path.stat().st_mtime_ns for path in memorized if path != missing}
    again = examine(subject, folder, Progress())
    made = {path for path, changed in before.items() if path.stat().st_mtime_ns != changed}
    assert made == {folder / "pictures/001/masked-00.png"}  # of its group
    assert missing.read_bytes() == (examined / "pictures/001/masked-01.png").read_bytes()
    assert names(folder) == names(examined)
    for variant, before_it in zip(again.variants, measurement.variants, strict=True):  # of the pictures on disk
        for ours, theirs in zip(variant.mitigations, before_it.mitigations, strict=True):
            assert (ours.before, ours.after, ours.random) == (theirs.before, theirs.after, theirs.random)


class Stop(Progress):
    """Interrupts at the second group of a task."""

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Advance]:
        def advance(done: int) -> None:
            if description == "pictures: baked":
                raise KeyboardInterrupt

        yield advance


def test_an_interruption_leaves_whole_pictures_that_are_taken_up(
    subject: Subject, examined: Path, measurement: Measurement, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        examine(subject, tmp_path, Stop())
    left = names(tmp_path)
    assert left == sorted(f"pictures/{p:03d}/{w}-{s:02d}.png" for p in range(2) for w in ("before", "baked") for s in range(2))
    for name in left:
        assert (tmp_path / name).read_bytes() == (examined / name).read_bytes()
    mark = tmp_path / "pictures/000/before-00.png"
    Image.new("RGB", (32, 32), "pink").save(mark)
    marked = mark.read_bytes()
    again = examine(subject, tmp_path, Progress())
    assert mark.read_bytes() == marked  # it was not drawn again
    assert again.variants[0].mitigations[0].before.diversity != measurement.variants[0].mitigations[0].before.diversity
    assert again.variants[0].mitigations[1] == measurement.variants[0].mitigations[1]


def test_a_baked_bundle_alone_is_examined_with_eager_in_the_place_of_masks(subject: Subject, examined: Path, tmp_path: Path) -> None:
    recipe = subject.recipe.model_copy(update={"export": subject.recipe.export.model_copy(update={"variants": ("baked",)})})
    alone = examine(replace(subject, recipe=recipe), tmp_path, Progress())
    assert [v.variant for v in alone.variants] == ["baked"]
    assert alone.untouched is alone.mask_of_ones is None
    for name in ("000/before-00", "001/random-01"):
        theirs, ours = (np.asarray(Image.open(f / f"pictures/{name}.png")).astype(int) for f in (examined, tmp_path))
        assert np.abs(theirs - ours).max() <= 1
    both = Measurement.read(examined)
    assert [p.drift for p in alone.curve] == pytest.approx([p.drift for p in both.curve], abs=1e-3)

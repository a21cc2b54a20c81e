"""Neuron sets: algebra, masks, files; and the official code's CSV."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from conftest import shared_data

from nemo_edge.model.neurons import NeuronSet, OfficialRow, ValueLayer, official_neurons, read_official_csv, write_official_csv
from nemo_edge.system.errors import InputError

LAYERS = (ValueLayer(name="first", width=3), ValueLayer(name="second", width=4))
SD14 = tuple(ValueLayer(name=f"layer {i}", width=w) for i, w in enumerate((320, 320, 640, 640, 1280, 1280, 1280)))


def neurons(*lists: list[int]) -> NeuronSet:
    return NeuronSet.from_lists(LAYERS, lists)


def test_the_algebra_is_that_of_sets_in_each_layer() -> None:
    a, b = neurons([0, 1], [3]), neurons([1], [0, 3])
    assert a | b == neurons([0, 1], [0, 3])
    assert a & b == neurons([1], [3])
    assert a - b == neurons([0], [])
    assert a.jaccard(b) == 2 / 4
    assert NeuronSet.empty(LAYERS).jaccard(NeuronSet.empty(LAYERS)) == 1
    assert (len(a), a.counts, a.total) == (3, (2, 1), 7)


def test_a_subset_is_drawn_from_the_set_and_others_from_outside() -> None:
    a = neurons([0, 1], [0, 3])
    for count in range(6):
        part, others = a.subset(count, seed=0), a.others(count, seed=0)
        assert len(part) == min(count, 4)
        assert part - a == NeuronSet.empty(LAYERS)
        assert len(others) == min(count, 3)
        assert len(others & a) == 0
        assert part == a.subset(count, seed=0)
        assert others == a.others(count, seed=0)
    assert a.subset(4, seed=0) == a
    assert a.others(9, seed=0) == neurons([2], [1, 2])
    assert len({a.subset(2, seed).content_hash() for seed in range(20)}) > 1
    assert len({a.others(1, seed).content_hash() for seed in range(20)}) == 3  # of any layer


def test_larger_subsets_of_a_seed_hold_the_smaller_ones() -> None:
    a = NeuronSet.from_lists(SD14, [range(0, layer.width, 50) for layer in SD14])
    parts = [a.subset(count, seed=0) for count in (1, 10, 50, len(a))]
    assert all(small - large == NeuronSet.empty(SD14) for small, large in pairwise(parts))


def test_sets_of_different_models_do_not_mix() -> None:
    with pytest.raises(InputError, match="different models"):
        neurons([], []) | NeuronSet.empty(SD14)


def test_the_mask_is_zero_at_the_neurons_and_one_elsewhere() -> None:
    mask = neurons([1], [0, 3]).mask()
    assert mask.dtype == np.float32
    assert mask.tolist() == [1, 0, 1, 0, 1, 1, 0]


def test_duplicates_are_one_neuron_and_order_does_not_matter() -> None:
    assert neurons([2, 0, 2], []) == neurons([0, 2], [])


@pytest.mark.parametrize("index", [-1, 4, 1000])
def test_an_index_out_of_range_names_the_layer_and_its_range(index: int) -> None:
    with pytest.raises(InputError, match=rf"neuron {index} of second is out of range: the layer has neurons 0 to 3"):
        neurons([0], [1, index])


def test_the_wrong_number_of_layers_is_refused() -> None:
    with pytest.raises(InputError, match="neurons of 1 layers given, but the model has 2"):
        neurons([0])


def test_json_brings_the_set_back(tmp_path: Path) -> None:
    a = neurons([1], [0, 3])
    a.save(tmp_path / "neurons.json")
    assert NeuronSet.load(tmp_path / "neurons.json") == a
    assert [p.name for p in tmp_path.iterdir()] == ["neurons.json"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "Invalid JSON"),
        ('{"layers": [{"name": "a", "width": 2}], "indices": [[-1]]}', "neuron -1 of a is out of range"),
        ('{"layers": [{"name": "a", "width": 2}], "indices": [[0, 0]]}', "not distinct"),
        ('{"layers": [], "indices": [], "colour": 1}', "colour"),
        ('{"layers": [{"name": "a", "width": 2}], "indices": [[0.5]]}', "indices.0.0"),
    ],
)
def test_a_bad_file_is_refused_by_name(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "neurons.json"
    path.write_text(content)
    with pytest.raises(InputError, match=reason) as refused:
        NeuronSet.load(path)
    assert str(path) in str(refused.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        NeuronSet.load(tmp_path / "none.json")
    with pytest.raises(InputError, match="cannot be read"):
        NeuronSet.load(tmp_path)


def test_the_hash_tells_sets_and_models_apart() -> None:
    a = neurons([1], [0, 3])
    assert a.content_hash() == neurons([1], [3, 0]).content_hash()
    other_layers = NeuronSet.from_lists((LAYERS[0], ValueLayer(name="third", width=4)), [[1], [0, 3]])
    assert len({a.content_hash(), neurons([], [0, 3]).content_hash(), other_layers.content_hash()}) == 3


def test_random_neurons_are_as_many_and_others() -> None:
    a = neurons([1], [0])
    drawn = a.random_like(seed=0)
    assert drawn.counts == a.counts
    assert not len(drawn & a)
    assert drawn == a.random_like(seed=0)
    assert neurons([0, 1], []).random_like(seed=0) == neurons([2], [])  # no more are left


def test_the_official_csv_is_read_as_it_was_written(tmp_path: Path) -> None:
    rows = read_official_csv(shared_data("official_results_sample.csv"))
    assert rows[0].caption == '"Watch: Passion Pit\'s New Video, ""Lifted Up (1985)"""'
    assert rows[0].initial == [[7, 25], [], [], [], [], [], [77, 775]]
    assert rows[0].refined_score == 0.36644455790519714
    for row in rows:
        assert len(NeuronSet.from_lists(SD14, row.refined) - NeuronSet.from_lists(SD14, row.initial)) == 0
    write_official_csv(tmp_path / "again.csv", rows)
    assert read_official_csv(tmp_path / "again.csv") == rows


def test_official_lists_keep_their_duplicates(tmp_path: Path) -> None:
    row = OfficialRow(caption='a; "b"\nc', url="", initial=[[3, 1, 3]], initial_score=0.5, refined=[[3]], refined_score=0.25)
    write_official_csv(tmp_path / "x.csv", [row])
    assert read_official_csv(tmp_path / "x.csv") == [row]


def test_a_csv_that_is_not_official_says_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("Caption;URL\na;b\n")
    with pytest.raises(InputError, match="no column 'Initial Neurons'"):
        read_official_csv(path)
    path.write_text("Caption;URL;Initial Neurons;Initial SSIM;Refined Neurons;Refined SSIM\na;b;[[1]];0.1;[[x]];0.1\n")
    with pytest.raises(InputError, match="row 2 is not a result"):
        read_official_csv(path)
    with pytest.raises(InputError, match="does not exist"):
        read_official_csv(tmp_path / "none.csv")


def test_official_results_are_the_union_of_their_refined_neurons(tmp_path: Path) -> None:
    layers = [ValueLayer(name="down", width=4), ValueLayer(name="mid", width=8)]
    rows = [
        OfficialRow(caption=c, url="", initial=[[0, 1], [2]], initial_score=0.4, refined=refined, refined_score=0.4)
        for c, refined in (("a", [[1, 1], []]), ("b", [[3], [7]]))
    ]
    write_official_csv(tmp_path / "r.csv", rows)
    assert official_neurons(tmp_path / "r.csv", layers) == NeuronSet.from_lists(layers, [[1, 3], [7]])
    with pytest.raises(InputError, match=r"row 2 has neurons of 2 layers, but this UNet has 1"):
        official_neurons(tmp_path / "r.csv", layers[:1])

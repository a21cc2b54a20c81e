"""A mask is what it is given as: neurons, a file of them, an array, "off", or the bundle's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nemo_edge.model.masks import OFF, Mask, read_mask
from nemo_edge.model.neurons import NeuronSet, OfficialRow, ValueLayer, write_official_csv
from nemo_edge.system.errors import InputError

LAYERS = (ValueLayer(name="first", width=3), ValueLayer(name="second", width=4))
OWN = NeuronSet.from_lists(LAYERS, [[0], [1, 3]])
OTHER = NeuronSet.from_lists(LAYERS, [[2], []])


def test_without_a_mask_the_bundle_s_own_neurons_are_silenced() -> None:
    assert read_mask(OWN).tolist() == [0, 1, 1, 1, 0, 1, 0]
    assert read_mask(OWN).dtype == np.float32


def test_off_silences_nothing() -> None:
    assert read_mask(OWN, OFF).tolist() == [1] * 7


def test_every_form_of_the_same_neurons_is_the_same_mask(tmp_path: Path) -> None:
    OTHER.save(tmp_path / "other.json")
    np.save(tmp_path / "other.npy", OTHER.mask())
    row = OfficialRow(caption="c", url="u", initial=[[2], []], initial_score=1, refined=[[2], []], refined_score=1)
    write_official_csv(tmp_path / "other.csv", [row])
    forms: list[Mask] = [OTHER, OTHER.mask(), *(tmp_path / f"other.{kind}" for kind in ("json", "npy", "csv")), str(tmp_path / "other.npy")]
    assert [read_mask(OWN, form).tolist() for form in forms] == [[1, 1, 0, 1, 1, 1, 1]] * len(forms)


def test_a_file_may_be_called_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    OTHER.save(tmp_path / "off")
    monkeypatch.chdir(tmp_path)
    assert read_mask(OWN, Path("off")).tolist() == OTHER.mask().tolist()


def test_a_row_a_picture_and_factors_between_are_left_as_they_are() -> None:
    mask_BN = np.linspace(0, 1, 14).reshape(2, 7)
    assert np.array_equal(read_mask(OWN, mask_BN), mask_BN)


@pytest.mark.parametrize("form", ["set", "file"])
def test_neurons_of_another_model_are_refused(tmp_path: Path, form: str) -> None:
    foreign = NeuronSet.empty(LAYERS[:1])
    foreign.save(tmp_path / "foreign.json")
    with pytest.raises(InputError, match="neurons of other value layers than this bundle: it belongs to another model"):
        read_mask(OWN, foreign if form == "set" else tmp_path / "foreign.json")


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.ones(6), r"the mask has shape \[6\], expected \[7\] \(value neurons\)"),
        (np.ones((1, 1, 7)), r"the mask has shape \[1, 1, 7\]"),
        (np.float32(1), r"the mask has shape \[\]"),
        (np.ones((0, 7)), r"the mask has shape \[0, 7\]"),
        (np.full(7, 1.5), "factors from 0 to 1"),
        (np.r_[np.ones(6), np.nan], "factors from 0 to 1"),
        (np.array(["1"] * 7), "it holds <U1"),
    ],
)
def test_what_is_no_mask_is_refused_in_memory_and_on_disk(tmp_path: Path, array: np.ndarray, reason: str) -> None:
    np.save(tmp_path / "mask.npy", array)
    for form in (np.asarray(array), tmp_path / "mask.npy"):
        with pytest.raises(InputError, match=reason):
            read_mask(OWN, form)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for name in ("none.npy", "none.json", "none.csv"):
        with pytest.raises(InputError, match=f"{name}.*(not a mask|does not exist)"):
            read_mask(OWN, tmp_path / name)


def header(shape: str, kind: str = "<f8") -> bytes:
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + (len(text) + 1).to_bytes(2, "little") + text + b"\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("m.npy", b""),
        ("m.npy", header("(1000000000000000,)")),
        ("m.npy", header("(7,)") + bytes(8)),
        ("m.npy", header("(7,)", "|O") + bytes(56)),
        ("m.npy", b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535),
        ("m.npy", b"PK\x03\x04" + bytes(100)),
        ("m.npz", b"PK\x03\x04"),
    ],
    ids=["empty", "huge", "cut", "objects", "deep", "archive", "npz"],
)
def test_what_is_no_array_is_told(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=r"is not a mask \(\.npy|is an archive of arrays"):
        read_mask(OWN, tmp_path / name)

"""Policies that come later: the newest that can be used is in force, at once, and one that cannot be changes nothing."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nemo_edge.bundle.policies import Policies, baked_policies, masked_policies
from nemo_edge.model.neurons import NeuronSet, ValueLayer
from nemo_edge.serving.updates import POLICIES, UPDATES, PoliciesInForce, put_policies
from nemo_edge.system.errors import InputError

LAYERS = (ValueLayer(name="a", width=40), ValueLayer(name="b", width=3))


def of(*chosen: int, layers: tuple[ValueLayer, ...] = LAYERS) -> Policies:
    return masked_policies(NeuronSet.from_lists(layers, [chosen, *([] for _ in layers[1:])]))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A version folder with its own policies."""
    of(1).save(tmp_path / POLICIES)
    return tmp_path


def test_new_policies_are_in_force_at_the_next_look(folder: Path) -> None:
    in_force = PoliciesInForce(folder)
    assert in_force() == of(1)
    for number in (1, 2, 11):
        (folder / UPDATES).mkdir(exist_ok=True)
        of(number, 30).save(folder / UPDATES / f"{number}.json")
        assert in_force() == of(number, 30) == PoliciesInForce(folder)()
    assert put_policies(folder, of(5)) == 12
    assert in_force() == of(5)


def test_a_file_is_read_once(folder: Path) -> None:
    in_force = PoliciesInForce(folder)
    put_policies(folder, of(2))
    assert in_force() is in_force()


def test_without_the_newest_file_its_predecessor_is_in_force_again(folder: Path) -> None:
    in_force = PoliciesInForce(folder)
    for chosen in (2, 3):
        put_policies(folder, of(chosen))
    assert in_force() == of(3)
    for expected in (of(2), of(1)):
        max((folder / UPDATES).iterdir()).unlink()
        assert in_force() == expected


def test_a_file_that_cannot_be_used_is_told_once_and_changes_nothing(folder: Path) -> None:
    told: list[str] = []
    in_force = PoliciesInForce(folder, told.append)
    put_policies(folder, of(2))
    of(2, layers=LAYERS[:1]).save(folder / UPDATES / "2.json")
    (folder / UPDATES / "3.json").write_text(of(7).model_dump_json().replace("7", "8"))
    assert [in_force() for _ in range(3)] == [of(2)] * 3
    assert len(told) == 2
    assert told[0].endswith("3.json does not hold policies: ship the bundle again; it is passed over")
    assert told[1].endswith("2.json has neurons of another model and is passed over")
    assert PoliciesInForce(folder)() == of(2)


def test_a_link_to_nothing_and_a_number_of_another_alphabet_are_no_updates(folder: Path) -> None:
    put_policies(folder, of(2))
    (folder / UPDATES / "99.json").symlink_to("nowhere")
    of(3).save(folder / UPDATES / "\u00b2.json")
    assert PoliciesInForce(folder)() == of(2)
    assert put_policies(folder, of(4)) == 100


@pytest.mark.parametrize("policies", [of(2, layers=LAYERS[:1]), baked_policies()])
def test_policies_of_another_model_are_not_put_there(folder: Path, policies: Policies) -> None:
    with pytest.raises(InputError, match=r"the neurons are not of the model that .* serves: ship the bundle whole"):
        put_policies(folder, policies)
    assert not (folder / UPDATES).exists()


def test_updates_at_the_same_time_have_a_number_each_and_leave_nothing_else(folder: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(lambda chosen: put_policies(folder, of(chosen)), range(32)))
    assert sorted(numbers) == list(range(1, 33))
    assert {path.name for path in (folder / UPDATES).iterdir()} == {f"{number}.json" for number in numbers}
    assert Policies.load(folder / UPDATES / f"{numbers[7]}.json") == of(7)

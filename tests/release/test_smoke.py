"""An attack is walked through with random weights of any size, says what it takes, and leaves nothing else behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemo_edge.recipe.settings import AttackSettings, CheckpointSettings
from nemo_edge.release.random_weights import write_random
from nemo_edge.release.smoke import SAMPLING, SETTINGS, Smoke, smoke
from nemo_edge.system.errors import InputError
from release.test_random_weights import small

WHOLE = AttackSettings(**SETTINGS)
EVERY = AttackSettings(**{**SETTINGS, "text": AttackSettings().text, "starts": ("prompt", "noise")})


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_every_way_is_walked_and_timed_and_nothing_is_left(name: str, tmp_path: Path) -> None:
    own, out = small(tmp_path / "own", name), tmp_path / "out"
    out.mkdir()
    found = smoke(CheckpointSettings(path=own), EVERY, out / "smoke.json")
    assert found.attacked == {"unmitigated": 3 + 3, "memories": 3 * 4 + 3 * 2, "never seen": 2 + 2}
    assert (found.architecture, found.height, found.width) == ("own", 128, 128)
    assert found.step_s is not None
    assert found.batch_s is not None
    assert found.peak_memory_gb > 0
    assert Smoke.model_validate_json((out / "smoke.json").read_bytes()) == found
    assert [path.name for path in out.iterdir()] == ["smoke.json"]


def test_one_attack_alone_is_walked_and_a_folder_of_random_weights_is_taken_as_it_is(tmp_path: Path) -> None:
    folder = write_random(small(tmp_path / "own", "sd15"), tmp_path / "random")
    sampling = SAMPLING.model_copy(update={"height": 64})
    only = WHOLE.model_copy(update={"text": ()})
    found = smoke(CheckpointSettings(path=str(folder)), only, tmp_path / "smoke.json", sampling)
    assert (found.architecture, found.height, found.batch_s) == ("own", 64, None)
    assert folder.is_dir()


def test_what_is_no_architecture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="sd15"):
        smoke(CheckpointSettings(path=str(tmp_path / "none")), WHOLE, tmp_path / "smoke.json")
    assert list(tmp_path.iterdir()) == []


def test_its_folder_is_made_and_the_limit_holds(tmp_path: Path) -> None:
    only = WHOLE.model_copy(update={"text": (), "limit": 1, "steps": 1})
    output = tmp_path / "new" / "smoke.json"
    found = smoke(CheckpointSettings(path=small(tmp_path / "own", "sd15")), only, output)
    assert found.attacked == {"unmitigated": 1, "memories": 1, "never seen": 1}
    assert found.step_s is None, "one step has no time between two"
    assert output.is_file()

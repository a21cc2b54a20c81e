"""A delivery is whole or not at all; what is not of it is left alone. Kills at every moment are in `tests/journeys/test_killed.py`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("tritonclient.grpc")

from elsewhere import elsewhere

from nemo_edge.serving import _delivery
from nemo_edge.serving._delivery import Delivery, holding
from nemo_edge.serving.repository import ship
from nemo_edge.serving.versions import PIPELINE, newest_pipeline
from nemo_edge.system.errors import InputError
from nemo_edge.system.files import sha256_file, temporary

RECORD = ".nemo-edge.json"


def tree(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): sha256_file(p) if p.is_file() else "" for p in sorted(folder.rglob("*"))}


@pytest.fixture
def repository(shippable: Path, tmp_path: Path) -> Path:
    """A repository of one version."""
    ship(shippable, tmp_path / "repository")
    return tmp_path / "repository"


def test_two_ships_at_once_are_one_and_a_refusal(shippable: Path, repository: Path) -> None:
    before = tree(repository)
    with holding(repository), pytest.raises(InputError, match=r"another command is writing to .*: wait for it, or give another output"):
        elsewhere(lambda: ship(shippable, repository))
    assert tree(repository) == before
    assert ship(shippable, repository).version == 2


@pytest.mark.parametrize("at", ["text_encoder", PIPELINE])
def test_a_ship_that_is_stopped_takes_back_what_it_wrote_and_no_more(
    shippable: Path, repository: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """Meanwhile somebody has put a version and a configuration of their own there, without asking for the lock."""
    before, move, config = tree(repository), _delivery._move, repository / "vae_decoder" / "config.pbtxt"
    theirs = config.read_text().replace('string_value: "1"', 'string_value: "7"')

    def stopped(folder: Path, place: Path) -> None:
        if place.parent.name == at:
            (repository / "unet" / "9").mkdir()
            config.write_text(theirs)
            raise KeyboardInterrupt
        move(folder, place)

    monkeypatch.setattr(_delivery, "_move", stopped)
    with pytest.raises(KeyboardInterrupt):
        ship(shippable, repository)
    assert tree(repository) == {**before, "unet/9": "", "vae_decoder/config.pbtxt": sha256_file(config)}
    assert config.read_text() == theirs


def test_what_is_made_but_for_the_last_step_is_finished(shippable: Path, repository: Path) -> None:
    ship(shippable, repository)
    after = tree(repository)
    former = dict.fromkeys(("text_encoder", "vae_decoder", "unet", PIPELINE))
    record = Delivery(number=2, manifest=sha256_file(shippable / "manifest.json"), former=former)
    (repository / RECORD).write_text(record.model_dump_json())
    temporary(repository / "unet" / "2").mkdir()
    temporary(repository / "unet" / "config.pbtxt").write_text("half")
    with holding(repository):
        assert tree(repository) == after | {".nemo-edge.lock": sha256_file(repository / ".nemo-edge.lock")}
    assert tree(repository) == after
    assert newest_pipeline(repository).name == "2"


def test_a_version_of_another_bundle_is_not_taken_back(shippable: Path, repository: Path) -> None:
    before = tree(repository)
    (repository / RECORD).write_text(Delivery(number=1, manifest="of another", former={"unet": None}).model_dump_json())
    with holding(repository):
        pass
    assert tree(repository) == before


RECORDED = {"schema_version": 1, "number": 1, "manifest": "m", "pipeline": "pipeline", "former": {}}
WRONG = ({"schema_version": 2}, {"former": {"../outside": None}}, {"pipeline": ".."}, {"number": -1})


@pytest.mark.parametrize("content", ["", "{", *(json.dumps({**RECORDED, **wrong}) for wrong in WRONG)])
def test_a_record_that_cannot_be_read_is_told(shippable: Path, repository: Path, content: str) -> None:
    (repository / RECORD).write_text(content)
    before = tree(repository)
    with pytest.raises(InputError, match="does not say what was being shipped: delete it"):
        ship(shippable, repository)
    assert tree(repository) == before


def test_a_repository_in_a_bundle_is_refused(shippable: Path) -> None:
    before = tree(shippable)
    for place in (shippable, shippable / "repository"):
        with pytest.raises(InputError, match="lies in the bundle, whose files are all in its manifest"):
            ship(shippable, place)
    assert tree(shippable) == before


def test_a_repository_that_is_a_link_is_followed(shippable: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    ship(shippable, tmp_path / "link")
    assert newest_pipeline(tmp_path / "real").name == "1"
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"leads to .*nowhere, which does not exist"):
        ship(shippable, tmp_path / "dangling")

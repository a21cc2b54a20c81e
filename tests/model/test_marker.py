"""Random weights are told from a checkpoint by their marker, and nothing else is taken for one."""

from __future__ import annotations

from pathlib import Path

from nemo_edge import demo
from nemo_edge.model.marker import MARKER, RandomWeights, is_random, read_marker


def test_only_our_folders_are_random(tmp_path: Path) -> None:
    assert is_random(demo.CHECKPOINT) is None
    assert is_random("owner/name") is None
    (tmp_path / MARKER).write_text("{}")
    assert is_random(tmp_path) is None


def test_a_marker_says_what_the_weights_were_made_from_whatever_wrote_them(tmp_path: Path) -> None:
    marker = RandomWeights(name="sd15", seed=0, dtype="fp16", architecture="0" * 64, versions={"torch": "1"})
    (tmp_path / MARKER).write_text(marker.model_dump_json())
    assert read_marker(tmp_path) == marker
    assert is_random(tmp_path) == "sd15"
    assert marker.matches(marker.model_copy(update={"versions": {}}))
    assert not marker.matches(marker.model_copy(update={"seed": 1}))
    assert not marker.matches(None)

"""The time that files are given: the clock's, or the environment's."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from nemo_edge.system.clock import EPOCH, now, written
from nemo_edge.system.errors import InputError


def test_the_time_is_that_of_the_clock_to_the_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(EPOCH, raising=False)
    assert timedelta(0) <= datetime.now(UTC) - datetime.fromisoformat(now()) < timedelta(minutes=1)
    (tmp_path / "a").write_text("")
    os.utime(tmp_path / "a", (86_400.25, 86_400.25))
    assert written(tmp_path / "a") == "1970-01-02T00:00:00+00:00"


def test_the_environment_says_what_time_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(EPOCH, "1700000000")
    (tmp_path / "a").write_text("")
    assert now() == written(tmp_path / "a") == "2023-11-14T22:13:20+00:00"


@pytest.mark.parametrize("told", ["yesterday", "1.5", "9" * 30])
def test_what_is_no_time_is_refused(monkeypatch: pytest.MonkeyPatch, told: str) -> None:
    monkeypatch.setenv(EPOCH, told)
    with pytest.raises(InputError, match=r"SOURCE_DATE_EPOCH=.* is no time: give whole seconds since 1970, or unset it"):
        now()

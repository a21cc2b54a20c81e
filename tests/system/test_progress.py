"""Work can report to nobody."""

from __future__ import annotations

import pytest

from nemo_edge.system.progress import Progress


def test_it_keeps_everything_to_itself(capfd: pytest.CaptureFixture[str]) -> None:
    progress = Progress()
    with progress.task("localize", 2) as advance:
        advance(1)
        advance(1)
    with progress.waiting("looking"):
        pass
    progress.note("nothing has changed")
    assert capfd.readouterr() == ("", "")


def test_an_error_of_the_work_goes_through() -> None:
    with pytest.raises(KeyError), Progress().task("localize", 2):
        raise KeyError

"""An output has one writer, and what killed runs have left beside it is gone once there is another."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from elsewhere import elsewhere

from nemo_edge.system.errors import InputError
from nemo_edge.system.files import leftovers, temporary
from nemo_edge.system.outputs import beside, discard, former_of, lock, put_back, unfinished


def held(place: Path) -> bool:
    """Whether another command is refused."""

    def take() -> None:
        with lock(place):
            pass

    with suppress(InputError):
        elsewhere(take)
        return False
    return True


def test_a_second_command_is_refused_until_the_first_is_done(tmp_path: Path) -> None:
    place = tmp_path / "deep" / "out"
    with lock(place):
        with pytest.raises(InputError, match=r"another command is writing to .*out: wait for it, or give another output"):
            elsewhere(lambda: lock(place).__enter__())
        assert not held(place.with_name("other"))
        with lock(place):  # it is held already
            assert held(place)
        assert held(place)
    assert not held(place)
    assert list(place.parent.iterdir()) == []


def test_a_link_is_locked_where_it_leads(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "link").symlink_to(tmp_path / "real")
    with lock(tmp_path / "there" / "link"):
        assert held(tmp_path / "real")
        assert [p.name for p in (tmp_path / "there").iterdir()] == ["link"]


def test_a_lock_s_file_that_its_holder_removes_is_not_taken_for_the_lock(tmp_path: Path) -> None:
    """Many take it in turns; were two to hold it at once, one would find the other's mark."""
    place, mark = tmp_path / "out", tmp_path / "mark"

    def work(number: int) -> int:
        with lock(place, wait_s=60):
            assert not mark.exists()
            mark.write_text(str(number))
            mark.unlink()
        return number

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(work, range(60))) == list(range(60))
    assert list(tmp_path.iterdir()) == []


def test_what_killed_runs_have_left_is_gone_and_nothing_else(tmp_path: Path) -> None:
    place = tmp_path / "out"
    place.mkdir()
    for left in (temporary(place), temporary(place), former_of(place)):
        (left / "deep").mkdir(parents=True)
        (left / "deep" / "half").write_text("half")
    temporary(place).write_text("half of a file")
    others = [temporary(tmp_path / "other"), beside(place, "20241130"), tmp_path / ".out.1234abcd", beside(place, "build")]
    for other in others:
        other.mkdir()
    with lock(place):
        assert sorted(tmp_path.iterdir()) == sorted([place, beside(place, "lock"), *others])
    assert sorted(tmp_path.iterdir()) == sorted([place, *others])


def test_what_was_moved_aside_is_put_back_where_nothing_took_its_place(tmp_path: Path) -> None:
    place = tmp_path / "out"
    former_of(place).mkdir()
    (former_of(place) / "file").write_text("former")
    put_back(place)
    assert (place / "file").read_text() == "former"
    former_of(place).mkdir()
    put_back(place)  # it is there
    assert former_of(place).is_dir()
    with lock(place):
        assert not former_of(place).exists()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_who_only_reads_waits_while_an_output_is_put_into_place(tmp_path: Path) -> None:
    place = tmp_path / "out"
    with ThreadPoolExecutor(1) as pool, lock(place):
        former_of(place).mkdir()
        reading = pool.submit(put_back, place)
        os.replace(former_of(place), place)
    reading.result()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_place_without_a_right_to_write_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"), lock(tmp_path / "file" / "out"):
        pass


HOLD = """
import sys, time
from pathlib import Path
from nemo_edge.system.outputs import lock
with lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_lock_goes_with_the_process_that_is_killed(tmp_path: Path) -> None:
    place = tmp_path / "out"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(place)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert held(place)
        process.kill()
    assert beside(place, "lock").exists()
    assert not held(place)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_discarded_is_never_there_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "stage"
    folder.mkdir()
    (folder / "file").write_text("")
    with monkeypatch.context() as patched:
        patched.setattr("shutil.rmtree", lambda *_, **__: None)  # as one that is killed
        discard(folder)
    assert not folder.exists()
    assert unfinished(tmp_path) == leftovers(folder) != []
    with lock(folder):
        pass
    assert list(tmp_path.iterdir()) == []

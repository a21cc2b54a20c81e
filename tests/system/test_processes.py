"""Functions in processes of their own: what comes back, what is told meanwhile, and that nothing stays when it is interrupted."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from nemo_edge.recipe.settings import ExportSettings
from nemo_edge.system.errors import BundleError, InputError
from nemo_edge.system.processes import run, run_in_process
from nemo_edge.system.progress import Advance, Progress

HERE = "system.test_processes"


class Told(Progress):
    """Writes down all that it is told, in order."""

    def __init__(self) -> None:
        self.said: list[object] = []

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Advance]:
        self.said.append((description, total))
        yield self.said.append
        self.said.append("end")

    def phase(self, name: str) -> None:
        self.said.append(f"phase: {name}")

    def note(self, message: str) -> None:
        self.said.append(f"note: {message}")


@dataclass(frozen=True)
class Plain:
    """A dataclass, as `production.PartJob` is."""

    folder: Path
    settings: ExportSettings


def give_back(value: object, _: Progress) -> tuple[object, int]:
    return value, os.getpid()


def work(progress: Progress) -> str:
    for name in ("first", "second"):
        with progress.task(name, 3) as advance:
            advance(2)
            progress.phase("half")
            progress.note(f"in {name}")
            advance(1)
    return "done"


def refuse(_: Progress) -> None:
    raise BundleError("no bundle: make one")


def fail_with_finite(_: Progress) -> None:
    from nemo_edge.export._component import Disagreement

    error = Disagreement("off")
    error.finite = False
    raise error


def stumble(_: Progress) -> None:
    raise ZeroDivisionError("division by zero")


def die(progress: Progress) -> None:
    with progress.task("dying", 2) as advance:
        advance(1)
        os.kill(os.getpid(), signal.SIGKILL)


def sleep_in(folder: Path, progress: Progress) -> None:
    """Hold a temporary folder, say so, and wait for an end."""
    from nemo_edge.bundle.manifest import staging

    with staging(folder / "out") as staged:
        (staged / "half").write_text("")
        (folder / "pid").write_text(str(os.getpid()))
        progress.note("waiting")
        time.sleep(60)


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    yield
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("value", [ExportSettings(dtype="fp16", fp32=("unet",)), Plain(Path("/x"), ExportSettings()), {"a": (1, None)}])
def test_what_goes_there_comes_back_the_same_from_another_process(value: object) -> None:
    found, pid = run_in_process("give back", Progress(), f"{HERE}.give_back", value)
    assert (found, type(found)) == (value, type(value))
    assert pid != os.getpid()


def test_a_function_is_called_here_unless_it_is_wanted_apart() -> None:
    assert run(False, "give back", Progress(), f"{HERE}.give_back", 1) == (1, os.getpid())
    assert run(True, "give back", Progress(), f"{HERE}.give_back", 1)[1] != os.getpid()


@pytest.mark.parametrize("separate", [False, True])
def test_progress_is_told_in_order(separate: bool) -> None:
    told = Told()
    assert run(separate, "work", told, f"{HERE}.work") == "done"
    assert told.said == [
        *(("first", 3), 2, "phase: half", "note: in first", 1, "end"),
        *(("second", 3), 2, "phase: half", "note: in second", 1, "end"),
    ]


def test_an_error_on_purpose_is_raised_as_it_is() -> None:
    with pytest.raises(BundleError, match=r"^no bundle: make one$"):
        run_in_process("refuse", Progress(), f"{HERE}.refuse")
    from nemo_edge.export._component import Disagreement

    with pytest.raises(Disagreement, match=r"^off$") as raised:
        run_in_process("disagree", Progress(), f"{HERE}.fail_with_finite")
    assert not raised.value.finite


def test_another_error_keeps_its_name() -> None:
    with pytest.raises(RuntimeError, match=r"^ZeroDivisionError: division by zero$"):
        run_in_process("stumble", Progress(), f"{HERE}.stumble")


def test_a_process_that_is_killed_is_named_with_its_exit_code() -> None:
    told = Told()
    with pytest.raises(InputError, match=r"the process that was to export unet was killed \(exit code -9\): is there enough memory\?"):
        run_in_process("export unet", told, f"{HERE}.die")
    assert told.said[:2] == [("dying", 2), 1]


SCRIPT = """
import sys
from pathlib import Path
from nemo_edge.system.processes import run_in_process
from nemo_edge.system.exits import exit_code, stop_on_sigterm
from nemo_edge.system.progress import Progress

class Loud(Progress):
    def note(self, message):
        print(message, flush=True)

if __name__ == "__main__":
    stop_on_sigterm()
    print("started", flush=True)
    try:
        run_in_process("sleep", Loud(), "system.test_processes.sleep_in", Path(sys.argv[1]))
    except BaseException as error:
        sys.exit(exit_code(error))
"""


@contextmanager
def parent(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A program that runs `sleep_in` in a separate process, in a process group of its own, as a shell starts it."""
    (folder / "script.py").write_text(SCRIPT)
    paths = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    process = subprocess.Popen(
        [sys.executable, str(folder / "script.py"), str(folder)],
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def group_is_empty(group: int) -> bool:
    """Whether no process of a group is left, soon."""
    for _ in range(100):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize(
    ("number", "code", "whole_group"), [(signal.SIGINT, 130, True), (signal.SIGTERM, 143, True), (signal.SIGTERM, 143, False)]
)
def test_an_interruption_leaves_no_process_and_no_file(tmp_path: Path, number: signal.Signals, code: int, whole_group: bool) -> None:
    """Ctrl-C goes to every process of the group, a supervisor's SIGTERM to them too, or to the parent alone."""
    with parent(tmp_path) as process:
        assert process.stdout is not None
        assert [process.stdout.readline().strip() for _ in range(2)] == ["started", "waiting"]
        assert [path.name for path in tmp_path.glob(".out.*")] != []
        (os.killpg if whole_group else os.kill)(process.pid, number)
        _, err = process.communicate(timeout=30)
        assert group_is_empty(process.pid)
    assert process.returncode == code
    assert len(err.splitlines()) == 1, err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pid", "script.py"]


def test_ctrl_c_before_the_first_process_is_there_leaves_neither(tmp_path: Path) -> None:
    """The libraries are still being imported, by a process that lends itself to all others."""
    with parent(tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        time.sleep(0.5)
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=30)
        assert group_is_empty(process.pid)
    assert process.returncode == 130
    assert err == "nemo-edge: interrupted; the same command goes on from what was finished\n"
    assert [path.name for path in tmp_path.iterdir()] == ["script.py"]


def test_a_run_says_nothing_of_its_own(tmp_path: Path) -> None:
    code = "from nemo_edge.system.processes import run_in_process; from nemo_edge.system.progress import Progress\n"
    code += "if __name__ == '__main__': print(run_in_process('work', Progress(), 'system.test_processes.work'))\n"
    (tmp_path / "script.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    done = subprocess.run([sys.executable, str(tmp_path / "script.py")], env=environment, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("done\n", "")


def test_a_script_that_every_process_would_run_again_is_told_what_to_do(tmp_path: Path) -> None:
    code = "from nemo_edge.system.processes import run_in_process; from nemo_edge.system.progress import Progress\n"
    code += "print(run_in_process('work', Progress(), 'system.test_processes.work'))\n"
    (tmp_path / "script.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    done = subprocess.run([sys.executable, str(tmp_path / "script.py")], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "the process that was to work could not begin: a script that calls nemo-edge does so below `if __name__" in done.stderr
    assert "was killed" not in done.stderr

"""The process that builds: what it tells, what it leaves, and that it ends when it shall."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import nemo_edge
from backends.tensorrt.plan_graphs import save_attention_graph, shapes
from nemo_edge.backends.tensorrt import _build as building
from nemo_edge.backends.tensorrt._build import Job, Phases, construct, make_logger, run_job
from nemo_edge.backends.tensorrt.backend import available
from nemo_edge.system.environment import gpus
from nemo_edge.system.errors import ExportError, InputError, MissingDependency
from nemo_edge.system.progress import Advance, Progress

rtx = pytest.mark.skipif(
    __import__("importlib.util").util.find_spec("tensorrt_rtx") is None,
    reason="TensorRT-RTX is not installed: pip install 'nemo-edge[rtx]'",
)


class Told(Progress):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.units: list[int] = []
        self.phases: list[str] = []
        self.total = 0

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Advance]:
        self.total = total
        yield self.units.append

    def phase(self, name: str) -> None:
        self.phases.append(name)


def job(folder: Path, model: Path, **changes: Any) -> Job:
    common = Job("TensorRT-RTX", "tensorrt_rtx", model, folder / "plan", profiles=(shapes(),), capabilities=("SM86",))
    return replace(common, **changes)


def test_phases_inside_of_a_step_are_parts_of_it() -> None:
    phases = Phases()
    phases.start("building", None, 2)
    phases.start("timing", "building", 4)
    phases.step("timing", 0)
    assert phases.fraction == 1 / 8
    phases.start("kernels", "timing", 2)
    phases.step("kernels", 0)
    assert phases.fraction == 3 / 16
    assert phases.innermost == "kernels"
    phases.finish("timing")
    assert phases.fraction == 1 / 2
    phases.step("building", 0)
    phases.start("timing", "building", 4)
    phases.step("timing", 1)
    assert phases.fraction == 3 / 4
    phases.finish("timing")
    assert phases.innermost == "kernels"  # which has not ended
    phases.finish("kernels")
    phases.finish("building")
    assert (phases.fraction, phases.innermost) == (1, "")


def test_phases_never_go_back() -> None:
    phases = Phases()
    phases.start("a", None, 2)
    phases.step("a", 1)
    phases.start("a", None, 100)
    phases.step("a", 0)
    phases.step("unheard of", 3)
    phases.finish("unheard of")
    assert phases.fraction == 1


@rtx
def test_progress_reaches_its_end_and_only_grows(tmp_path: Path) -> None:
    told = Told()
    built = run_job(job(tmp_path, save_attention_graph(tmp_path / "model.onnx")), "toy", told)
    assert sum(told.units) == told.total
    assert min(told.units) >= 0
    assert len(told.units) > 3
    assert len(set(filter(None, told.phases))) > 1
    assert told.phases[-1] == ""
    assert built.attentions == 1
    assert (tmp_path / "plan").stat().st_size > 10_000


@rtx
def test_fp32_attention_compiles_because_it_may_fall_apart(tmp_path: Path) -> None:
    built = run_job(job(tmp_path, save_attention_graph(tmp_path / "model.onnx", "fp32"), cleared=("TF32",)), "toy", Progress())
    assert built.attentions == 1
    assert built.flags == ()


@rtx
def test_a_file_that_is_no_onnx_is_refused_though_the_parser_takes_it(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_text("hello\n")
    with pytest.raises(InputError, match=r"model.onnx is not an ONNX file with inputs and outputs"):
        run_job(job(tmp_path, tmp_path / "model.onnx"), "toy", Progress())
    assert not (tmp_path / "plan").exists()


@rtx
def test_a_graph_without_its_weights_is_one_line(tmp_path: Path) -> None:
    model = save_attention_graph(tmp_path / "model.onnx")
    (tmp_path / "model.onnx.data").unlink()
    with pytest.raises(InputError, match=r"TensorRT-RTX \S+ cannot read .*model.onnx.data; export it again, or at export.opset = 18$"):
        run_job(job(tmp_path, model), "toy", Progress())


@rtx
def test_profiles_that_do_not_fit_the_graph_are_refused(tmp_path: Path) -> None:
    model = save_attention_graph(tmp_path / "model.onnx", dims=(2, 4, 8, 8))
    with pytest.raises(InputError, match=r"input 'sample' of .* is \[2, 4, 8, 8\] .*but the profile gives"):
        run_job(job(tmp_path, model), "toy", Progress())
    short = {name: shape for name, shape in shapes((2, 2, 2), (8, 8, 8)).items() if name != "value_mask"}
    with pytest.raises(InputError, match=r"has the input 'value_mask', of which the profile says nothing"):
        run_job(job(tmp_path, model, profiles=(short,)), "toy", Progress())


@rtx
def test_what_does_not_compile_says_why_in_one_line(tmp_path: Path) -> None:
    """Refittable weights take a GPU, in TensorRT-RTX too."""
    model = save_attention_graph(tmp_path / "model.onnx")
    try:
        run_job(job(tmp_path, model, flags=("REFIT",)), "toy", Progress())
    except ExportError as error:
        assert "cannot compile" in str(error)  # noqa: PT017
        assert "\n" not in str(error)  # noqa: PT017
        assert not (tmp_path / "plan").exists()


SLOW_BUILD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from nemo_edge.backends.tensorrt._build import Job, run_job
from nemo_edge.system.progress import Progress
from plan_graphs import shapes

class Told(Progress):
    def task(self, description, total):
        print("building", flush=True)
        return super().task(description, total)

    def phase(self, name):
        if not hasattr(self, "told"):
            self.told = True
            print("compiling", flush=True)

if __name__ == "__main__":
    model, plan = Path(sys.argv[1]), Path(sys.argv[2])
    try:
        run_job(Job("TensorRT-RTX", "tensorrt_rtx", model, plan, (shapes(),), ("SM86", "SM89")), "toy", Told())
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


@rtx
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("moment", ["building", "compiling"], ids=["while the process starts", "inside of TensorRT"])
def test_ctrl_c_ends_a_build_at_once_and_leaves_nothing(tmp_path: Path, moment: str) -> None:
    model = save_attention_graph(tmp_path / "model.onnx", layers=40)
    script = tmp_path / "script.py"
    script.write_text(SLOW_BUILD)
    plan = tmp_path / "engines" / "plan"
    plan.parent.mkdir()
    command = [sys.executable, str(script), str(model), str(plan), str(Path(__file__).parent)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    while (said := process.stdout.readline()) != f"{moment}\n":
        assert said == "building\n"
    assert process.poll() is None, "the graph is too small: it was built before the interruption"
    interrupted = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)  # a terminal interrupts the whole group
    out, err = process.communicate(timeout=30)
    assert out == "interrupted\n"
    assert "Traceback" not in err
    assert time.monotonic() - interrupted < 5
    assert list(plan.parent.iterdir()) == []
    deadline = time.monotonic() + 5
    while _alive(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)  # multiprocessing's own tracker ends a moment after its parent
    assert _alive(process.pid) == []


def _alive(group: int) -> list[str]:
    """The processes of a group that are not waiting to be reaped."""
    listed = subprocess.run(["ps", "-eo", "pgid=,stat=,args="], capture_output=True, text=True, check=True).stdout.splitlines()
    rows = [line.split(None, 2) for line in listed]
    return [row[2] for row in rows if int(row[0]) == group and not row[1].startswith("Z")]


@rtx
@pytest.mark.skipif(not hasattr(os, "fork"), reason="signals of POSIX")
def test_a_process_that_is_killed_is_told_apart(tmp_path: Path) -> None:
    """As the kernel does for want of memory."""
    model = save_attention_graph(tmp_path / "model.onnx", layers=40)

    class Killer(Told):
        @contextmanager
        def task(self, description: str, total: int) -> Iterator[Advance]:
            import multiprocessing

            for child in multiprocessing.active_children():
                os.kill(child.pid or 0, signal.SIGKILL)
            yield self.units.append

    with pytest.raises(InputError, match=r"was killed \(exit code -9\): most often for want of memory"):
        run_job(job(tmp_path, model), "toy", Killer())
    assert not (tmp_path / "plan").exists()


def configured(**changes: Any) -> tuple[Any, tuple[str, ...]]:
    """The real configuration of a builder, which takes no GPU, and the notes on it."""
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    builder = trt.Builder(make_logger(trt))
    network = builder.create_network()
    config, notes = building._configure(trt, builder, network, job(Path(), Path("model.onnx"), profiles=(), **changes))
    return SimpleNamespace(config=config, builder=builder, network=network, trt=trt), notes


def test_what_a_job_says_is_what_the_builder_is_told() -> None:
    made, notes = configured(
        flags=("REFIT_INDIVIDUAL", "VERSION_COMPATIBLE", "WEIGHT_STREAMING"),
        cleared=("TF32",),
        optimization_level=5,
        capabilities=("SM86", "SM120"),
    )
    flags = {name for name, flag in made.trt.BuilderFlag.__members__.items() if made.config.get_flag(flag)}
    assert flags == {"REFIT_INDIVIDUAL", "VERSION_COMPATIBLE", "WEIGHT_STREAMING"}
    assert made.config.builder_optimization_level == 5
    assert [made.config.get_compute_capability(i).name for i in range(made.config.num_compute_capabilities)] == ["SM86", "SM120"]
    assert (made.config.num_optimization_profiles, notes) == (0, ())


def test_what_a_job_leaves_open_stays_as_the_builder_has_it() -> None:
    made, _ = configured(capabilities=())
    own = made.builder.create_builder_config()
    assert made.config.flags == own.flags
    assert made.config.builder_optimization_level == own.builder_optimization_level
    assert made.config.num_compute_capabilities == own.num_compute_capabilities


class Config:
    """Stands for a builder's configuration, keeps what it is told, and takes caches that begin as this version's do.

    Hardware compatibility and timing caches do something in TensorRT alone, whose builder takes a GPU.
    """

    def __init__(self) -> None:
        self.taken: list[tuple[bytes, bool]] = []
        self.hardware_compatibility_level = "NONE"

    def create_timing_cache(self, content: bytes) -> bytes | None:
        return content or b"new"

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
        if cache.startswith(b"other"):
            return False
        self.taken.append((cache, ignore_mismatch))
        return True


def test_the_level_of_compatibility_is_passed_on() -> None:
    config = Config()
    trt = SimpleNamespace(HardwareCompatibilityLevel=SimpleNamespace(AMPERE_PLUS="AMPERE_PLUS"))
    builder = SimpleNamespace(create_builder_config=lambda: config)
    wanted = job(Path(), Path("model.onnx"), profiles=(), capabilities=(), hardware_compatibility="AMPERE_PLUS")
    assert building._configure(trt, builder, None, wanted) == (config, ())
    assert config.hardware_compatibility_level == "AMPERE_PLUS"


@pytest.mark.parametrize(
    ("content", "taken", "noted"), [(None, b"new", False), (b"", b"new", False), (b"own", b"own", False), (b"other", b"new", True)]
)
def test_a_timing_cache_is_read_or_made_anew(tmp_path: Path, content: bytes | None, taken: bytes, noted: bool) -> None:
    path, config = tmp_path / "times", Config()
    if content is not None:
        path.write_bytes(content)
    notes = building._use_timing_cache(config, job(tmp_path, Path("model.onnx"), timing_cache=path))
    assert config.taken == [(taken, False)]
    assert notes == ((f"{path} is of another version or GPU, and is made anew",) if noted else ())


@pytest.mark.gpu
@pytest.mark.skipif(not gpus(), reason="no NVIDIA GPU")
def test_the_second_build_takes_its_times_from_the_first(tmp_path: Path) -> None:
    """TensorRT is told to fail where a time is missing."""
    if "tensorrt" not in available():
        pytest.skip("tensorrt is not installed")
    standard = {"title": "TensorRT", "module": "tensorrt", "capabilities": (), "timing_cache": tmp_path / "times"}
    first = job(tmp_path, save_attention_graph(tmp_path / "model.onnx"), **standard)
    again = replace(first, flags=("ERROR_ON_TIMING_CACHE_MISS",), output=tmp_path / "again")
    with pytest.raises(ExportError, match="cannot compile"):
        run_job(again, "toy", Progress())
    run_job(first, "toy", Progress())
    run_job(again, "toy", Progress())
    assert (tmp_path / "again").stat().st_size > 0


def test_an_old_driver_is_told_in_one_line() -> None:
    """As pybind11 says that there is no object; a driver this old is not to be had here."""

    class Runtime:
        def __init__(self, logger: Any) -> None:
            logger.errors.append("CUDA initialization failure\nwith error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")

    trt = SimpleNamespace(Runtime=Runtime, __version__="11.4.0")
    with pytest.raises(MissingDependency) as refused:
        construct(trt, "Runtime", "TensorRT", SimpleNamespace(errors=[]))
    assert str(refused.value) == (
        "TensorRT 11.4.0 does not start: CUDA initialization failure with error: 35; "
        "most often the NVIDIA driver is too old for it: update it"
    )


def test_no_source_names_members_that_tensorrt_11_has_no_more() -> None:
    """Types are those of the graph: strongly typed networks are all there are from TensorRT 11 on."""
    gone = re.compile(r"BuilderFlag\.(?:FP|BF|INT)\d|\"(?:FP|INT)(?:4|8|16)\"|EXPLICIT_BATCH|(?:OBEY|PREFER)_PRECISION_CONSTRAINTS")
    sources = Path(nemo_edge.__file__).parent.rglob("*.py")
    assert [f"{path.name}: {found[0]}" for path in sources if (found := gone.search(path.read_text()))] == []

"""What a bundle is, at 80 columns: what people ask first comes first, whole hashes when they are asked for."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import plans
import pytest

from nemo_edge import __version__
from nemo_edge.backends.tensorrt.fit import Fit
from nemo_edge.bundle.engines import Contents, Engine, inspect
from nemo_edge.bundle.manifest import GateResult, open_bundle
from nemo_edge.cli.contents import show_facts, show_files
from nemo_edge.cli.screen import size_words
from nemo_edge.model.neurons import NeuronSet

GATES = (
    GateResult(name="good", limit=1, value=0.5, passed=True),
    GateResult(name="bad", limit=1, value=2, passed=False),
    GateResult(name="none", limit=1, value=None, passed=True, detail="no training picture is known"),
)


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def found(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Contents:
    monkeypatch.chdir(tiny_bundle.parent)
    contents = inspect(Path(tiny_bundle.name))
    assert isinstance(contents, Contents)
    return contents


def facts(capsys: pytest.CaptureFixture[str], contents: Contents, **options: bool) -> dict[str, str]:
    """The rows below the verdict, by their names; what has none goes with the row above."""
    show_facts(contents, **options)
    first, *rows = capsys.readouterr().out.partition("\n\n")[0].splitlines()
    assert first.startswith(f"{contents.name}: ")
    told: dict[str, str] = {"verdict": first.partition(": ")[2]}
    for row in rows:
        assert len(row) <= 80
        name = row[:10].strip() or list(told)[-1]
        told[name] = f"{told.get(name, '')} {row[10:].strip()}".strip()
    return told


def test_what_people_ask_comes_first(capsys: pytest.CaptureFixture[str], found: Contents, tiny_bundle: Path) -> None:
    told, neurons = facts(capsys, found), NeuronSet.load(tiny_bundle / "neurons.json")
    size = sum(path.stat().st_size for path in tiny_bundle.rglob("*") if path.is_file())
    assert found.size_bytes == size
    assert list(told) == ["verdict", "model", "built", "size", "variants", "silenced", "prompts", "gates", "engines", "identity"]
    assert told["model"] == "model (StableDiffusionPipeline)"
    assert told["built"] == f"{found.created[:16].replace('T', ' ')} UTC by nemo-edge {__version__}"
    assert told["size"] == f"{size_words(size)} in {len(found.files) + 1} files"
    assert told["silenced"].startswith(
        f"{len(neurons)} neurons in {sum(map(bool, neurons.counts))} of {len(neurons.layers)} value layers: "
    )
    assert told["prompts"] == f"2 examined, τ {found.threshold:.3f}"
    assert told["engines"] == "4 ONNX files in ONNX Runtime, cpu: runs here"
    assert told["identity"] == open_bundle(tiny_bundle).identity[:16]


def test_gates_are_counted_and_show_their_verdict(capsys: pytest.CaptureFixture[str], found: Contents) -> None:
    judged = found.model_copy(update={"gates": GATES, "passed": False})
    told = facts(capsys, judged)
    assert told["verdict"] == "a gate failed: this bundle must not be shipped"
    assert told["gates"] == "1 passed, 1 failed, 1 not measured"
    show_facts(judged)
    table = capsys.readouterr().out.partition("\n\n")[2]
    rows = {line.split()[0]: line for line in table.splitlines()}
    assert "passed" in rows["good"]
    assert "failed" in rows["bad"]
    assert "none – 1 not measured: no training picture is known" in " ".join(table.split())


@pytest.mark.parametrize(
    ("silenced", "words"),
    [
        (None, "neurons.json cannot be read"),
        ({"a.attn2.to_v": 0, "b.attn2.to_v": 0}, "0 neurons in 0 of 2 value layers"),
        ({"a.attn2.to_v": 1, "b.attn2.to_v": 0}, "1 neuron in 1 of 2 value layers: 1 in a"),
        (
            {f"mid.{i}.transformer_blocks.0.attn2.to_v": i for i in range(1, 7)},
            "21 neurons in 6 of 6 value layers: 6 in mid.6.0, 5 in mid.5.0, 4 in mid.4.0, 6 in 3 others",
        ),
    ],
)
def test_silenced_neurons_are_counted_by_layer(
    capsys: pytest.CaptureFixture[str], found: Contents, silenced: dict[str, int] | None, words: str
) -> None:
    assert facts(capsys, found.model_copy(update={"silenced": silenced}))["silenced"] == words


def test_engines_are_counted_by_whether_they_run_here(capsys: pytest.CaptureFixture[str], found: Contents, tmp_path: Path) -> None:
    def engine(name: str, runs: bool | None, data: bytes = plans.compiled("SM86")) -> Engine:
        described = inspect(plans.write(tmp_path, data, None, name))
        assert isinstance(described, Engine)
        return described.model_copy(update={"fit": Fit(runs=runs, reason="so")})

    engines: Sequence[Any] = (engine("a.plan", True), engine("b.plan", False), engine("c.plan", False), engine("d.plan", None))
    told = facts(capsys, found.model_copy(update={"engines": engines, "sessions": ()}))
    words = "1 TensorRT-RTX engine: runs here 2 TensorRT-RTX engines: does not run here 1 TensorRT-RTX engine: may run here"
    assert told["engines"] == words


def test_pictures_are_counted_and_hashes_are_short(capsys: pytest.CaptureFixture[str], found: Contents) -> None:
    pictures = sum(name.startswith("report/pictures/") for name in found.files)
    show_files(found)
    out = capsys.readouterr().out
    assert pictures > 1
    assert f"and {pictures} pictures in report/pictures/" in out
    assert out.count("report/pictures") == 1
    assert found.files["neurons.json"][:16] in out
    assert found.files["neurons.json"] not in out


def test_whole_hashes_are_what_sha256sum_reads(
    capsys: pytest.CaptureFixture[str], found: Contents, tiny_bundle: Path, tmp_path: Path
) -> None:
    assert facts(capsys, found, hashes=True)["identity"] == open_bundle(tiny_bundle).identity
    show_files(found, hashes=True)
    listed = tmp_path / "sums"
    listed.write_text(capsys.readouterr().out)
    assert len(listed.read_text().splitlines()) == len(found.files)
    done = subprocess.run(["sha256sum", "--check", "--strict", "--quiet", listed], cwd=tiny_bundle, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, b"")

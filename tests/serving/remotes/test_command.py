"""A program gets a prompt as one argument whatever is in it, and what goes wrong with it is one line with its own last words."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import pytest
from painters import MEMORY, SIDE, asked, command, noise, put_pictures

from nemo_edge.serving.remotes.base import Refusal
from nemo_edge.serving.remotes.command import CommandPipeline
from nemo_edge.system.errors import InputError

EVIL = 'a pig\'; touch stolen; echo "$(touch stolen)" `touch stolen` {seed} {output} \\ *'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    put_pictures(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_program_draws(folder: Path) -> None:
    with CommandPipeline(command(folder), 60) as pipeline:
        assert np.array_equal(pipeline(MEMORY, 3), np.asarray(noise("training pig")))
        assert pipeline("an owl", 0).shape == (SIDE, SIDE, 3)
        assert not np.array_equal(pipeline("an owl", 0), pipeline("an owl", 1))
        assert np.array_equal(pipeline("an owl", 0), pipeline("an owl", 0))


def test_a_prompt_stays_one_argument(folder: Path) -> None:
    with CommandPipeline(command(folder), 60) as pipeline:
        pipeline(EVIL, 7)
    assert asked(folder) == [EVIL]
    assert not (folder / "stolen").exists()


def test_a_prompt_that_looks_like_an_option_is_not_sent_as_one(folder: Path) -> None:
    bare = command(folder).replace("--prompt={prompt}", "--prompt=x {prompt}")
    with CommandPipeline(bare, 60) as pipeline, pytest.raises(Refusal, match="begins with - would be read as an option"):
        pipeline("--out=stolen", 0)
    assert asked(folder) == []
    with CommandPipeline(command(folder), 60) as pipeline:
        pipeline("--out=stolen", 0)
    assert asked(folder) == ["--out=stolen"]


def test_it_is_not_sent_as_one_either_where_more_follows(folder: Path) -> None:
    more = command(folder).replace("--prompt={prompt}", "--prompt=x '{prompt}, photo'")
    with CommandPipeline(more, 60) as pipeline, pytest.raises(Refusal, match="begins with - would be read as an option"):
        pipeline("--out=stolen", 0)
    with CommandPipeline(more.replace("'{prompt}", "-- '{prompt}"), 60) as pipeline, pytest.raises(InputError, match="failed") as raised:
        pipeline("--out=stolen", 0)  # the program of these tests does not know --
    assert not isinstance(raised.value, Refusal)


@pytest.mark.parametrize(
    "given",
    [
        "sh -c 'draw {prompt} > {output}'",
        "/bin/bash -lc 'draw \"{prompt}\" {output}'",
        "env X=1 sh -e -c 'draw > {output}' sh {prompt}",
        "timeout 10 python3.11 -Ic 'print(\"{prompt}\")' {output}",
        "python -W ignore -c 'print(\"{prompt}\")' {output}",
        "python -cprint('{prompt}') {output}",
        "perl -e 1 -e 'print \"{prompt}\"' {output}",
        "perl -ne 'print \"{prompt}\"' {output}",
        "node --eval 'draw(\"{prompt}\")' {output}",
        "su painter -c 'draw {prompt} {output}'",
        "ssh gpu draw {prompt} {output}",
    ],
)
def test_a_prompt_is_never_put_into_code(folder: Path, given: str) -> None:
    with pytest.raises(
        InputError, match=r"--command puts \{(prompt|output)\} into code that \S+ runs, so that a prompt could run anything"
    ):
        CommandPipeline(given, 60)


def test_code_that_takes_its_arguments_is_run(folder: Path) -> None:
    """And so is a program with an option -c of its own."""
    shell = f'sh -c \'cp "$2" "$1"; echo "$0" > said\' {{prompt}} {{output}} {folder}/pig.png'
    with CommandPipeline(shell, 60) as pipeline:
        pipeline("$(touch stolen); touch stolen", 0)
    assert (folder / "said").read_text() == "$(touch stolen); touch stolen\n"
    assert not (folder / "stolen").exists()
    python = sys.executable
    for own in (command(folder) + " -c {prompt}", f"{python} -m draw -c {{prompt}} {{output}}", f"{python} -c 1 --p={{prompt}} {{output}}"):
        with CommandPipeline(own, 60):
            pass


def test_it_is_another_where_a_file_among_its_arguments_is(folder: Path) -> None:
    def found(line: str) -> object:
        with CommandPipeline(line, 60) as pipeline:
            return pipeline.identity

    line = command(folder)
    before = found(line)
    (folder / "log").write_text("what a program writes")
    assert found(line) == before
    command(folder, "import sys")
    assert found(line) != before
    for name, own in (("manifest.json", "bundle"), ("model_index.json", "checkpoint")):
        (folder / own).mkdir()
        (folder / own / name).write_text("{}")
        for argument in (own, f"--model={own}"):
            first = found(f"{line} {argument}")
            assert first == found(f"{line} {argument}")
            (folder / own / name).write_text(f'{{"a": "{argument}"}}')
            assert found(f"{line} {argument}") != first
    (folder / "w.safetensors").write_bytes(b"1")
    first = found(f"{line} --model=w.safetensors")
    (folder / "w.safetensors").write_bytes(b"2")
    assert found(f"{line} --model=w.safetensors") != first


@pytest.mark.parametrize(
    ("program", "said"),
    [
        (
            "import sys; print('first', file=sys.stderr); sys.exit('no GPU\\n')",
            r"failed \(exit code 1\), and says: no GPU: it must draw .*'a pig'",
        ),
        ("import sys; sys.exit(3)", r"failed \(exit code 3\): it must draw"),
        ("", r"wrote no picture: it must write one to the file in place of \{output\}"),
        ("import sys; open(sys.argv[3][6:], 'w').write('Sorry.')", r"wrote is no picture \(6 bytes: Sorry\.\)"),
        ("import os; os.kill(os.getpid(), 9)", r"failed \(exit code -9\)"),
    ],
)
def test_a_program_that_draws_nothing_is_one_line(folder: Path, program: str, said: str) -> None:
    with CommandPipeline(command(folder, program), 60) as pipeline, pytest.raises(InputError, match=said) as raised:
        pipeline("a pig", 0)
    assert "\n" not in str(raised.value)


def test_a_picture_of_before_is_not_taken_for_the_next(folder: Path) -> None:
    program = "import sys, shutil\nif 'pig' in sys.argv[1]: shutil.copyfile(sys.argv[4][8:], sys.argv[3][6:])"
    with CommandPipeline(command(folder, program), 60) as pipeline:
        pipeline("a pig", 0)
        with pytest.raises(InputError, match="wrote no picture"):
            pipeline("an owl", 0)


def test_a_program_that_hangs_is_ended_with_what_it_started(folder: Path) -> None:
    program = "import subprocess, sys; p = subprocess.Popen(['sleep', '600']); open('child', 'w').write(str(p.pid)); p.wait()"
    with CommandPipeline(command(folder, program), 2) as pipeline, pytest.raises(InputError, match=r"drew nothing in 2 s: .*--timeout"):
        pipeline("a pig", 0)
    child = int((folder / "child").read_text())
    end = time.monotonic() + 10
    while Path(f"/proc/{child}").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text().split()[2] and time.monotonic() < end:
        time.sleep(0.05)
    assert not Path(f"/proc/{child}").exists() or Path(f"/proc/{child}/stat").read_text().split()[2] == "Z"


def test_a_prompt_that_no_argument_can_be_is_one_line(folder: Path) -> None:
    with CommandPipeline(command(folder), 60) as pipeline, pytest.raises(InputError, match=r"cannot be run: .*null"):
        pipeline("a\0pig", 0)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("nosuchprogram --p={prompt} {output}", "the command nosuchprogram does not exist"),
        (f"{sys.executable} --p={{prompt}}", r"has no \{output\} among its arguments: write it like --command 'mydraw"),
        (f"{sys.executable} {{output}}", r"has no \{prompt\}"),
        ("draw '{prompt} {output}", "No closing quotation; write it as in a shell"),
        ("{prompt} {output}", r"has no \{prompt\}"),
        ("", r"has no \{prompt\}"),
    ],
)
def test_a_command_that_cannot_be_one_is_refused(given: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        CommandPipeline(given, 60)


def test_it_leaves_nothing_behind(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder / "scratch"))
    with CommandPipeline(command(folder), 60) as pipeline:
        pipeline("an owl", 0)
        assert [*(folder / "scratch").iterdir()] != []
    assert [*(folder / "scratch").iterdir()] == []

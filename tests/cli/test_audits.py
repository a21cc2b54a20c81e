"""The command line of an audit: one object, a table of 80 columns, exit codes, and refusals in one line before a picture is drawn."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from painters import MEMORY, PROGRAM, Answer, asked, command, http_server, noise, png, put_pictures

from cli.test_main import Ran, Run, assert_refused, assert_refused_last_line, run
from nemo_edge.serving.audit.base import Audit

__all__ = ["run"]

FEW = ("--seeds", 2, "--variants", 2)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    put_pictures(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


def audit(run: Run, folder: Path, *more: object, source: Any = None, prompts: str = "list.csv") -> Ran:
    where = ("--command", command(folder)) if source is None else source
    return run("audit", *where, "--prompts", prompts, "--output", "audit.json", *more)


def test_it_prints_one_object_and_a_table_of_80_columns(run: Run, folder: Path) -> None:
    ran = audit(run, folder, *FEW, "--general", "general.txt", "--text", "random tokens", "--json")
    assert ran.code == 0
    found = json.loads(ran.out)
    assert found == json.loads((folder / "audit.json").read_text())
    assert found["settings"]["text"] == ["random tokens"]
    again = audit(run, folder, *FEW, "--general", "general.txt", "--text", "random tokens")
    assert again.code == 0
    assert max(map(len, again.out.splitlines())) <= 80
    shown = " ".join(again.out.split())
    assert f"{MEMORY} 2/2" in shown
    assert "1 of 2 prompts give back their training picture (at least 2 %, 95 % confidence)" in shown
    assert "nothing found is no proof" in shown


@pytest.mark.parametrize(("most", "code"), [(0, 3), (1, 0)])
def test_with_a_limit_it_has_a_verdict(run: Run, folder: Path, most: int, code: int) -> None:
    ran = audit(run, folder, "--seeds", 1, "--text", "none", "--threshold", 0.2, "--most", most, "--json")
    assert ran.code == code
    assert json.loads(ran.out)["passed"] is (code == 0)


def test_a_server_that_refuses_every_prompt_passes_nothing(run: Run, folder: Path) -> None:
    def respond(path: str, body: bytes) -> Answer:
        if path == "/-/routes":
            return 200, {"/": "default"}
        refused = json.loads(body)["prompt"] in (MEMORY, "an owl by night")
        return (400, b"not this") if refused else (200, png(noise(body.decode())))

    with http_server(respond) as url:
        ran = audit(run, folder, *FEW, "--text", "none", "--most", 0, "--json", source=(url,))
    assert ran.code == 2
    assert "passed" not in json.loads(ran.out)
    last = ran.err.splitlines()[-1]
    assert f"--most 0 has no verdict: nothing was drawn of '{MEMORY}' and 2 prompts in all" in last
    found = Audit.model_validate_json((folder / "audit.json").read_bytes())
    assert "of 2 of 2 prompts nothing was drawn, so that nothing is known of them" in found.verdicts


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ((), "neither was given"),
        (("http://127.0.0.1:9", "--command", "sh {prompt} {output}"), "both were given"),
        (("http://127.0.0.1:9",), "nobody answers at http://127.0.0.1:9"),
        (("ftp://127.0.0.1/",), "no URL of an HTTP server"),
        (("--command", "nosuchprogram --p={prompt} {output}"), "nosuchprogram does not exist"),
        (("--command", f"{sys.executable} --p={{prompt}}"), "no {output} among its arguments"),
        (
            ("--command", f"{sys.executable} -I -S -c 'raise SystemExit(\"no GPU\")' {{prompt}} {{output}}"),
            "failed (exit code 1), and says: no GPU",
        ),
        (("--command", f"{sys.executable} -I -S -c '' {{prompt}} {{output}}"), "wrote no picture"),
    ],
)
def test_what_does_not_draw_is_one_line(run: Run, folder: Path, source: tuple[str, ...], said: str) -> None:
    assert_refused(audit(run, folder, source=source), said)
    assert [path.name for path in folder.glob("audit*")] == []


def test_a_server_of_something_else_is_one_line(run: Run, folder: Path) -> None:
    with http_server(lambda path, body: (200, b"<html>")) as url:
        assert_refused(audit(run, folder, source=(url,)), "says neither that it is Triton nor Ray Serve", "--server ray")
        assert_refused(audit(run, folder, source=(url, "--server", "ray")), "is no picture", "<html>")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--seeds", 0), "--seeds 0: input should be greater than or equal to 1"),
        (("--threshold", 0), "--threshold 0"),
        (("--text", "greedy search"), "--text"),
        (("--vocabulary", "nowhere"), "nowhere holds no tokenizer"),
        (("--general", "nowhere.txt"), "nowhere.txt"),
    ],
)
def test_an_option_that_cannot_be_is_named(run: Run, folder: Path, options: tuple[object, ...], said: str) -> None:
    assert_refused(audit(run, folder, *options), said)
    assert asked(folder) == []


def test_lists_and_outputs_that_cannot_be_are_refused_before_a_picture(run: Run, folder: Path) -> None:
    (folder / "empty.csv").write_text("Caption\n\n")
    assert_refused(audit(run, folder, prompts="empty.csv"), "holds no prompt")
    assert_refused(audit(run, folder, prompts="nowhere.csv"), "nowhere.csv")
    (folder / "audit.json").write_text("{}")
    assert_refused(audit(run, folder), "audit.json exists and is not of this audit")
    assert asked(folder) == []


def test_a_program_that_fails_later_is_one_line_and_what_was_finished_is_kept(run: Run, folder: Path) -> None:
    lost = "elif 'owl' in given['prompt'] and pathlib.Path('lost').exists(): sys.exit('lost the GPU')\nelse:"
    program = PROGRAM.replace("else:", lost)
    (folder / "lost").touch()
    ran = audit(run, folder, "--seeds", 1, "--text", "none", source=("--command", command(folder, program)))
    assert_refused_last_line(ran, "failed (exit code 1), and says: lost the GPU", "'an owl by night'")
    assert len((folder / "audit.jsonl").read_text().splitlines()) == 2
    before = len(asked(folder))
    (folder / "lost").unlink()
    assert audit(run, folder, "--seeds", 1, "--text", "none", source=("--command", command(folder, program))).code == 0
    assert len(asked(folder)) == before + 1

"""A whole audit with a real program: a copy is found and what is none is not, it goes on after it was killed, and is checked first."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from painters import GIVES, MEMORY, PROGRAM, TAKES, asked, command, http_server, noise, put_pictures, v2, v2_picture
from PIL import Image

from nemo_edge.serving.audit.base import NO_PROOF, Audit, AuditSettings
from nemo_edge.serving.audit.campaign import audit, journal_of
from nemo_edge.serving.remotes.opening import Address, open_remote
from nemo_edge.serving.server import Server
from nemo_edge.system.errors import InputError

SETTINGS = AuditSettings(variants=4, seeds=2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    put_pictures(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an audit that was not interrupted."""
    made = tmp_path_factory.mktemp("whole")
    put_pictures(made)
    run(made)
    return made


def run(folder: Path, settings: AuditSettings = SETTINGS, program: str = PROGRAM, **more: Any) -> Audit:
    given = {"general": folder / "general.txt", **more}
    return audit(Address(command=command(folder, program)), folder / "list.csv", settings, folder / "audit.json", **given)


def test_a_copy_is_found_and_what_is_none_is_not(whole: Path) -> None:
    found = Audit.model_validate_json((whole / "audit.json").read_bytes())
    assert found.known is not None
    assert found.unknown is None
    assert [(giver.prompt, giver.own) for giver in found.givers] == [(MEMORY, (2, 2))]
    changed = [each for each in found.asked if each.way == "paraphrases" and each.prompt == MEMORY]
    assert {each.text: all(a.copied for a in each.attempts) for each in changed} == {each.text: "RED" in each.text for each in changed}
    assert any("RED" in each.text for each in changed), "the case of the prompt is one of its changes"
    assert (found.known.total.returned, found.known.total.of) == (1, 2)
    assert found.control is not None
    assert (found.control.count.returned, found.control.count.of) == (0, 4)
    assert found.verdicts[0] == "1 of 2 prompts give back their training picture (at least 2 %, 95 % confidence)"
    assert found.verdicts[-1] == NO_PROOF


def test_it_says_whom_it_asked_and_with_what(whole: Path) -> None:
    found = Audit.model_validate_json((whole / "audit.json").read_bytes())
    assert (found.remote.kind, len(found.remote.version)) == ("command", 64)
    assert found.remote.address.startswith(sys.executable)
    assert all(len(digest) == 64 for digest in (found.prompts_hash, found.general_hash, found.begun.inputs))
    assert found.begun.date[:2] == "20"
    assert found.machine.versions["nemo-edge"]
    assert found.vocabulary.endswith("words of the general prompts and our list")


def test_once_more_it_asks_nothing_and_writes_the_same(whole: Path) -> None:
    before, calls = (whole / "audit.json").read_bytes(), len(asked(whole))
    run(whole)
    assert (whole / "audit.json").read_bytes() == before
    assert len(asked(whole)) == calls


def test_killed_half_way_it_goes_on(folder: Path, whole: Path) -> None:
    """A process of its own, with no chance to tidy up."""
    given = ["--command", command(folder), "--prompts", "list.csv", "--general", "general.txt", "-o", "audit.json"]
    line = [sys.executable, "-m", "nemo_edge.cli", "audit", *given, "--variants", "4", "--seeds", "2", "--json"]
    process = subprocess.Popen(line, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    kept, end = folder / "audit.jsonl", time.monotonic() + 120
    while (not kept.exists() or kept.read_bytes().count(b"\n") < 4) and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    lines = kept.read_bytes().count(b"\n")
    assert 4 <= lines < (whole / "audit.jsonl").read_bytes().count(b"\n")
    before = asked(folder)
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == json.loads((folder / "audit.json").read_text())
    assert len(before) < len(asked(whole))
    again = asked(folder)[len(before) :]
    assert MEMORY not in again, "what was finished is not asked again"
    assert answers(folder) == answers(whole)


def answers(folder: Path) -> list[Any]:
    """Who was asked what, and what came; the command is another in another folder."""
    found = json.loads((folder / "audit.json").read_text())
    return [{**each, "inputs": ""} for each in found["asked"]]


def test_types_of_a_list_are_its_controls(folder: Path) -> None:
    rows = "".join(f"general thing number {number};N;\n" for number in range(4))
    (folder / "list.csv").write_text(f"Caption;type;image\n{MEMORY};VM;pig.png\n{rows}")
    found = run(folder, SETTINGS.model_copy(update={"text": ()}), general=None)
    assert found.known is not None
    assert found.control is not None
    assert (found.known.total.of, found.control.count.of) == (1, 2)


def test_an_output_of_another_audit_is_left_alone(folder: Path) -> None:
    (folder / "audit.json").write_text("{}")
    with pytest.raises(InputError, match=r"audit\.json exists and is not of this audit .*give another --output, or delete it"):
        run(folder)
    assert (folder / "audit.json").read_text() == "{}"
    assert asked(folder) == []


def test_a_list_of_prompts_that_are_not_memorized_is_none(folder: Path) -> None:
    (folder / "list.csv").write_text("Caption;type\na pig;N\n")
    with pytest.raises(InputError, match="holds no prompt that may be memorized: all are of type N"):
        run(folder)
    (folder / "list.csv").write_text("Caption\n\n")
    with pytest.raises(InputError, match="holds no prompt"):
        run(folder)


def test_general_prompts_are_enough_and_none_of_the_list(folder: Path) -> None:
    (folder / "few.txt").write_text("one\ntwo\nthree\n")
    with pytest.raises(InputError, match=r"few\.txt holds 3 different prompts, 4 are needed"):
        run(folder, general=folder / "few.txt")
    (folder / "same.txt").write_text(f"one\ntwo\nthree\n{MEMORY.upper()}!\n")
    with pytest.raises(InputError, match=r"1 of the general prompts in .* stand among the memorized ones"):
        run(folder, general=folder / "same.txt")
    assert asked(folder) == []


def test_a_picture_that_is_another_prompt_s_is_counted(folder: Path) -> None:
    (folder / "list.csv").write_text(f"Caption;image\nan owl by night;owl.png\nsomething else;pig.png\n{MEMORY};owl.png\n")
    found = run(folder, SETTINGS.model_copy(update={"text": ()}))
    assert found.others == 2
    (other, *_) = next(each for each in found.asked if each.prompt == MEMORY).others
    assert other.prompt == "something else"


def test_a_server_of_the_protocol_is_audited(folder: Path) -> None:
    pytest.importorskip("tritonclient.http")

    def infer(prompt: str, seed: int) -> Any:
        if {"owl", "by", "night"} <= set(prompt.split()):
            return 400, {"error": "no birds"}
        return v2_picture(np.asarray(noise("training pig" if prompt == MEMORY else f"{prompt} {seed}"))[None])

    with http_server(v2({"pipeline": (TAKES, GIVES)}, infer)) as url:
        settings = SETTINGS.model_copy(update={"text": ("random tokens",)})
        found = audit(Address(url), folder / "list.csv", settings, folder / "audit.json", general=folder / "general.txt")
    assert [giver.prompt for giver in found.givers] == [MEMORY]
    assert found.refused == 1 + 4
    assert any("5 of 14 texts were refused: " in said and said.endswith("answered 400: no birds") for said in found.verdicts)


@pytest.mark.triton
def test_a_triton_is_audited(triton: Server, folder: Path) -> None:
    """A training picture is one that the server draws for a prompt: that prompt gives it back from its seed, and another does not."""
    with open_remote(Address(triton.http)) as remote:
        Image.fromarray(remote("a red pig", 0)).save(folder / "pig.png")
        Image.fromarray(255 - remote("an owl by night", 0)).save(folder / "owl.png")
    settings = AuditSettings(text=("random tokens",), variants=1, seeds=2, threshold=0.02)
    found = audit(Address(triton.http), folder / "list.csv", settings, folder / "audit.json")
    own = next(each for each in found.asked if each.prompt == MEMORY and each.way == "prompt")
    assert own.attempts[0].distance < 0.02
    assert own.attempts[0].copied
    assert not any(a.copied for each in found.asked if each.prompt != MEMORY for a in each.attempts)
    assert (found.remote.model, found.remote.version, found.remote.told["name"]) == ("pipeline", "1", "triton")


def test_the_journal_lies_beside_the_output() -> None:
    assert journal_of(Path("x/audit.json")) == Path("x/audit.jsonl")
    assert journal_of(Path("audit")) == Path("audit.jsonl")

"""Whatever stands where a file is read: its bytes, or one error that says why not, and no waiting."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nemo_edge.system.errors import InputError
from nemo_edge.system.reading import check_letters, check_regular, expanded, parse_json, read_bytes, read_json, read_text


def test_what_is_there_is_read(tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": "\xcf\x84"}')
    assert read_bytes(path) == path.read_bytes()
    assert read_text(path) == '{"a": "τ"}'
    assert read_json(path) == {"a": "τ"}
    (tmp_path / "link").symlink_to(path)
    assert read_json(tmp_path / "link") == {"a": "τ"}


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("absent", "recipe .*absent does not exist: make one"),
        (".", "it is a folder: give a file"),
        ("pipe", "it is a pipe: give a regular file"),
        ("/dev/zero", "it is a device"),
        ("loop", "a link that leads to itself"),
        ("n" * 300, "its name is too long"),
        ("a\0b", "holds a zero byte"),
        ("file/below", "a part of its path is a file"),
        ("large", "has 2 MB, more than 1: give a smaller one"),
    ],
)
def test_what_is_no_such_file_is_told_at_once(tmp_path: Path, name: str, reason: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "large").write_bytes(b"")
    os.truncate(tmp_path / "large", 2 * 2**20)
    with pytest.raises(InputError, match=reason):
        read_bytes(tmp_path / name, "recipe", most=2**20, remedy="make one")
    if name != "large":
        with pytest.raises(InputError, match=reason):
            check_regular(tmp_path / name, "recipe", remedy="make one")


def test_a_file_that_may_not_be_read_is_not_called_unwritable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x")

    def denied(*_: object) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(InputError, match="cannot be read: permission is denied"):
        read_bytes(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b"9" * 6000, "Exceeds the limit"),
        (b'"\\ud800"', "half of a letter"),
        (b"{", "Expecting property name"),
        (b"", "Expecting value"),
    ],
)
def test_what_is_no_json_is_told(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "f.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=reason):
        read_json(path)
    with pytest.raises(ValueError, match=reason):
        parse_json(content)


def test_what_is_no_text_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"a\n\xff")
    with pytest.raises(InputError, match=r"is not UTF-8 \(line 2\)"):
        read_text(tmp_path / "f")


def test_a_home_that_is_not_known_is_told() -> None:
    assert expanded("~/x") == Path.home() / "x"
    with pytest.raises(InputError, match="home folder of a user that is not known here"):
        expanded("~nosuchuser/x")


def test_half_of_a_letter_is_no_text() -> None:
    check_letters("τ 🐷", "the prompt")
    with pytest.raises(InputError, match="the prompt has half of a letter"):
        check_letters("a\udc80", "the prompt")

"""Files are whole or absent, and a full disk is explained."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from nemo_edge.system import files
from nemo_edge.system.errors import InputError
from nemo_edge.system.files import (
    check_file,
    check_folder,
    checkpoint_folder,
    checkpoint_hashes,
    copy_tree,
    inside,
    number_of,
    sha256_file,
    sha256_json,
    temporary,
    way_to,
    write_atomically,
)


@pytest.mark.parametrize(
    ("path", "folder", "way"),
    [
        ("/data/model", "/data/out/x", "../../model"),
        ("/data/model", "/srv/x", "../../data/model"),
        ("/home/jo/models/a", "/home/jo/out", "../models/a"),
        ("/home/jo/models/a", "/srv/out", "a"),
        ("/home/mary/models/a", "/home/jo/out", "a"),
        ("/Users/mary/a", "/srv/out", "a"),
        ("/accounts/jo/a", "/srv/out", "a"),
        ("/scratch/jo-nemo/a", "/scratch/out", "a"),
        ("/srv/out/../a", "/srv/out", "../a"),
    ],
)
def test_a_way_tells_no_user_s_name(monkeypatch: pytest.MonkeyPatch, path: str, folder: str, way: str) -> None:
    monkeypatch.setenv("HOME", "/accounts/jo" if path.startswith("/accounts") else "/home/jo")
    for name in ("LOGNAME", "USER"):
        monkeypatch.setenv(name, "jo-nemo")
    assert way_to(Path(path), Path(folder)) == Path(way)


def test_a_way_to_what_is_linked_leads_to_the_link(tmp_path: Path) -> None:
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "out").symlink_to(tmp_path / "real" / "deep")
    (tmp_path / "model").symlink_to(tmp_path / "real")
    way = way_to(tmp_path / "model", tmp_path / "out")
    assert way == Path("../../model")
    assert (tmp_path / "out" / way).samefile(tmp_path / "real")


def test_a_write_creates_folders_and_leaves_only_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "x.txt"
    write_atomically(path, "öne")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert [p.name for p in path.parent.iterdir()] == ["x.txt"]
    umask = os.umask(0o022)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_full_disk_leaves_the_former_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "x.txt"
    write_atomically(path, "former")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"the disk is full while writing .*x\.txt: free some space"):
        write_atomically(path, "new")
    assert path.read_text() == "former"
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]


def test_an_interruption_leaves_the_former_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_handle: int) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "x.txt"
    write_atomically(path, "former")
    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, "new")
    assert path.read_text() == "former"
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]


def test_a_folder_in_the_way_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written: Is a directory"):
        write_atomically(tmp_path, "x")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file/x cannot be written"):
        write_atomically(tmp_path / "file" / "x", "x")


def test_a_read_only_place_asks_for_another(tmp_path: Path) -> None:
    place = next((p for p in (tmp_path / "locked", Path("/sys")) if _read_only(p)), None)
    if place is None:
        pytest.skip("this user may write everywhere (os.access says writable)")
    with pytest.raises(InputError, match="choose a folder you may write to"):
        write_atomically(place / "x", "x")


def test_hashes_are_those_of_the_bytes_and_of_canonical_json(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256_file(tmp_path / "x") == hashlib.sha256(b"abc").hexdigest()
    assert sha256_json({"b": [1], "a": None}) == hashlib.sha256(b'{"a":null,"b":[1]}').hexdigest()


def test_a_checkpoint_is_its_weights_and_configurations(tmp_path: Path) -> None:
    for name in ("unet/model.safetensors", "unet/config.json", "README.md"):
        write_atomically(tmp_path / name, name)
    assert list(checkpoint_hashes(str(tmp_path))) == ["unet/config.json", "unet/model.safetensors"]
    assert checkpoint_hashes(str(tmp_path / "unet/config.json")) == {"config.json": hashlib.sha256(b"unet/config.json").hexdigest()}
    with pytest.raises(InputError, match="does not exist"):
        checkpoint_hashes(str(tmp_path / "absent"))


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("owner/name@", "'' is no revision: give a branch, a tag or a commit after the @"),
        ("owner/name@../../other", "'../../other' is no revision"),
        ("owner/name@\udcff", "checkpoint has half of a letter"),
    ],
)
def test_a_hub_id_without_a_readable_revision_is_refused(path: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        checkpoint_folder(path)


def test_a_name_is_inside_that_leads_nowhere_else_and_that_a_file_system_takes() -> None:
    assert all(map(inside, ("a", "unet/model.onnx", "é" * 127, "/".join(["n" * 99] * 10))))
    outside = ("", "/a", "..", "a/../b", "../a", "a/", "./a", "C:/a", "a\\b")
    assert not any(map(inside, (*outside, "a\0b", "é" * 128, "n" * 256, "/".join(["n" * 99] * 11))))


def test_a_number_has_digits_of_this_alphabet_and_no_zero_in_front() -> None:
    assert [number_of(text) for text in ("1", "42", "0", "01", "\u00b2", "\u0663", "", "-1", "1" * 10)] == [1, 42, 0, 0, 0, 0, 0, 0, 0]


def _read_only(place: Path) -> bool:
    if place.name == "locked":
        place.mkdir(mode=0o555)
    return place.is_dir() and not os.access(place, os.W_OK)


def test_an_output_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    check_folder(tmp_path)
    check_folder(tmp_path / "absent" / "deep")
    check_file(tmp_path / "file")
    with pytest.raises(InputError, match="file is a file: give the path of a folder"):
        check_folder(tmp_path / "file")
    with pytest.raises(InputError, match=r"lies below .*file, which is a file: give another path"):
        check_file(tmp_path / "file" / "deep" / "x.png")
    with pytest.raises(InputError, match="is a folder: give the path of a file"):
        check_file(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_link_stays_and_leads_to_what_is_written(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link.json").symlink_to(tmp_path / "real" / "file.json")
    (tmp_path / "real" / "file.json").write_text("former")
    write_atomically(tmp_path / "link.json", "new")
    assert (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "real" / "file.json").read_text() == "new"
    assert [p.name for p in (tmp_path / "real").iterdir()] == ["file.json"]


def test_what_a_killed_writer_left_is_removed_and_what_another_is_writing_stays(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    temporary(path).write_text("half")
    other, another = temporary(tmp_path / "y.txt"), temporary(path)
    other.write_text("of another file")
    with files._claimed(another):
        write_atomically(path, "one")
        assert {p.name for p in tmp_path.iterdir()} == {"x.txt", other.name, another.name}
    write_atomically(path, "two")
    assert {p.name for p in tmp_path.iterdir()} == {"x.txt", other.name}


@pytest.mark.parametrize("check", [check_file, check_folder])
def test_an_output_that_spoils_something_is_refused(tmp_path: Path, check: Callable[[Path], None]) -> None:
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for place in (tmp_path / "dangling", tmp_path / "dangling" / "deep" / "out"):
        with pytest.raises(InputError, match=r"leads to .*nowhere, which does not exist: make that folder, or delete the link"):
            check(place)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model_index.json").write_text("{}")
    (tmp_path / "link").symlink_to(tmp_path / "model")
    for place in (tmp_path / "model" / "new", tmp_path / "link" / "deep" / "new"):
        with pytest.raises(InputError, match=r"lies inside the checkpoint .*model: give another path"):
            check(place)
    (tmp_path / "model" / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match="lies in the bundle, whose files are all in its manifest: give another path"):
        check(tmp_path / "model" / "report" / "new.png")


def test_a_tree_is_copied_without_what_is_left_out(tmp_path: Path, written: Callable[[str, str], Path]) -> None:
    for name in ("a/b", "a/stage.json", "stage.json", "pictures/1.png"):
        written(f"source/{name}", name)
    written("target/a/b", "former")
    copy_tree(tmp_path / "source", tmp_path / "target", leave=("stage.json", "pictures"))
    assert sorted(p.relative_to(tmp_path / "target").as_posix() for p in (tmp_path / "target").rglob("*") if p.is_file()) == [
        "a/b",
        "a/stage.json",
    ]
    assert (tmp_path / "target/a/b").read_text() == "a/b"


def test_links_where_there_are_none_are_copies_and_a_full_disk_is_told(
    tmp_path: Path, written: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    written("source/a", "a")

    def failing(number: int) -> Callable[..., None]:
        def fail(*_: object, **__: object) -> None:
            raise OSError(number, os.strerror(number))

        return fail

    monkeypatch.setattr(os, "link", failing(errno.EPERM))
    copy_tree(tmp_path / "source", tmp_path / "target", link=True)
    assert (tmp_path / "target" / "a").read_text() == "a"
    monkeypatch.setattr(os, "link", failing(errno.ENOSPC))
    with pytest.raises(InputError, match="the disk is full"):
        copy_tree(tmp_path / "source", tmp_path / "target", link=True)

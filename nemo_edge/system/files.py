"""Files that are whole or absent: where they may go, atomic writes, hashes, and the one place where a full disk is explained."""

from __future__ import annotations

__all__ = [
    "Inside",
    "PICKLE_FILES",
    "WEIGHT_FILES",
    "append",
    "check_file",
    "check_folder",
    "check_lora",
    "checkpoint_folder",
    "checkpoint_hashes",
    "copy_tree",
    "explain",
    "followed",
    "inside",
    "leftovers",
    "names_in",
    "number_of",
    "sha256_file",
    "sha256_json",
    "temporary",
    "user_cache",
    "way_to",
    "weight_bytes",
    "with_commit",
    "write_atomically",
]

import errno
import getpass
import hashlib
import json
import os
import platform
import posixpath
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import MappingProxyType
from typing import Annotated

from pydantic import AfterValidator

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from nemo_edge.system.errors import InputError, first_line
from nemo_edge.system.reading import check_letters, check_regular, expanded, read_text
from nemo_edge.system.weights import PICKLE_FILES, WEIGHT_FILES, opened_files

_flock: Callable[[int, int], None] | None = getattr(fcntl, "flock", None)
_HOMES = ("home", "Users")
"""Folders of a machine that hold its users' own, by these users' names."""


def followed(path: Path) -> Path:
    """The path itself, or where it leads to if it is a link or has no name of its own (`.`); a link to itself is its own end."""
    return Path(os.path.realpath(path)) if path.is_symlink() or path.name in ("", "..") else path


def temporary(path: Path) -> Path:
    """A hidden name beside `path`, or beside what it is a link to, for what is not whole yet: `.name.<8 hex digits>.part`."""
    path = followed(path)
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")


def leftovers(path: Path) -> list[Path]:
    """What lies beside `path` under a temporary name: what is being written there, or what was when a run was killed."""
    path = followed(path)
    with suppress(OSError):
        named = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}\.part")
        return sorted(other for other in path.parent.iterdir() if named.fullmatch(other.name))
    return []


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write `content` to a temporary name beside `path`, then rename. Raises `InputError` when it cannot be written.

    A device or a pipe at `path` is written to as it is, and not replaced; a link stays, and leads to what is written. What writers that
    were killed have left of the same file is removed.
    """
    data = content.encode() if isinstance(content, str) else content
    if path.exists() and not path.is_file() and not path.is_dir():
        _write_through(path, data)
        return
    staged = temporary(path)  # named before it is made: a signal finds it
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in leftovers(path):
            _drop(left)
        with _claimed(staged):
            with staged.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(staged, followed(path))
    except OSError as error:
        raise explain(error, path) from error
    finally:
        with suppress(OSError):
            staged.unlink()


@contextmanager
def _claimed(staged: Path) -> Iterator[None]:
    """Make a file and hold it as one that is being written, where the system has such locks."""
    descriptor = os.open(staged, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    if _flock is None:  # where a file that is open can have no other name
        os.close(descriptor)
        yield
        return
    try:
        with suppress(OSError):
            _flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _drop(left: Path) -> None:
    """Remove a file that nobody is writing any more."""
    with suppress(OSError):  # one that is being written is locked
        if _flock is not None:
            with left.open("r+b") as file:
                _flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
                left.unlink()


def append(path: Path, content: str) -> None:
    """Add text to the end of a file, which is made where it is not there. Raises `InputError` when it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(content)
    except OSError as error:
        raise explain(error, path) from error


def _write_through(path: Path, data: bytes) -> None:
    try:
        with path.open("wb") as file:
            file.write(data)
    except OSError as error:
        raise explain(error, path) from error


def explain(error: OSError, path: Path) -> InputError:
    """Return the error a user can act on for a failed write to `path`."""
    if error.errno == errno.ENOSPC:
        return InputError(f"the disk is full while writing {path}: free some space, then run the same command again")
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return InputError(f"{path} cannot be written ({error.strerror}): choose a folder you may write to")
    return InputError(f"{path} cannot be written: {error.strerror or error}")


def check_folder(folder: Path) -> None:
    """Raise `InputError` unless files can be written into `folder`, which may be absent, and spoil nothing there.

    It must not lie in a bundle or in a checkpoint, nor be or lie below a link that leads nowhere.
    """
    _check_spoils_nothing(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"the output {folder} is a file: give the path of a folder")
    parent = next(p for p in folder.absolute().parents if p.exists())
    if not parent.is_dir():
        raise InputError(f"the output {folder} lies below {parent}, which is a file: give another path")
    for place in (parent, *([folder] if folder.is_dir() else [])):
        if not os.access(place, os.W_OK | os.X_OK):
            raise InputError(f"the output folder {place} is read-only: give a folder you may write to")


def check_file(path: Path) -> None:
    """Raise `InputError` unless a file can be written at `path`; it spoils nothing there, as with `check_folder`."""
    _check_spoils_nothing(path)
    if path.is_dir():
        raise InputError(f"the output {path} is a folder: give the path of a file")
    check_folder(path.absolute().parent)


def _check_spoils_nothing(path: Path) -> None:
    for place in (path, *path.parents):
        if place.is_symlink() and not place.exists():
            raise InputError(f"the output {path} leads to {place.readlink()}, which does not exist: make that folder, or delete the link")
    for place in path.resolve().parents:
        if (place / "model_index.json").is_file():
            bundle = (place / "manifest.json").is_file()
            where = "in the bundle, whose files are all in its manifest" if bundle else f"inside the checkpoint {place}"
            raise InputError(f"the output {path} lies {where}: give another path")


def sha256_file(path: Path) -> str:
    """Return the sha256 of a file's bytes. Raises `InputError` for what is no regular file."""
    check_regular(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def copy_tree(source: Path, target: Path, leave: Sequence[str] = (), *, link: bool = False) -> None:
    """Copy the files of a folder into another; with `link` as hard links where the file system has them.

    A bundle's files have no second name, since onnx refuses to read external data that has.
    """
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source)
        if not path.is_file() or name.parts[0] in leave:
            continue
        place = target / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        try:
            if not link:
                shutil.copy2(path, place)
                continue
            os.link(path, place)
        except OSError as error:
            if not link or error.errno == errno.ENOSPC:
                raise explain(error, place) from error
            shutil.copy2(path, place)


def sha256_json(value: object) -> str:
    """Return the sha256 of a value's canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def user_cache(name: str) -> Path:
    """The folder of ours by that name in the user's cache, which may not be there yet. Raises `InputError` for a user without a home."""
    folder = os.environ.get("XDG_CACHE_HOME") or (os.environ.get("LOCALAPPDATA") if os.name == "nt" else None)
    try:
        root = Path(folder) if folder and Path(folder).is_absolute() else Path.home() / ".cache"
    except RuntimeError as error:
        raise InputError("there is no home folder to keep a cache in: set XDG_CACHE_HOME") from error
    return root / "nemo-edge" / name


_LONGEST_PART = 255
"""Bytes of a file's or a folder's own name that file systems take."""
_LONGEST_NAME = 1000


def inside(name: str) -> bool:
    """Whether a name is one of a file below a folder, on any system: relative, in its shortest form, never upwards, and not too long."""
    parts = PurePosixPath(name).parts
    windows = PureWindowsPath(name)
    if "\0" in name or len(name) > _LONGEST_NAME or any(len(part.encode(errors="surrogatepass")) > _LONGEST_PART for part in parts):
        return False
    return bool(parts) and posixpath.normpath(name) == name and ".." not in parts and not windows.anchor and "\\" not in name


def _check_inside(name: str) -> str:
    if not inside(name):
        raise ValueError("it is no file below the folder")
    return name


Inside = Annotated[str, AfterValidator(_check_inside)]
"""Such a name, in what describes an engine: of a file of its bundle."""


def way_to(path: Path, folder: Path) -> Path:
    """Return the way to a file from a folder, as it may be handed on with the folder.

    Where it goes into a home folder that `folder` is not in, or by the name of this user or machine, it is the file's name alone.
    """
    path, folder = expanded(path).absolute(), expanded(folder).resolve()
    path = path.parent.resolve() / path.name
    way = Path(os.path.relpath(path, folder))
    home = _home_of(path)
    return Path(path.name) if (home and home != _home_of(folder)) or _own_names() & {*way.parts} else way


def _home_of(path: Path) -> Path | None:
    home = Path("~").expanduser()
    if path.is_relative_to(home):
        return home
    return Path(*path.parts[:3]) if len(path.parts) > 2 and path.parts[1] in _HOMES else None


def _own_names() -> set[str]:
    with suppress(OSError, KeyError, ImportError):  # a user without a name, as in some containers
        return {getpass.getuser(), platform.node()}
    return {platform.node()}


def checkpoint_hashes(path: str, fused: Mapping[str, Path] = MappingProxyType({}), clip_skip: int = 0) -> dict[str, str]:
    """Return the sha256 of each file that makes a checkpoint what it is: weights, configurations, vocabularies, and what is `fused`.

    `path` is a folder, a file (the original configuration beside it, of its name with .yaml, counts too), or a hub id, which is fetched
    into the local cache. `fused` are LoRAs by their names; a `clip_skip` other than 0 counts as a file. Raises `InputError` for anything
    else, and for a LoRA that is not there.
    """
    for lora in fused.values():
        check_lora(lora)
    skipped = {f"clip_skip {clip_skip}": sha256_json(clip_skip)} if clip_skip else {}
    return {**_own_hashes(path), **{name: sha256_file(lora) for name, lora in fused.items()}, **skipped}


def check_lora(path: Path) -> None:
    """Raise `InputError` for a LoRA that is no file, or not of safetensors by its name."""
    if not path.is_file():
        state = "is a folder: name the .safetensors file in it" if path.is_dir() else "does not exist"
        raise InputError(f"LoRA {path} {state}")
    if path.suffix not in WEIGHT_FILES:
        raise InputError(f"LoRA {path} is no .safetensors file: convert it, or leave it out of checkpoint.loras")


def _own_hashes(path: str) -> dict[str, str]:
    local = checkpoint_folder(path)
    if local.is_file():
        return {p.name: sha256_file(p) for p in dict.fromkeys((local, local.with_suffix(".yaml"))) if p.is_file()}
    return {p.relative_to(local).as_posix(): sha256_file(p) for p in opened_files(local)}


def checkpoint_folder(path: str) -> Path:
    """Return where a checkpoint lies on this machine; a hub id, of a revision (`owner/name@revision`) or of the main branch, is fetched
    (no pickles) unless it is in the cache.

    Of a model's folder in the hub's cache (`models--owner--name`) it is the snapshot of its main branch, or its only one. Raises
    `InputError` when there is nothing of that name, and for several snapshots of which none is the main branch's.
    """
    local = expanded(path)
    if local.exists():
        return _snapshot(local)
    check_letters(path, "checkpoint")
    name, at, revision = path.partition("@")
    if at and (not revision or ".." in revision):
        raise InputError(f"checkpoint {path}: {revision!r} is no revision: give a branch, a tag or a commit after the @, or leave both out")
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise InputError(f"checkpoint {path} does not exist: give a diffusers folder, a .safetensors file or a hub id (owner/name)")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=["*.json", "*.txt", "*.safetensors"]))
    except (HFValidationError, LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise InputError(f"checkpoint {path} does not exist here and cannot be fetched from the hub: {first_line(error)}") from error


def with_commit(path: str) -> str:
    """Return a hub id with the commit that it stands for here and now, `owner/name@commit`; any other checkpoint as it is.

    Raises `InputError` as `checkpoint_folder`.
    """
    if expanded(path).exists():
        return path
    folder = checkpoint_folder(path)
    return f"{path.partition('@')[0]}@{folder.name}" if folder.parent.name == "snapshots" else path


def names_in(folder: Path) -> list[str]:
    """Return the paths in a folder of all that is no folder, links among it, in their order."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_symlink() or not p.is_dir())


def number_of(text: str) -> int:
    """Return the number, of 1 to 9 digits and without a zero in front, that a text is, as a version's folder has it; 0 for any other."""
    return int(text) if re.fullmatch(r"[1-9][0-9]{0,8}", text) else 0


def weight_bytes(path: str) -> int:
    """Return the size of a checkpoint's weights, of those that are opened."""
    local = checkpoint_folder(path)
    files = opened_files(local) if local.is_dir() else [local]
    return sum(p.stat().st_size for p in files if p.suffix in (*WEIGHT_FILES, *PICKLE_FILES))


def _snapshot(local: Path) -> Path:
    """What a folder of the hub's cache holds; any other folder as it is."""
    if not local.is_dir() or (local / "model_index.json").is_file():
        return local
    root = local.parent if local.name == "snapshots" else local
    places = sorted(path for path in (root / "snapshots").iterdir() if path.is_dir()) if (root / "snapshots").is_dir() else []
    if not places:
        return local
    main = root / "refs" / "main"
    named = read_text(main, most=4096).strip() if main.is_file() else ""
    found = next((path for path in places if path.name == named), places[0] if len(places) == 1 else None)
    if found is None:
        raise InputError(
            f"checkpoint {local} holds {len(places)} snapshots and names none as its main branch's: give the folder of one, "
            + " or ".join(str(path) for path in places)
        )
    return found

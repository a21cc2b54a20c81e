"""Bad input of every kind: what a file may hold, what may stand in a file's place, and every place of the command line that takes one.

A fixed list, and seeded changes of good files; no test.
"""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

CONTENTS: Mapping[str, bytes] = {
    "empty": b"",
    "zeros": bytes(300),
    "noise": random.Random(0).randbytes(3000),
    "deep-lists": b"[" * 100_000,
    "deep-objects": b'{"schema_version":' * 60_000,
    "deep-tables": b"a = " + b"[" * 5000,
    "huge-integer": b'{"schema_version": ' + b"9" * 6000 + b"}",
    "surrogate": b'{"prompt": "\\ud800", "schema_version": "\\udc80"}',
    "raw-surrogate": b'["\xed\xa0\x80"]',
    "null": b"null",
    "number": b"17",
    "text": b'"text"',
    "list": b"[1, null, {}]",
    "object": b'{"schema_version": 3, "files": null, "model": [], "prompt": 3}',
    "nan": b'{"schema_version": NaN, "threshold": Infinity}',
    "cut": b'{"schema_version": 3, "files": {"a": "',
    "twice": b'{"files": {}, "files": 1}',
    "utf-16": '{"schema_version": 3}'.encode("utf-16"),
    "escapes": b'name = "\x1b]52;c;AAAA\x07"\n\xe2\x80\xae',
    "long-header": (1 << 62).to_bytes(8, "little") + b"{}",
    "deep-header": (60_000).to_bytes(8, "little") + b'{"a":' * 12_000,
    "page": b"<!doctype html><title>log in</title>",
}
"""What is in no file that anything here takes, by a name."""

PLACES: Mapping[str, Callable[[Path], str]] = {
    "missing": lambda folder: str(folder / "missing"),
    "folder": lambda folder: str(folder),
    "pipe": lambda folder: _made(folder / "pipe", os.mkfifo),
    "zero": lambda folder: "/dev/zero",
    "nothing": lambda folder: os.devnull,
    "dangling": lambda folder: _made(folder / "dangling", lambda path: Path(path).symlink_to("nowhere")),
    "loop": lambda folder: _made(folder / "loop", lambda path: Path(path).symlink_to(path)),
    "long-name": lambda folder: str(folder / ("n" * 300)),
    "long-path": lambda folder: str(folder) + "/n" * 3000,
    "below-a-file": lambda folder: str(Path(__file__) / "n"),
    "zero-byte": lambda folder: str(folder / "a\0b"),
    "no-user": lambda folder: "~nosuchuser/n",
    "surrogate": lambda folder: str(folder / "n\udc80"),
    "escape": lambda folder: str(folder / "n\x1b]52;c;AAAA\x07\u202e"),
    "no-path": lambda folder: "",
}
"""What may be given in a file's place: the path, made below a folder that is there and empty."""


def _made(path: Path, make: Callable[[Path], object]) -> str:
    make(path)
    return str(path)


SLOTS: Mapping[str, tuple[str, ...]] = {
    "init": ("init", "{bad}.safetensors", "-o", "{out}.toml"),
    "init-prompts": ("init", "{model}", "--prompts", "{bad}.csv", "-o", "{out}.toml"),
    "init-general": ("init", "{model}", "--general", "{bad}.jsonl", "-o", "{out}.toml"),
    "build": ("build", "{bad}.toml"),
    "build-neurons": ("build", "{recipe}", "--random-weights", "{model}", "--neurons", "{bad}.json"),
    "build-random": ("build", "{recipe}", "--random-weights", "{bad}/"),
    "calibrate": ("calibrate", "{bad}.safetensors", "{prompts}", "-o", "{out}"),
    "calibrate-prompts": ("calibrate", "{model}", "{bad}.txt", "-o", "{out}"),
    "calibrate-json": ("calibrate", "{model}", "{bad}.json", "-o", "{out}"),
    "calibrate-lora": ("calibrate", "{model}", "{prompts}", "-o", "{out}", "--lora", "{bad}.safetensors"),
    "detect": ("detect", "{model}", "{bad}.csv", "--statistics", "{statistics}", "-o", "{out}"),
    "detect-statistics": ("detect", "{model}", "{prompts}", "--statistics", "{bad}.safetensors", "-o", "{out}"),
    "detect-official": ("detect", "{model}", "{prompts}", "--statistics", "{bad}.pt", "-o", "{out}"),
    "detect-general": ("detect", "{model}", "{prompts}", "--statistics", "{statistics}", "--general", "{bad}.jsonl", "-o", "{out}"),
    "localize": ("localize", "{model}", "{bad}.tsv", "--statistics", "{statistics}", "-o", "{out}"),
    "harden-neurons": (
        *("harden", "{model}", "--neurons", "{bad}.json"),
        *("--prompts", "{prompts}", "--general", "{prompts}", "-o", "{out}"),
    ),
    "harden-recipe": (
        *("harden", "{model}", "--neurons", "{neurons}", "--prompts", "{prompts}", "--general", "{prompts}"),
        *("-o", "{out}", "--recipe", "{bad}.toml"),
    ),
    "export": ("export", "{bad}.safetensors", "-o", "{out}"),
    "export-pickle": ("export", "{bad}.ckpt", "-o", "{out}", "--allow-pickle"),
    "export-neurons": ("export", "{model}", "-o", "{out}", "--neurons", "{bad}.json"),
    "export-official": ("export", "{model}", "-o", "{out}", "--neurons", "{bad}.csv"),
    "rebake": ("rebake", "{bad}", "--neurons", "{neurons}"),
    "rebake-neurons": ("rebake", "{bundle}", "--neurons", "{bad}.csv"),
    "rebake-recipe": ("rebake", "{bundle}", "--neurons", "{neurons}", "--recipe", "{bad}.toml"),
    "compile": ("compile", "{bad}"),
    "bench": ("bench", "{bad}"),
    "bench-checkpoint": ("bench", "{bundle}", "--checkpoint", "{bad}.safetensors", "-o", "{out}"),
    "compare": ("compare", "{bundle}", "{bad}"),
    "compare-prompts": ("compare", "{bundle}", "{bundle}", "--prompts", "{bad}.txt"),
    "attack": ("attack", "{bad}.safetensors", "-o", "{out}", "--prompts", "{prompts}"),
    "attack-prompts": ("attack", "{bundle}", "-o", "{out}", "--prompts", "{bad}.csv"),
    "attack-controls": ("attack", "{bundle}", "-o", "{out}", "--prompts", "{prompts}", "--controls", "{bad}"),
    "attack-neurons": ("attack", "{model}", "-o", "{out}", "--prompts", "{prompts}", "--neurons", "{bad}.json"),
    "gate": ("gate", "{bundle}", "--recipe", "{bad}.toml"),
    "gate-bundle": ("gate", "{bad}", "--recipe", "{recipe}"),
    "report": ("report", "{bad}"),
    "verify": ("verify", "{bad}"),
    "verify-engine": ("verify", "{bad}.plan"),
    "verify-key": ("verify", "{bundle}", "--public-key", "{bad}.pem"),
    "verify-authority": ("verify", "{bundle}", "--authority", "{bad}.crt"),
    "sign": ("sign", "{bad}", "--key", "{key}"),
    "sign-key": ("sign", "{bundle}", "--key", "{bad}.pem"),
    "sign-certificate": ("sign", "{bundle}", "--key", "{key}", "--certificate", "{bad}.crt"),
    "revoke": ("revoke", "1" * 64, "--list", "{bad}.json", "--key", "{key}"),
    "revoke-bundle": ("revoke", "{bad}", "--list", "{out}", "--key", "{key}"),
    "generate": ("generate", "{bad}", "a pig", "-o", "{out}"),
    "generate-mask": ("generate", "{bundle}", "a pig", "-o", "{out}", "--mask", "{bad}.npy"),
    "generate-neurons": ("generate", "{bundle}", "a pig", "-o", "{out}", "--mask", "{bad}.json"),
    "inspect": ("inspect", "{bad}"),
    "inspect-file": ("inspect", "{bad}.safetensors"),
    "inspect-plan": ("inspect", "{bad}.plan"),
    "inspect-sidecar": ("inspect", "{bad}.json"),
    "ship": ("ship", "{bad}", "--to", "{out}"),
    "ship-key": ("ship", "{bundle}", "--to", "{out}", "--public-key", "{bad}.pem"),
    "kserve": ("kserve", "{bad}", "--name", "n", "--storage", "s3://b/r", "--image", "i"),
    "audit": ("audit", "http://127.0.0.1:1", "--prompts", "{bad}.json", "-o", "{out}"),
    "audit-general": ("audit", "http://127.0.0.1:1", "--prompts", "{prompts}", "--general", "{bad}.txt", "-o", "{out}"),
    "audit-vocabulary": ("audit", "http://127.0.0.1:1", "--prompts", "{prompts}", "--vocabulary", "{bad}", "-o", "{out}"),
    "clean": ("clean", "{bad}"),
    "doctor": ("doctor", "--model", "{bad}.safetensors"),
    "quantize": ("quantize", "{bad}", "-o", "{out}"),
    "quantize-ranges": ("quantize", "{bundle}", "-o", "{out}", "--ranges", "{bad}.json"),
    "quantize-general": ("quantize", "{bundle}", "-o", "{out}", "--general", "{bad}.txt"),
    "quantize-recipe": ("quantize", "{bundle}", "-o", "{out}", "--recipe", "{bad}.toml"),
}
"""Every place of the command line that takes a file or a folder. A file of `{bad}.toml` has this ending."""


def filled(slot: str, bad: Callable[[str], str], good: Mapping[str, object]) -> list[str]:
    """The arguments of a slot: `bad` makes the path of what is bad, given its ending."""

    def argument(text: str) -> str:
        before, mark, ending = text.partition("{bad}")
        return before + bad(ending) if mark else text.format(**good)

    return [argument(text) for text in SLOTS[slot]]


PIECES: tuple[bytes, ...] = (
    *(b"null", b"true", b"0", b"-1", b"1e999", b"NaN", b"9" * 30, b"9" * 400, b"9" * 6000, b'""', b'"x"', b'"\\ud800"', b'"\\u0000"'),
    *(b'"../../x"', b'"/dev/zero"', b"[]", b"{}", b"[[0]]", b'{"a": {}}', b"[" * 3000, b'{"a":' * 3000, b'"' + b"n" * 9000 + b'"'),
    *(b"'", b'"', b"\0", b"\xff\xfe", b"\xed\xa0\x80", b"\x1b]52;c;AAAA\x07", b"\xe2\x80\xae", b"\r", b"\n", b",", b";", b"\t", b"="),
)
"""What is put into a good file, or in the place of a word or a value of it."""

_WORD = re.compile(rb'"(?:[^"\\\n]|\\.)*"|[A-Za-z0-9_.+-]+')


class Edit(NamedTuple):
    """One thing that is done to a good file: places are counted on from its beginning, round and round."""

    way: str
    at: int
    to: int
    piece: bytes


def _value(good: bytes, edit: Edit) -> bytes:
    """A value of a JSON file, or of one of its lines, replaced whatever it holds; of another file a word."""
    start = good.rfind(b"\n", 0, edit.at % (len(good) + 1)) + 1
    for line in (good, good[start:].partition(b"\n")[0]):
        try:
            content = json.loads(line)
        except (ValueError, RecursionError):
            continue
        places = [*_places(content)]
        if places:
            parent, key = places[edit.to % len(places)]
            parent[key] = _MARK
            return good.replace(line, json.dumps(content).encode().replace(json.dumps(_MARK).encode(), edit.piece), 1)
    return _word(good, edit)


_MARK = "what is replaced"


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    """Where each value stands in a JSON value: what holds it, and its key or number there."""
    found = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in found:
        yield content, key
        yield from _places(value)


def _word(good: bytes, edit: Edit) -> bytes:
    words = [*_WORD.finditer(good)]
    if not words:
        return good + edit.piece
    word = words[edit.to % len(words)]
    return good[: word.start()] + edit.piece + good[word.end() :]


def _flipped(good: bytes, edit: Edit) -> bytes:
    at = edit.at % max(1, len(good))
    return good[:at] + bytes(byte ^ (1 << edit.to % 8) for byte in good[at : at + 1]) + good[at + 1 :]


def _between(good: bytes, edit: Edit) -> tuple[int, int]:
    at, to = sorted(place % (len(good) + 1) for place in (edit.at, edit.to))
    return at, to


def _spliced(pieces: Callable[[bytes, int, int, bytes], bytes]) -> Callable[[bytes, Edit], bytes]:
    return lambda good, edit: pieces(good, *_between(good, edit), edit.piece)


WAYS: Mapping[str, Callable[[bytes, Edit], bytes]] = {
    "word": _word,
    "value": _value,
    "bit": _flipped,
    "cut": _spliced(lambda good, at, to, piece: good[:at]),
    "out": _spliced(lambda good, at, to, piece: good[:at] + good[to:]),
    "again": _spliced(lambda good, at, to, piece: good[:to] + good[at:]),
    "turned": _spliced(lambda good, at, to, piece: good[:at] + good[at:to][::-1] + good[to:]),
    "in": _spliced(lambda good, at, to, piece: good[:at] + piece + good[at:]),
}


EDIT_BYTES = 8


def edits(drawn: bytes) -> list[Edit]:
    """What is done by bytes that somebody draws, eight for one thing; fewer that are left over do nothing."""
    found = []
    for start in range(0, len(drawn) - EDIT_BYTES + 1, EDIT_BYTES):
        way, piece, *places = drawn[start : start + EDIT_BYTES]
        at, to = (int.from_bytes(bytes(places[half : half + 3])) for half in (0, 3))
        found.append(Edit([*WAYS][way % len(WAYS)], at, to, PIECES[piece % len(PIECES)]))
    return found


def edited(good: bytes, edits: Iterable[Edit]) -> bytes:
    """A good file with some things done to it, one after the other."""
    for edit in edits:
        good = WAYS[edit.way](good, edit)
    return good


def changed(good: bytes, seed: int) -> bytes:
    """A good file with one thing wrong."""
    return edited(good, edits(random.Random(seed).randbytes(EDIT_BYTES)))

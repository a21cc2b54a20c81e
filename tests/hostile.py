"""Bad input of every kind: what a file may hold, what may stand in a file's place, and every place of the command line that takes one.

A fixed list, and seeded changes of good files; no test.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping
from pathlib import Path

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


def changed(good: bytes, seed: int) -> bytes:
    """A good file with one thing wrong: cut, a piece doubled or turned over, a byte set, a number or a word replaced."""
    chance = random.Random(seed)
    at, to = sorted(chance.randrange(len(good) + 1) for _ in range(2))
    ways: tuple[Callable[[], bytes], ...] = (
        lambda: good[:at],
        lambda: good[:at] + good[to:],
        lambda: good[:to] + good[at:],
        lambda: good[:at] + chance.randbytes(1 + chance.randrange(4)) + good[at + 1 :],
        lambda: good[:at] + chance.choice(list(CONTENTS.values()))[:2000] + good[at:],
        lambda: good.replace(b"1", b"9" * chance.choice((5, 30, 5000)), 1 + chance.randrange(3)),
        lambda: good.replace(b'"', chance.choice((b"'", b'""', b"\\ud800", b"\0", b"[[")), 1 + chance.randrange(9)),
    )
    return chance.choice(ways)()

"""The report's pictures: thumbnails made from full-size pictures, as many and as good as one page can hold, and read back.

A folder of pictures holds `<prompt>/training.*`, `<prompt>/<which>-<seed>.*` and `general/<prompt>-<which>-<seed>.*`, where
`which` is `before`, a variant, or `random`. Knows files and sizes; one picture is in memory at a time.
"""

from __future__ import annotations

__all__ = ["PAGE_BYTES", "Gallery", "Order", "Views", "open_gallery", "store_pictures", "worst_first"]

import base64
import io
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isnan
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from nemo_edge.bundle.manifest import staging
from nemo_edge.measure.mitigation import Measurement, PromptMitigation
from nemo_edge.system.errors import InputError

PAGE_BYTES = 10_000_000
"""Highest size of the page with everything in it."""

_BUDGET = 7_300_000  # of the page for pictures, in base64; the rest is for text and plots
_TAG_BYTES = 260  # of HTML around each picture, and of what is told of it
_SAMPLE = 24
_TYPES = {".webp": "image/webp", ".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}
_GENERAL, _TRAINING = "general", "training"

Views = Mapping[str, Sequence[str]]
"""The pictures of one prompt as data URIs: `which` → one for each seed shown."""


class Order(NamedTuple):
    """Which prompts are shown, the most telling first: places among the examined prompts and among the general ones."""

    prompts: Sequence[int]
    general: Sequence[int]


class _Rung(NamedTuple):
    """One way to make thumbnails. Pictures up to `lossless` pixels are kept exactly."""

    seeds: int
    general: int
    edge: int
    quality: int
    lossless: int = 0


_LADDER = (
    _Rung(10, 48, 256, 80, lossless=128),
    _Rung(10, 48, 224, 80),
    _Rung(10, 32, 192, 72),
    _Rung(8, 32, 176, 70),
    _Rung(6, 24, 176, 66),
    _Rung(4, 24, 160, 62),
    _Rung(4, 16, 128, 55),
    _Rung(3, 12, 112, 50),
    _Rung(2, 12, 96, 45),
    _Rung(1, 8, 96, 40),
)


@dataclass(frozen=True)
class Gallery:
    """The pictures that a report shows."""

    training: Mapping[int, str]
    prompts: Mapping[int, Views]
    general: Mapping[int, Views]


def worst_first(measurement: Measurement) -> Order:
    """Return the prompts that leaked or were found memorized, what is left of the memory most first; general prompts by drift."""
    variants = measurement.variants
    views = list(zip(*(v.mitigations for v in variants), strict=True))
    telling = [i for i, judged in enumerate(views) if any(m.neurons or m.before.returned or m.after.returned for m in judged)]
    drifts = list(zip(*(v.general.per_prompt for v in variants), strict=True))
    return Order(
        sorted(telling, key=lambda i: max(_badness(m) for m in views[i]), reverse=True),
        sorted(range(len(drifts)), key=lambda i: max(_number(d) for d in drifts[i]), reverse=True),
    )


def _badness(judged: PromptMitigation) -> tuple[float, float, float]:
    return judged.after.returned, _number(judged.score_after), judged.before.returned


def _number(value: float) -> float:
    return inf if isnan(value) else value


def store_pictures(source: Path, target: Path, order: Order | None = None) -> None:
    """Fill `target` with thumbnails of the pictures in `source`, so that a page with all of them stays below `PAGE_BYTES`.

    Nothing is enlarged. Where there are too many, fewer seeds are kept, then smaller and coarser pictures, and at last only
    the first prompts of `order` (that of their numbers where it is not given). Raises `InputError` for a picture that cannot
    be read.
    """
    kept = order or _all(source)
    with staging(target) as staged:
        for rung in _LADDER:
            last = rung is _LADDER[-1]
            jobs = [job for jobs in _jobs(source, kept, rung) for job in jobs]
            if not last and _estimate(jobs, rung) > _BUDGET * 0.97:
                continue
            if _store(source, staged, kept, rung, last) or last:
                break
        if target.exists():
            shutil.rmtree(target)
        staged.chmod(0o755)
        os.replace(staged, target)


def _all(source: Path) -> Order:
    places = sorted(int(p.name) for p in source.glob("[0-9]*") if p.is_dir() and p.name.isdecimal())
    general = {int(which[0]) for p in (source / _GENERAL).glob("*-*-*") if (which := p.stem.split("-"))[0].isdecimal()}
    return Order(places, sorted(general))


def _jobs(source: Path, order: Order, rung: _Rung) -> Iterator[list[Path]]:
    """The pictures that a rung shows, a list for each prompt: the general prompts first."""
    for place in order.general[: rung.general]:
        yield [p for p in _pictures(source / _GENERAL, f"{place:03d}-*-*") if _seed(p) < rung.seeds]
    for place in order.prompts:
        folder = source / f"{place:03d}"
        yield [*_pictures(folder, f"{_TRAINING}.*"), *(p for p in _pictures(folder, "*-*") if _seed(p) < rung.seeds)]


def _pictures(folder: Path, pattern: str) -> list[Path]:
    return sorted(p for p in folder.glob(pattern) if p.suffix.lower() in _TYPES)


def _seed(path: Path) -> int:
    seed = path.stem.rpartition("-")[2]
    return int(seed) if seed.isdecimal() else 0


def _estimate(pictures: Sequence[Path], rung: _Rung) -> float:
    """The size of all pictures on the page, from some of them."""
    step = max(1, len(pictures) // _SAMPLE)
    sizes = [_size_bytes(path, _thumbnail(path, rung)) for path in pictures[step // 2 :: step]]
    return sum(sizes) / len(sizes) * len(pictures) if sizes else 0.0


def _size_bytes(path: Path, picture: bytes) -> int:
    """What a picture takes of the page: a training picture is there twice, once beside the pictures that are nearest to it."""
    return (len(picture) * 4 // 3 + _TAG_BYTES) * (2 if path.stem == _TRAINING else 1)


def _store(source: Path, target: Path, order: Order, rung: _Rung, partly: bool) -> bool:
    """Write the thumbnails of one rung, prompt by prompt; False when they are too large for the page, and those that fit are kept
    only if `partly`."""
    size = 0
    for jobs in _jobs(source, order, rung):
        made = {path: _thumbnail(path, rung) for path in jobs}
        size += sum(_size_bytes(path, picture) for path, picture in made.items())
        if size > _BUDGET:
            if not partly:
                shutil.rmtree(target)
                target.mkdir()
            return False
        for path, picture in made.items():
            place = (target / path.relative_to(source)).with_suffix(".webp")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(picture)
    return True


def _thumbnail(path: Path, rung: _Rung) -> bytes:
    try:
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
    except OSError as error:
        raise InputError(f"the picture {path} cannot be read: run the measurement again") from error
    small = max(picture.size) <= rung.lossless
    picture.thumbnail((rung.edge, rung.edge), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "WEBP", lossless=small, quality=80 if small else rung.quality, method=4)
    return file.getvalue()


def open_gallery(folder: Path) -> Gallery:
    """Read the pictures of a report; a folder that is absent holds none."""
    training, prompts = {}, {}
    for place in sorted(p for p in folder.glob("[0-9]*") if p.is_dir() and p.name.isdecimal()):
        views = _views(_pictures(place, "*-*"))
        if views:
            prompts[int(place.name)] = views
        for path in _pictures(place, f"{_TRAINING}.*")[:1]:
            training[int(place.name)] = _data(path)
    groups: dict[int, list[Path]] = {}
    for path in _pictures(folder / _GENERAL, "*-*-*"):
        number = path.stem.partition("-")[0]
        if number.isdecimal():
            groups.setdefault(int(number), []).append(path)
    return Gallery(training, prompts, {place: _views(paths) for place, paths in groups.items()})


def _views(paths: Sequence[Path]) -> Views:
    views: dict[str, list[str]] = {}
    for path in sorted(paths, key=lambda p: (p.stem.split("-")[:-1], _seed(p))):
        views.setdefault(path.stem.split("-")[-2], []).append(_data(path))
    return views


def _data(path: Path) -> str:
    return f"data:{_TYPES[path.suffix.lower()]};base64,{base64.b64encode(path.read_bytes()).decode()}"

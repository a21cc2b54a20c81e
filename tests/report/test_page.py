"""The page is one file that holds its pictures, and shows prompts as text."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from PIL import Image
from test_gates import localization, measurement

from nemo_edge.bundle import GateResult
from nemo_edge.report import write_report

PROMPT = "<script>alert(1)</script> & co"


class Sources(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.images: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.images += [value or "" for name, value in attrs if tag == "img" and name == "src"]


def written(folder: Path, passed: bool) -> str:
    pictures = folder / "pictures"
    for name in ("000/training", "000/before-00", "000/baked-00", "000/random-00", "general/000-before", "general/000-baked"):
        path = pictures / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)
    found = localization().model_copy(update={"prompt": PROMPT})
    gates = [GateResult(name="replication.baked", limit=0.1, value=0 if passed else 1, passed=passed)]
    write_report(folder / "report", "toy", measurement(), [found], gates, [PROMPT], pictures, {"nemo-edge": "0"})
    return (folder / "report" / "index.html").read_text()


def test_the_page_holds_every_picture_and_refers_to_nothing_else(tmp_path: Path) -> None:
    page = written(tmp_path, passed=True)
    sources = Sources()
    sources.feed(page)
    assert len(sources.images) == 6
    assert all(s.startswith("data:image/png;base64,") for s in sources.images)
    assert not re.search(r"(src|href)=[\"']?(https?:|//)", page)


def test_prompts_are_text(tmp_path: Path) -> None:
    page = written(tmp_path, passed=True)
    sources = Sources()
    sources.feed(page)
    assert "script" not in sources.tags
    assert "&lt;script&gt;" in page


def test_the_verdict_is_in_plain_words_and_in_json(tmp_path: Path) -> None:
    assert "must not be shipped" in written(tmp_path / "bad", passed=False)
    assert "can be shipped" in written(tmp_path / "good", passed=True)
    report = json.loads((tmp_path / "good" / "report" / "report.json").read_text())
    assert report["passed"] is True
    assert report["localizations"][0]["refined"] == 1

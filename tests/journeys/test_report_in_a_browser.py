"""The page in a real browser: whole at every width, light and dark, readable on a phone, and on paper nothing is cut.

Two reports: one of hostile and long texts, and one of the shape of the demo's.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from measure.attacks.test_base import level_of
from report.test_evidence import evidence, latency, near, policies, recipe, save_pictures
from report.test_levels import campaign
from report.test_page import HOSTILE

from nemo_edge.bundle.manifest import GateResult
from nemo_edge.recipe.authorship import ReportSettings
from nemo_edge.recipe.settings import GateSettings
from nemo_edge.report.evidence import Evidence
from nemo_edge.report.folder import write_report
from nemo_edge.report.thumbnails import store_pictures

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MOST_PAGES = 14
PROMPTS, SEEDS, GENERAL = 16, 10, 16
A4 = 186
"""Millimetres between the margins of the printed page."""
CUT = """[...document.querySelectorAll('table, svg, img, code, p, li, figure, dl')].filter(e => {
  const box = e.getBoundingClientRect();
  return box.width > 1 && getComputedStyle(e).display !== 'none' && !e.closest('.unseen') && box.right > innerWidth + 1;
}).map(e => e.outerHTML.slice(0, 120))"""


def gates() -> tuple[GateResult, ...]:
    """Two variants of every gate, as a bundle of both has them, with the longest of what they say."""
    names = [f"{name}.{variant}" for variant in ("baked", "masked") for name in GateSettings.model_fields][:18]
    detail = "of 16 examined prompts, 10 pictures each: 0 of 10 means at most 26 % of a prompt's pictures"
    return tuple(GateResult(name=name, limit=0.7038, value=0.152, passed=True, detail=detail) for name in names)


def like_the_demo(folder: Path) -> Evidence:
    """16 prompts of 10 seeds, of which both variants draw the same; 16 general prompts; times, policies and an attack."""
    prompts = tuple(f"saxophone falafel number {place}" for place in range(PROMPTS))
    made = evidence(
        prompts, gates=gates(), latency=latency(), policies=policies(), attack=campaign(level_of(4, 0, attack="text"), level_of(4, 4))
    )
    hashes = {f"{group} · file number {place}": "0123456789abcdef" * 4 for group in ("Checkpoint", "Input") for place in range(15)}
    save_pictures(folder / "full", PROMPTS, SEEDS, edge=24, general=GENERAL)
    for path in (folder / "full").rglob("*masked-*"):
        shutil.copy(path.with_name(path.name.replace("masked", "baked")), path)
    store_pictures(folder / "full", folder / "report" / "pictures")
    measured = near(made.measurement, before=(0.1,) * SEEDS, after=tuple(0.4 + seed / 50 for seed in range(SEEDS)))
    drifts = tuple(0.01 for _ in range(GENERAL))
    variants = tuple(v.model_copy(update={"general": v.general.model_copy(update={"per_prompt": drifts})}) for v in measured.variants)
    judged = [v.model_copy(update={"mitigations": tuple(m.model_copy(update={"seeds": SEEDS}) for m in v.mitigations)}) for v in variants]
    general = tuple(f"a picture of thing {place}" for place in range(GENERAL))
    measured = measured.model_copy(update={"variants": tuple(judged), "general_prompts": general})
    made = replace(made, measurement=measured, facts={**hashes, "Weights": "ab" * 32, "Build key": "cd" * 32, "Neurons": "ef" * 32})
    return replace(made, recipe=recipe(report=ReportSettings(author="Ada Lovelace", organisation="Engines")))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on this machine")
    playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
    with playwright.sync_playwright() as running:
        arguments = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        opened = running.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    prompts = ("a_prompt_without_any_space_" * 12, HOSTILE, "third")
    facts = {"Build key": "0123456789abcdef" * 4, "Checkpoint · unet": "ab", "Recipe file": f"{'long_' * 40}.toml"}
    made = evidence(prompts=prompts, latency=latency(), policies=policies(), facts=facts)
    made = replace(made, measurement=near(made.measurement), recipe=recipe(report=ReportSettings(author="A" * 200)))
    save_pictures(folder / "full", seeds=4, edge=32)
    store_pictures(folder / "full", folder / "report" / "pictures")
    write_report(folder / "report", made)
    return folder / "report" / "index.html"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    write_report(folder / "report", like_the_demo(folder))
    return folder / "report" / "index.html"


@pytest.fixture(scope="module")
def axe() -> str:
    found = find_spec("axe_playwright_python")
    if found is None or found.origin is None:
        pytest.skip("the package axe-playwright-python, which holds axe.min.js, is not installed")
    return Path(found.origin).with_name("axe.min.js").read_text(encoding="utf-8")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 768, 1280])
def test_a_browser_shows_it_whole_and_to_everybody(browser: Any, hostile: Path, axe: str, width: int, scheme: str) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("requestfailed", lambda request: problems.append(request.url[:80]))
    page.on("request", lambda request: problems.append(request.url) if request.url.startswith("http") else None)
    page.goto(hostile.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    pictures = page.evaluate(
        "Promise.all([...document.images].map(i => i.decode().then(() => i.complete && i.naturalWidth > 0, () => false)))"
    )
    assert pictures
    assert all(pictures)
    assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
    page.evaluate(axe)
    found = page.evaluate("axe.run({resultTypes: ['violations']})")["violations"]
    assert [f"{v['id']}: {v['nodes'][0]['html'][:200]}" for v in found if v["impact"] in ("serious", "critical")] == []
    assert problems == []
    page.close()


@pytest.mark.parametrize("width", [390, 768, 1280])
def test_the_first_screen_says_what_is_protected_against_whom(browser: Any, demo: Path, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": {390: 844, 768: 1024, 1280: 900}[width]})
    page.goto(demo.as_uri())
    claim = page.locator(".claim").bounding_box()
    assert claim["y"] + claim["height"] <= page.viewport_size["height"]
    seen = page.evaluate("[...document.querySelectorAll('.levels li')].filter(e => e.getBoundingClientRect().bottom <= innerHeight).length")
    assert seen == 3 if width > 390 else seen >= 1
    if width == 1280:
        lights = page.evaluate("[...document.querySelectorAll('.lights li')].map(e => e.getBoundingClientRect().bottom <= innerHeight)")
        assert lights == [True] * 4
    page.close()


def test_the_limits_of_the_gates_are_readable_on_a_phone(browser: Any, demo: Path) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(demo.as_uri())
    rows = page.evaluate(
        """[...document.querySelectorAll('.gates tbody tr')].map(row => {
          const cell = row.querySelector('.limit'), box = cell.getBoundingClientRect();
          const region = row.closest('.scroll').getBoundingClientRect();
          const told = getComputedStyle(cell, '::before').content;
          return [cell.textContent, told, box.width > 0 && box.left >= region.left && box.right <= Math.min(innerWidth, region.right)];
        })"""
    )
    assert len(rows) == len(gates())
    assert all(row == ["0.704", '"limit "', True] for row in rows), rows[0]
    assert page.evaluate("(e => e.scrollWidth <= e.clientWidth)(document.querySelector('#gates .scroll'))")
    page.close()


def test_what_a_picture_is_nearest_to_is_drawn_below_it(browser: Any, demo: Path) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(demo.as_uri())
    cells = page.locator(".card .near")
    assert cells.count() == PROMPTS * SEEDS  # both variants draw the same, so that there is one row for the two
    for place in (0, SEEDS - 1):
        picture, training = (cells.nth(place).locator(name).bounding_box() for name in ("img", "svg"))
        assert training["y"] >= picture["y"] + picture["height"]
        assert training["width"] > 20
        cells.nth(place).scroll_into_view_if_needed()
        shown = cells.nth(place).locator("svg").screenshot()
        assert len(shown) > 400  # of noise; an empty box is smaller
    page.close()


def test_on_paper_it_is_short(browser: Any, demo: Path, tmp_path: Path) -> None:
    page = browser.new_page()
    page.goto(demo.as_uri())
    page.pdf(path=tmp_path / "report.pdf", prefer_css_page_size=True)
    pages = re.findall(rb"/Type\s*/Page\b", (tmp_path / "report.pdf").read_bytes())
    assert 5 < len(pages) <= MOST_PAGES
    page.close()


@pytest.mark.parametrize("name", ["demo", "hostile"])
def test_on_paper_nothing_is_cut(browser: Any, request: pytest.FixtureRequest, name: str) -> None:
    page = browser.new_page(viewport={"width": round(A4 / 25.4 * 96), "height": 1000})
    page.goto(request.getfixturevalue(name).as_uri())
    page.emulate_media(media="print")
    assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
    assert page.evaluate(CUT) == []
    kept = page.evaluate("[...document.querySelectorAll('.card, tr, .plot, .pair')].map(e => getComputedStyle(e).breakInside)")
    assert set(kept) == {"avoid"}
    page.close()

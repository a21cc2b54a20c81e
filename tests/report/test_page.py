"""The page is one file that needs nothing else, shows prompts as text, and says what was measured."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

from nemo_edge.bundle.manifest import GateResult
from nemo_edge.report._page import page_html
from nemo_edge.report.evidence import Evidence
from nemo_edge.report.folder import write_report
from nemo_edge.report.thumbnails import Gallery, store_pictures
from report.test_evidence import evidence, policies, save_pictures, shown

HOSTILE = '<script>alert(1)</script> & "co" \'\x00 \u202e $x$ {{ 7 * 7 }}'


class Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.images: list[dict[str, str | None]] = []
        self.tags: set[str] = set()
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.images += [dict(attrs)] if tag == "img" else []
        self.ids += [value or "" for name, value in attrs if name == "id"]


def parsed(page: str) -> Elements:
    elements = Elements()
    elements.feed(page)
    return elements


def written(folder: Path, made: Evidence) -> str:
    save_pictures(folder / "full", seeds=4, edge=32)
    store_pictures(folder / "full", folder / "report" / "pictures")
    write_report(folder / "report", made)
    return (folder / "report" / "index.html").read_text()


def test_the_page_holds_every_picture_and_refers_to_nothing_else(tmp_path: Path) -> None:
    page = written(tmp_path, evidence())
    elements = parsed(page)
    assert len(elements.images) == 3 * (1 + 4 * 4) + 2 * 3 * 2
    assert all((image["src"] or "").startswith("data:image/webp;base64,") and image["alt"] for image in elements.images)
    assert not re.search(r"(src|href)=[\"']?(https?:|//)|@import|url\((?!#)", page)
    assert len(set(elements.ids)) == len(elements.ids)


def test_prompts_are_text(tmp_path: Path) -> None:
    page = written(tmp_path, evidence(prompts=(HOSTILE, "second", "third"), facts={HOSTILE: HOSTILE}))
    assert "script" not in parsed(page).tags
    assert "&lt;script&gt;" in page
    assert not {"\x00", "\u202e"} & set(page)
    assert "{{ 7 * 7 }}" in page


def test_the_verdict_is_in_plain_words() -> None:
    nothing = Gallery({}, {}, {})
    failed = GateResult(name="replication.baked", limit=0.1, value=1, passed=False)
    assert "must not be shipped" in page_html(replace(evidence(), passed=False, gates=(failed,)), nothing)
    page = page_html(evidence(latency=None), nothing)
    bound = "at most 53 % of a prompt&#39;s, with 95 % confidence"
    assert "No gate failed, 1 had nothing to judge" in page
    assert f"None of the 3 examined prompts gives back a known training picture, in any of 12 pictures ({bound})." in page
    assert "can be shipped" not in page
    assert "3 of 3 examined prompts gave back a known training picture, in 12 of 12 pictures" in page
    assert "No times were taken" in page
    assert "The report holds no pictures" not in page_html(evidence(memorized=False), nothing)
    assert '<td class="n">0 of 4<br><span class="soft">at most 53 %</span></td>' in page
    assert '<td class="n bad">4 of 4</td>' in page
    assert "0 of 4 general prompts (0 %) lie above τ themselves" in page


def test_a_page_of_what_was_not_measured_is_neither_green_nor_red() -> None:
    def hero(made: Evidence) -> str:
        page = page_html(made, Gallery({}, {}, {}))
        found = re.search(r'<section id="verdict" class="hero (\w+)">.*?aria-hidden="true">(.)<', page, re.DOTALL)
        assert found is not None
        return " ".join(found.groups())

    assert hero(evidence()) == "good ✓"
    assert hero(evidence(training=False)) == "open –"
    assert hero(replace(evidence(), passed=False)) == "bad ✕"


def test_the_policies_are_told_where_there_are_any() -> None:
    nothing = Gallery({}, {}, {})
    page = re.sub(r"\s+", " ", page_html(evidence(policies=policies()), nothing))
    assert "from a cosine of" in page
    assert "100 % of 2 paraphrases that are memorized too triggered, and 0 % of 5 general prompts." in page
    assert '<tr><td>first</td><td class="n">3</td><td class="n">5</td></tr>' in page
    assert "can be asked to silence" not in page_html(evidence(), nothing)


def test_the_reading_that_counted_and_copies_of_parts_are_shown(tmp_path: Path) -> None:
    found = evidence()
    views = {
        "before": shown(4, reading="squashed", local_copies=4, local_distance=0.01),
        "after": shown(0, reading="whole", local_copies=3),
    }
    judged = tuple(m.model_copy(update=views) for m in found.measurement.variants[0].mitigations)
    variants = tuple(v.model_copy(update={"mitigations": judged}) for v in found.measurement.variants)
    changes = {"variants": variants, "local_threshold": 0.61, "local_pairs": 12}
    page = written(tmp_path, replace(found, measurement=found.measurement.model_copy(update=changes)))
    assert "<figcaption>training picture, squashed</figcaption>" in page
    assert "(squashed) · windowed 0.01" in page
    assert "0 of 4 copies (at most 53 %), 3 with a part of it" in page  # the bound is that of the copies
    assert "nearer than 0.61 (windowed distance, over places and sizes; from 12 unrelated pairs)" in page
    plain = written(tmp_path, evidence())
    assert "windowed" not in plain
    assert "<figcaption>training picture, " not in plain


def test_copies_of_other_pictures_have_their_bound_where_the_own_is_not_known(tmp_path: Path) -> None:
    found = evidence()
    judged = tuple(m.model_copy(update={"after": shown(None, others=1)}) for m in found.measurement.variants[0].mitigations)
    variants = tuple(v.model_copy(update={"mitigations": judged}) for v in found.measurement.variants)
    page = written(tmp_path, replace(found, measurement=found.measurement.model_copy(update={"variants": variants})))
    assert "1 of 4 copies of another picture (at most 76 %)" in page
    assert '<td class="n bad">– + 1 of 4<br><span class="soft">at most 76 %</span></td>' in page


def test_captions_say_how_many_seeds_are_shown(tmp_path: Path) -> None:
    page = written(tmp_path, evidence())
    assert "4 of 4 seeds shown" in page
    assert "2 seeds of 2 shown" in page

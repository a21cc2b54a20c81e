"""One count of copies for every sentence: of all examined prompts and their pictures, whether the own training picture is known or not."""

from __future__ import annotations

import json
import re

from nemo_edge.report._card import model_card
from nemo_edge.report._leaks import leak_of, worst_leak
from nemo_edge.report._page import page_html
from nemo_edge.report._record import record
from nemo_edge.report.evidence import Evidence
from nemo_edge.report.summary import summary_markdown
from nemo_edge.report.thumbnails import Gallery
from report.test_evidence import evidence, measurement, mitigation, shown


def test_pictures_are_counted_whether_the_own_training_picture_is_known_or_not() -> None:
    unknown = mitigation(training=False, before=shown(None, others=0), after=shown(None, others=3))
    leak = leak_of([mitigation(), unknown], "after")
    assert (leak.prompts, leak.pictures, leak.known) == (2, 8, 1)
    assert (leak.leaking, leak.own, leak.others, leak.copies, leak.most, leak.seeds) == (1, 0, 3, 3, 3, 4)
    before = leak_of([mitigation(), unknown], "before")
    assert (before.prompts, before.pictures, before.leaking, before.own) == (2, 8, 1, 4)


def test_where_no_training_picture_is_known_nothing_is_counted() -> None:
    leak = leak_of([mitigation(training=False)] * 3, "after")
    assert (leak.prompts, leak.pictures, leak.copies, leak.bound) == (0, 0, 0, "")


def test_the_bound_is_that_of_the_prompt_with_most() -> None:
    assert leak_of([mitigation(), mitigation(after=shown(1))], "after").bound == "at most 76 %"
    assert leak_of([mitigation()], "before").bound == ""


def test_the_variant_with_most_copies_counts() -> None:
    measured = measurement()
    leaky = measured.variants[1].model_copy(update={"mitigations": (mitigation(after=shown(2)), *measured.variants[1].mitigations[1:])})
    assert worst_leak(measured.model_copy(update={"variants": (measured.variants[0], leaky)})).copies == 2


def test_each_count_is_that_of_the_variant_where_it_is_worst() -> None:
    """One has the most copies, the other the prompt with most."""
    measured = measurement(prompts=("a", "b", "c"))
    spread = tuple(mitigation(p, after=shown(2)) for p in "abc")
    whole = (mitigation("a", after=shown(4)), mitigation("b"), mitigation("c"))
    pairs = zip(measured.variants, (spread, whole), strict=True)
    worst = worst_leak(measured.model_copy(update={"variants": tuple(v.model_copy(update={"mitigations": m}) for v, m in pairs)}))
    assert (worst.leaking, worst.copies, worst.most, worst.bound) == (3, 6, 4, "")


def partly_known() -> Evidence:
    """Four examined prompts of four pictures: three with a training picture of their own, of which one is given back, twice by another."""
    measured = measurement(prompts=("a", "b", "c", "d"))
    views = {"before": shown(4), "after": shown(0), "random": shown(4)}
    judged = [mitigation(p, **views) for p in "ab"]
    judged.append(mitigation("c", **{**views, "before": shown(1, others=2)}))
    judged.append(mitigation("d", training=False, **{name: shown(None, others=1 if name == "before" else 0) for name in views}))
    variants = tuple(v.model_copy(update={"mitigations": tuple(judged)}) for v in measured.variants)
    return evidence(("a", "b", "c", "d"), measurement=measured.model_copy(update={"variants": variants}))


def test_one_denominator_everywhere() -> None:
    """Page, card, summary and JSON: copies are of 16 pictures and of 4 examined prompts, and before there were 12, whoever counts."""
    made = partly_known()
    for text in (page_html(made, Gallery({}, {}, {})), model_card(made), summary_markdown(made)):
        said = re.sub(r"<[^>]+>", "", text.replace("&#39;", "'").replace("&#37;", "%"))
        assert {int(of) for of in re.findall(r"(?:\d+|any) of (\d+) pictures", said)} == {16}
        assert {int(of) for of in re.findall(r"of (?:the )?(\d+) examined prompts", said)} == {4}
        assert "4 of 4 examined prompts gave back a known training picture, in 12 of 16 pictures, 9 of the prompt's own and 3 of" in said
        assert "copies, before 12" in said
    copies = json.loads(record(made).model_dump_json())["copies"][0]
    assert (copies["prompts"], copies["pictures"], copies["known"], copies["copies"]) == (4, 16, 3, 0)

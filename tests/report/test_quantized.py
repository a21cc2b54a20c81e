"""What was quantized, as the page, the card and the JSON have it."""

from __future__ import annotations

import re
from pathlib import Path

from nemo_edge.export.quantization.record import ESTIMATED, RECORD, Origin, Quantized, Rounded
from nemo_edge.recipe.quantization import QuantizationSettings
from nemo_edge.report._card import model_card
from nemo_edge.report._page import page_html
from nemo_edge.report._quantized import kept_of, quantized_of
from nemo_edge.report._record import record
from nemo_edge.report.thumbnails import Gallery
from report.test_evidence import evidence

HOSTILE = "<b>it</b> | is"
KEPT = {
    "conv_in": "conv_in is sensitive",
    **{f"down_blocks.{n}.to_v": "its neurons can be silenced" for n in range(5)},
    "mid.a": f"{ESTIMATED} 0.31",
    "mid.b": f"{ESTIMATED} 0.42",
}
RECORDED = Quantized(
    settings=QuantizationSettings(error=0.25),
    modules={"mid.c": Rounded(weight=0.01), "mid.d": Rounded(weight=0.01, input=0.02)},
    kept=KEPT,
    errors={"unet": 0.042},
    integers={"unet": 0.9063},
    sizes_bytes={"unet": (18_600_000, 5_900_000)},
    ranges=Origin(prompts=16, steps=10, version="1.2", file=False),
)


def test_its_rows_say_what_became_of_the_files() -> None:
    rows = dict(quantized_of(RECORDED))
    assert rows["Scheme"] == "int8: weights and activations in 8-bit integers"
    assert rows["Modules"] == "2 quantized, 8 in float32"
    assert rows["Files of unet"] == "18.6 → 5.9 MB (32 %)"
    assert rows["What unet says"].startswith("differs by 4.2 % from the same in float32")
    assert rows["Work of unet"].startswith("91 % of its multiplications in integers")
    assert rows["Ranges"] == "16 general prompts drawn, 10 steps each, by nemo-edge 1.2"
    assert rows["Ranges end"] == "where rounding changes least"


def test_ranges_of_a_file_are_said_to_be_and_weights_alone_have_none() -> None:
    origin = Origin(prompts=1, steps=50, version="1", file=True)
    read = RECORDED.model_copy(update={"ranges": origin, "settings": QuantizationSettings(range="99.99 %")})
    rows = dict(quantized_of(read))
    assert rows["Ranges"] == "read of a file: 1 general prompt drawn, 50 steps each, by nemo-edge 1"
    assert rows["Ranges end"] == "where 99.99 % of the values stay below"
    alone = Quantized(settings=QuantizationSettings(scheme="int8_weights"), modules={}, kept={}, errors={})
    assert [name for name, _ in quantized_of(alone)] == ["Scheme", "Modules"]


def test_reasons_are_told_once_with_the_first_of_their_modules() -> None:
    first, second, third = kept_of(RECORDED)
    assert (first.why, len(first.modules)) == ("its neurons can be silenced", 5)
    assert first.named == "down_blocks.0.to_v, down_blocks.1.to_v, down_blocks.2.to_v, …"
    assert (second.why, second.named) == (f"{ESTIMATED} more than 0.25", "mid.a, mid.b")
    assert third.named == "conv_in"


def test_the_page_the_card_and_the_json_have_it_and_those_of_others_do_not() -> None:
    made = evidence(quantized=RECORDED.model_copy(update={"kept": {HOSTILE: HOSTILE}}))
    page, card = page_html(made, Gallery({}, {}, {})), model_card(made)
    assert '<section id="quantized">' in page
    assert 'href="#quantized"' in page
    assert "the threshold and the neurons are those of the exact model" in page
    assert "18.6 → 5.9 MB (32 %)" in page
    assert "&lt;b&gt;it&lt;/b&gt;" in page
    assert "## Quantization" in card
    assert "Files of unet" in card.partition("## Quantization")[2]
    assert "<b>" not in card
    assert record(made).quantization == made.quantized
    plain = evidence()
    assert "quantized" not in re.findall(r'id="(.*?)"', page_html(plain, Gallery({}, {}, {})))
    assert "## Quantization" not in model_card(plain)
    assert record(plain).quantization is None


def test_a_record_is_read_of_a_bundle(tmp_path: Path) -> None:
    assert Quantized.read(tmp_path) is None
    (tmp_path / RECORD).write_text(RECORDED.model_dump_json())
    assert Quantized.read(tmp_path) == RECORDED

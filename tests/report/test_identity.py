"""A bundle says what it is: makers, model, hashes, versions, machine and time, as text whatever they hold."""

from __future__ import annotations

import pytest

from nemo_edge.recipe.authorship import ReportSettings
from nemo_edge.report._card import model_card
from nemo_edge.report._identity import IDENTIFYING, base_model, identity_of, model_name
from nemo_edge.report._page import page_html
from nemo_edge.report._record import record
from nemo_edge.report.evidence import facts_of
from nemo_edge.report.thumbnails import Gallery
from nemo_edge.system.files import sha256_json
from report.test_evidence import MACHINE, evidence, manifest, recipe

MAKERS = ReportSettings(author="Ada <script>alert(1)</script>", organisation="A & B")
MANIFEST = manifest(evidence()).model_copy(update={"recipe_file": "toy.toml", "files": {"neurons.json": "ab"}})
FACTS = facts_of(MANIFEST)


def test_every_hash_and_version_has_its_row() -> None:
    rows = {row.name: row for row in identity_of(evidence(facts=FACTS, recipe=recipe("/home/someone/models/sd14", report=MAKERS)))}
    assert list(rows)[:4] == ["Made by", "Model", "Identity", "Weights"]
    assert rows["Identity"].value == MANIFEST.identity
    assert rows["Made by"].value == "Ada <script>alert(1)</script>, A & B"
    assert rows["Model"].value == "sd14 (StableDiffusionPipeline)"
    assert rows["Weights"].value == sha256_json({"unet/weights": "ab"})
    assert (rows["Prompts"].value, rows["Neurons"].value, rows["Build key"].value) == ("cd", "ef", "0123")
    assert rows["Versions"].value == "torch 2.10"
    assert (rows["Built by"].value, rows["Built by"].code) == ("nemo-edge build toy.toml", True)
    assert rows["Machine"].value == f"{MACHINE.words}, 8 GiB, Linux, Python 3.11"
    assert "not who made it: that is what a signature says" in rows["Identity"].note
    assert rows["Time"].value == "2026-01-02"
    assert set(IDENTIFYING) - {"Recipe file", "Hardened weights"} <= set(rows)
    hardened = identity_of(evidence(facts={**FACTS, "Hardened weights": "12"}))
    assert next(row.value for row in hardened if row.name == "Hardened weights") == "12"


def test_what_is_not_known_has_no_row() -> None:
    names = [row.name for row in identity_of(evidence(facts={}, machine=None, date=None))]
    assert names == ["Model"]


def test_the_commit_of_a_hub_s_model_has_its_row() -> None:
    rows = {row.name: row for row in identity_of(evidence(facts={}, recipe=recipe("CompVis/sd@0123")))}
    assert (rows["Model"].value, rows["Revision"].value) == ("CompVis/sd (StableDiffusionPipeline)", "0123")
    assert "Revision" not in {row.name for row in identity_of(evidence(facts={}, recipe=recipe("CompVis/sd")))}


def test_makers_are_text_in_every_form() -> None:
    made = evidence(facts=FACTS, recipe=recipe(report=MAKERS))
    page, card = page_html(made, Gallery({}, {}, {})), model_card(made)
    assert "Ada &lt;script&gt;alert(1)&lt;/script&gt;, A &amp; B" in page
    assert "<script" not in page
    assert "<script" not in card
    assert "| Weights | `" in card
    assert record(made).identity["Made by"] == "Ada <script>alert(1)</script>, A & B"


@pytest.mark.parametrize(
    ("checkpoint", "base", "name"),
    [
        ("CompVis/sd", "CompVis/sd", "CompVis/sd"),
        ("CompVis/sd@0123", "CompVis/sd", "CompVis/sd"),
        ("models", None, "models"),
        ("./models/sd", None, "sd"),
        ("/models/sd", None, "sd"),
        ("a/b/c", None, "c"),
        ("models/sd.safetensors", None, "sd.safetensors"),
    ],
)
def test_only_a_hub_id_is_a_base_model_and_of_a_place_the_name_is_told(checkpoint: str, base: str | None, name: str) -> None:
    assert base_model(checkpoint) == base
    assert model_name(checkpoint) == name

"""The folder `report/` of a bundle: one file a reader, all from the same evidence."""

from __future__ import annotations

__all__ = ["write_report"]

from pathlib import Path

from nemo_edge.report._card import model_card
from nemo_edge.report._page import page_html
from nemo_edge.report._record import record
from nemo_edge.report.evidence import Evidence
from nemo_edge.report.junit import junit_xml
from nemo_edge.report.thumbnails import open_gallery
from nemo_edge.system.files import write_atomically


def write_report(folder: Path, evidence: Evidence) -> None:
    """Write `index.html`, `report.json`, `junit.xml` and `model_card.md` into `folder`.

    The page shows the pictures in `folder/pictures`, which `store_pictures` puts there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "report.json", record(evidence).model_dump_json(indent=1) + "\n")
    write_atomically(folder / "junit.xml", junit_xml(evidence.name, evidence.gates))
    write_atomically(folder / "model_card.md", model_card(evidence))
    write_atomically(folder / "index.html", page_html(evidence, open_gallery(folder / "pictures")))

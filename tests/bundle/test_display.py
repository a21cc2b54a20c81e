"""How a manifest looks in a Python session."""

from __future__ import annotations

from pathlib import Path

from nemo_edge.bundle.display import pictures_html
from nemo_edge.bundle.manifest import GateResult, Manifest, open_bundle


def test_a_manifest_is_one_line(tiny_bundle: Path) -> None:
    manifest = open_bundle(tiny_bundle)
    for text in (repr(manifest), str(manifest)):
        assert text.startswith(f"<Manifest {manifest.name}: ")
        assert f"{len(manifest.files)} files>" in text
        assert len(text) < 300


def test_a_notebook_shows_the_verdict_and_every_gate(tiny_bundle: Path) -> None:
    gates = (
        GateResult(name="replication.baked", limit=0, value=0.5, passed=False),
        GateResult(name="<b>", limit=1, value=None, passed=True),
    )
    manifest: Manifest = open_bundle(tiny_bundle).model_copy(update={"gates": gates, "passed": False})
    shown = manifest._repr_html_()
    assert "failed: replication.baked" in shown
    assert "<td>0.5</td><td>0</td><td>failed</td>" in shown
    assert "<td>&lt;b&gt;</td><td>–</td><td>1</td><td>not measured</td>" in shown


def test_pictures_that_are_not_there_are_not_shown(tmp_path: Path) -> None:
    assert pictures_html(tmp_path, "baked") == ""
    folder = tmp_path / "report" / "pictures" / "000"
    folder.mkdir(parents=True)
    (folder / "before-00.webp").write_bytes(b"picture")
    assert pictures_html(tmp_path, "baked").count("data:image/webp;base64,cGljdHVyZQ==") == 1

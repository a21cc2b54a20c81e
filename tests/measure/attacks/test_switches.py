"""What a bundle brings every memory back by."""

from __future__ import annotations

from pathlib import Path

from nemo_edge.bundle.manifest import open_bundle
from nemo_edge.measure.attacks.switches import switches


def test_a_masked_bundle_has_a_mask_and_its_policies(tiny_bundle: Path) -> None:
    found = [switch.name for switch in switches(tiny_bundle, open_bundle(tiny_bundle).variants)]
    assert found[:2] == ["a value_mask of ones", "the policy off"]
    assert ("silenced_rows.safetensors" in found) is any(tiny_bundle.rglob("silenced_rows.safetensors"))


def test_a_baked_one_without_its_rows_has_none(tmp_path: Path) -> None:
    assert switches(tmp_path, ("baked",)) == ()
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "silenced_rows.safetensors").touch()
    assert [switch.name for switch in switches(tmp_path, ("baked",))] == ["silenced_rows.safetensors"]

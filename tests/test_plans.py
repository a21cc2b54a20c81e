"""Sidecars of plans."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemo_edge.errors import BundleError, InputError
from nemo_edge.plans import open_plan_file


def test_a_missing_or_foreign_sidecar_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        open_plan_file(tmp_path / "unet.json")
    (tmp_path / "unet.json").write_text("{}")
    with pytest.raises(BundleError, match="does not describe a plan"):
        open_plan_file(tmp_path / "unet.json")

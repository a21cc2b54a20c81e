"""The record of a quantization: errors add up, and one that cannot be read is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemo_edge.export.quantization.record import RECORD, Quantized, Rounded
from nemo_edge.system.errors import BundleError


def test_errors_of_a_module_add_up_as_independent_ones() -> None:
    assert Rounded(weight=0.3, input=0.4).error == pytest.approx(0.5)
    assert Rounded(weight=0.3).error == 0.3


@pytest.mark.parametrize("content", ["", "{}", '{"schema_version": 2}'])
def test_what_is_no_record_is_named(content: str, tmp_path: Path) -> None:
    assert Quantized.read(tmp_path) is None
    (tmp_path / RECORD).write_text(content)
    with pytest.raises(BundleError, match=r"quantization\.json does not say what was quantized: build the bundle again"):
        Quantized.read(tmp_path)


def test_one_from_before_has_neither_sizes_nor_shares(tmp_path: Path) -> None:
    (tmp_path / RECORD).write_text('{"settings": {}, "modules": {}, "kept": {}, "errors": {"unet": 0.1}}')
    found = Quantized.read(tmp_path)
    assert found is not None
    assert (found.sizes_bytes, found.integers, found.ranges) == ({}, {}, None)

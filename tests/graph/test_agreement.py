"""What is kept of an exported file: whether it agrees, and that it is read again as it was written."""

from __future__ import annotations

from math import inf, nan

import pytest

from nemo_edge.graph.agreement import Agreement, Exported


@pytest.mark.parametrize(
    ("error", "value", "passed", "finite"),
    [(0.1, 0.5, True, True), (0.3, 2.0, False, True), (nan, 1.0, False, False), (inf, 1.0, False, False)],
)
def test_the_error_is_relative_to_the_largest_value(error: float, value: float, passed: bool, finite: bool) -> None:
    found = Agreement(case="c", output="y", largest_error=error, largest_value=value, tolerance=0.1)
    assert (found.passed, found.finite) == (passed, finite)


def test_it_is_read_again_as_it_was_written() -> None:
    agreement = Agreement(case="c", output="y", largest_error=inf, largest_value=1.0, tolerance=0.1)
    exported = Exported(
        component="unet", model="unet/model.onnx", dtype="fp16", opset=23, agreement=(agreement,), write_s=1.5, verify_s=0.5, note="why"
    )
    assert Exported.model_validate_json(exported.model_dump_json()) == exported

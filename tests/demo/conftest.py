"""What only the demo's tests use."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemo_edge.demo.pictures import font_path


@pytest.fixture
def font() -> Path:
    """The font that the demo's pictures are drawn with; tests that draw are skipped without it."""
    try:
        return font_path()
    except FileNotFoundError as error:
        pytest.skip(str(error))

"""What the errors promise to the command line."""

from __future__ import annotations

import pytest

from nemo_edge.system import errors


def test_every_error_is_one_of_ours() -> None:
    kinds = [getattr(errors, name) for name in errors.__all__ if name[0].isupper()]
    assert all(issubclass(kind, errors.NemoEdgeError) for kind in kinds)
    assert issubclass(errors.BundleError, errors.InputError)
    assert not issubclass(errors.ExportError, errors.InputError)


@pytest.mark.parametrize(("message", "line"), [("\n one \ntwo", "one"), ("", "ValueError"), ("one", "one")])
def test_the_first_line_says_something(message: str, line: str) -> None:
    assert errors.first_line(ValueError(message)).strip() == line

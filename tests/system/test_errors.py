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


@pytest.mark.parametrize(
    ("name", "extra"), [("torch", "build"), ("tokenizers", "run"), ("diffusers.models.x", None), ("ours", None), (None, None)]
)
def test_a_library_that_is_not_here_is_told_with_its_extra(name: str | None, extra: str | None) -> None:
    """A part that is missing of a library that is here is a defect, and no remedy of ours."""
    said = errors.lacking(ModuleNotFoundError("no", name=name))
    assert (said is None) == (extra is None)
    if extra is not None:
        assert str(said) == f"this needs {name}, which is not installed: pip install 'nemo-edge[{extra}]'"

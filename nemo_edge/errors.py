"""The errors of nemo-edge, named by what the caller can do about them."""

from __future__ import annotations

__all__ = ["BundleError", "ExportError", "InputError", "MissingDependency", "NemoEdgeError"]


class NemoEdgeError(Exception):
    """Root of all errors raised on purpose. The message says what was expected, what came, and what to do."""


class InputError(NemoEdgeError):
    """Something the user gave (a file, an option, a recipe, an array) cannot be used as it is."""


class BundleError(InputError):
    """A folder is not a finished bundle, or its files are not those its manifest names."""


class MissingDependency(NemoEdgeError):
    """A package, a provider or a device that was asked for is not on this machine."""


class ExportError(NemoEdgeError):
    """An exported graph does not do what the eager module does."""

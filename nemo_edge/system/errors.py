"""The errors of nemo-edge, named by what the caller can do about them."""

from __future__ import annotations

__all__ = ["BundleError", "ExportError", "InputError", "MissingDependency", "NemoEdgeError", "first_line", "lacking"]

_EXTRAS = {
    "build": (
        *("torch", "diffusers", "transformers", "accelerate", "peft", "huggingface_hub", "onnx_ir", "onnxscript"),
        *("polygraphy", "torchmetrics", "matplotlib", "jinja2", "yaml"),
    ),
    "run": ("onnxruntime", "onnx", "tokenizers"),
    "sign": ("model_signing", "OpenSSL", "certifi", "cryptography"),
}
"""The modules that an extra of the package brings."""


class NemoEdgeError(Exception):
    """Root of all errors raised on purpose. The message says what was expected, what came, and what to do."""


class InputError(NemoEdgeError):
    """Something the user gave (a file, an option, a recipe, an array) cannot be used as it is."""


class BundleError(InputError):
    """A folder is not a finished bundle, or its files are not those its manifest names."""


class MissingDependency(NemoEdgeError):
    """A package, a provider or a device that was asked for is not on this machine."""


class ExportError(NemoEdgeError):
    """A graph cannot be exported, or does not do what the eager module does."""


def first_line(error: Exception) -> str:
    """Return the first line of an error that another library raised, or its class where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def lacking(error: ModuleNotFoundError) -> MissingDependency | None:
    """Return what to say of a library that an extra brings and that is not here; None for any other module, a part of one too."""
    extra = next((extra for extra, packages in _EXTRAS.items() if error.name in packages), None)
    return MissingDependency(f"this needs {error.name}, which is not installed: pip install 'nemo-edge[{extra}]'") if extra else None

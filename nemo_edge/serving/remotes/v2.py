"""A pipeline on a server of the KServe protocol V2 over HTTP, as Triton has it: the one that `nemo-edge ship` makes, or one like it.

Knows what the server declares: an input `prompt` of text, an output of pictures in bytes, and `seed` where it takes one.
"""

from __future__ import annotations

__all__ = ["V2Pipeline"]

import http.client
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import numpy as np

from nemo_edge.serving.remotes.base import KEPT, Busy, Identity, answered, as_picture, patiently, without_query
from nemo_edge.serving.versions import PIPELINE
from nemo_edge.system.errors import InputError, MissingDependency, first_line

_BINARY = "binary_tensor_data"
"""The extension by which tensors go as they are; without it they go as JSON."""
_PARAMETERS = ("bundle", "identity", "manifest", "nemo_edge")
"""What the configuration of a pipeline that nemo-edge shipped says of where it came from."""
_REMEDY = "name another with --model, or ask it with --command and a program of yours"


class V2Pipeline:
    """A model that draws; without a name the one that is called as ours, or the only one that takes a prompt and gives pictures."""

    def __init__(self, url: str, model: str | None, timeout_s: float) -> None:
        """Raises `MissingDependency` without tritonclient, `InputError` for a model that is not there or draws no pictures."""
        self._library = _client_library()
        self._url = url = without_query(url)
        self._client = _connect(self._library, url, timeout_s)
        server = self._asked(self._client.get_server_metadata)
        self._binary = _BINARY in server.get("extensions", ())
        self._name = model if model is not None else self._only()
        metadata = self._metadata(self._name)
        self._ports = {port["name"]: port for port in metadata.get("inputs", ())}
        self._output = _check_pipeline(metadata, f"the model {self._name} at {url}")
        versions = sorted(metadata.get("versions") or (), key=lambda each: (len(each), each))
        told = {name: str(server[name]) for name in ("name", "version") if name in server} | self._parameters()
        self.identity = Identity(kind="triton", address=url, model=self._name, version=versions[-1] if versions else "", told=told)

    def __call__(self, prompt: str, seed: int) -> np.ndarray:
        """Return a picture."""
        given: dict[str, Any] = {"prompt": prompt.encode(), "seed": seed}
        inputs = [self._tensor(self._ports[name], value) for name, value in given.items() if name in self._ports]
        outputs = [self._library.InferRequestedOutput(self._output, binary_data=self._binary)]
        array = patiently(lambda: self._asked(lambda: self._client.infer(self._name, inputs, outputs=outputs).as_numpy(self._output)))
        return as_picture(array, f"what the model {self._name} at {self._url} gives")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._client.close()

    def _tensor(self, port: Mapping[str, Any], value: Any) -> Any:
        from tritonclient.utils import triton_to_np_dtype

        shape = [1] * len(port["shape"])
        tensor = self._library.InferInput(port["name"], shape, port["datatype"])
        tensor.set_data_from_numpy(np.full(shape, value, triton_to_np_dtype(port["datatype"])), binary_data=self._binary)
        return tensor

    def _only(self) -> str:
        """The model that draws, where none is named."""
        listed = self._listed()
        if listed is None or PIPELINE in listed:
            return PIPELINE
        drawing = [name for name in listed if _draws(self._metadata(name))]
        if len(drawing) != 1:
            what = f"{len(drawing)} that draw ({', '.join(drawing)})" if drawing else "none that takes a prompt and gives pictures"
            raise InputError(f"the server at {self._url} has the models {', '.join(listed) or '(none)'}, {what}: {_REMEDY}")
        return drawing[0]

    def _listed(self) -> list[str] | None:
        """The models that are ready; None where the server does not list them."""
        try:
            index = self._asked(self._client.get_model_repository_index)
        except Busy:
            raise
        except InputError:
            return None
        return list(dict.fromkeys(entry["name"] for entry in index if entry.get("state", "READY") == "READY"))

    def _metadata(self, name: str) -> dict[str, Any]:
        try:
            found: dict[str, Any] = self._asked(lambda: self._client.get_model_metadata(name))
        except Busy:
            raise
        except InputError as error:
            listed = self._listed()
            has = f"it has {', '.join(listed) or 'none'}" if listed is not None else str(error)
            raise InputError(f"the server at {self._url} has no model {name}: {has}; name one with --model") from error
        return found

    def _parameters(self) -> dict[str, str]:
        try:
            config = self._asked(lambda: self._client.get_model_config(self._name))
        except InputError:  # only Triton has it
            return {}
        given = config.get("parameters") or {}
        return {name: given[name]["string_value"] for name in _PARAMETERS if "string_value" in (given.get(name) or {})}

    def _asked(self, call: Callable[[], Any]) -> Any:
        """What a call of the client gives, its errors in our words."""
        from tritonclient.utils import InferenceServerException

        try:
            return call()
        except InferenceServerException as error:
            status = str(error.status())
            raise answered(f"the server at {self._url}", int(status) if status.isdecimal() else 0, str(error.message())) from error
        except TimeoutError as error:
            raise InputError(f"the server at {self._url} did not answer in time: give it longer with --timeout; {KEPT}") from error
        except (OSError, http.client.HTTPException) as error:
            raise Busy(f"the server at {self._url} does not answer ({error or type(error).__name__}): start it; {KEPT}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"the server at {self._url} gave an answer that cannot be read: {first_line(error)}") from error


def _client_library() -> Any:
    try:
        import tritonclient.http
    except ImportError as error:
        raise MissingDependency("a Triton server is asked by tritonclient: `pip install 'nemo-edge[serve]'`") from error
    return tritonclient.http


def _connect(library: Any, url: str, timeout_s: float) -> Any:
    parts = urlsplit(url)
    secure: dict[str, Any] = {}
    if parts.scheme == "https":
        import gevent.ssl

        secure = {"ssl": True, "ssl_context_factory": gevent.ssl.create_default_context}
    return library.InferenceServerClient(f"{parts.netloc}{parts.path.rstrip('/')}", network_timeout=timeout_s, **secure)


def _pictures(outputs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The outputs that can hold pictures, ours first."""
    fitting = [o["name"] for o in outputs if o.get("datatype") == "UINT8" and len(o["shape"]) >= 3 and o["shape"][-1] in (3, -1)]
    return sorted(fitting, key=lambda name: name != "image")


def _draws(metadata: Mapping[str, Any]) -> bool:
    takes = any(port["name"] == "prompt" and port.get("datatype") == "BYTES" for port in metadata.get("inputs", ()))
    return takes and bool(_pictures(metadata.get("outputs", ())))


def _check_pipeline(metadata: Mapping[str, Any], what: str) -> str:
    """Return the output that holds pictures. Raises `InputError` for a model that does not draw."""
    outputs = metadata.get("outputs", ())
    if not _draws(metadata):
        ports = {kind: ", ".join(f"{p['name']} {p.get('datatype', '')}" for p in metadata.get(kind, ())) for kind in ("inputs", "outputs")}
        lacks = "gives no picture (UINT8 […, 3])" if not _pictures(outputs) else "takes no prompt (BYTES)"
        raise InputError(f"{what} {lacks}: it takes {ports['inputs'] or 'nothing'} and gives {ports['outputs'] or 'nothing'}; {_REMEDY}")
    return _pictures(outputs)[0]

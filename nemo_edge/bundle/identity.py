"""Which model a bundle is: one hash over every file that a server or a lawyer relies on, which each build of the same inputs comes to.

What was measured, what is written of the rest and what says when, where or how long is apart, so that a bundle that is judged again is the
same one. Each kind of file is on one of two lists, which `docs/bundle.md` promises not to change. Knows names and hashes.
"""

from __future__ import annotations

__all__ = ["APART", "MEASURED_FILES", "PLANS", "RELIED_ON", "counted", "identity_of", "inputs_of", "is_apart", "sidecars_in"]

from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from nemo_edge.system.errors import BundleError, InputError
from nemo_edge.system.files import sha256_json
from nemo_edge.system.reading import read_json

PLANS = (".plan", ".engine", ".trt")
"""How the files of engines end; a sidecar has the same name and ends in .json."""

MEASURED_FILES = ("measurement.json", "attack.json", "latency.json")
"""What was measured with the engines."""

APART: Mapping[str, str] = {
    **dict.fromkeys(MEASURED_FILES, "what engines do, and how fast on some machine; measured again it is the same model"),
    "report/*": "pages and pictures, written of what else is here, and when and where",
    "localization_times.jsonl": "wall times",
    "hardening.json": "how long it took on which machine; what came of it is in the weights",
}
"""Kinds of files that are no part of the identity, and why."""

RELIED_ON = (
    "model_index.json",
    "tokenizer/*",
    "tokenizer_2/*",
    "scheduler/*",
    "text_encoder/*",
    "text_encoder_2/*",
    "unet/*",
    "unet_masked/*",
    "vae_decoder/*",
    "engines/*",
    "neurons.json",
    "silenced_rows.safetensors",
    "policies.json",
    "calibration.safetensors",
    "localization.jsonl",
    "groups.jsonl",
    "memorization_statistics.csv",
    "ranges.json",
    "quantization.json",
)
"""Kinds of files that are a part of it. A file of neither list is one, too: nothing is left out unasked."""

_OF_ONE_PLAN = ("build_s", "size_bytes")
"""What of a sidecar is of one compilation, and not of what was compiled."""


def is_apart(name: str) -> bool:
    """Whether a file of a bundle is no part of its identity."""
    return any(fnmatchcase(name, pattern) for pattern in APART)


def sidecars_in(files: Collection[str]) -> list[str]:
    """Return the names of the files that describe a plan among them."""
    sidecars = (str(PurePosixPath(name).with_suffix(".json")) for name in files if name.endswith(PLANS))
    return sorted({name for name in sidecars if name in files})


def inputs_of(sidecar: Path) -> str:
    """Return a hash of what a plan was compiled from and how, as its sidecar says. Raises `BundleError` for one that says nothing."""
    try:
        told = read_json(sidecar)
    except InputError as error:
        raise BundleError(f"{sidecar} does not describe a plan: build the engine again") from error
    return sha256_json({key: value for key, value in told.items() if key not in _OF_ONE_PLAN} if isinstance(told, dict) else told)


def identity_of(files: Mapping[str, str], plans: Mapping[str, str]) -> str:
    """Return the identity of a bundle of these files, by their hashes: sha256 over the sorted names and hashes of what counts, as JSON."""
    return sha256_json(counted(files, plans))


def counted(files: Mapping[str, str], plans: Mapping[str, str]) -> dict[str, str]:
    """Return what counts of each of these files that do.

    Plans are never the same bytes: of a plan its name counts, and of its sidecar, by whose name `plans` has it, the hash of its inputs. One
    of a bundle from before there was such a hash counts by its name alone.
    """
    sidecars = {*sidecars_in(files)}

    def told(name: str, digest: str) -> str:
        return "" if name.endswith(PLANS) else plans.get(name, "") if name in sidecars else digest

    return {name: told(name, digest) for name, digest in files.items() if not is_apart(name)}

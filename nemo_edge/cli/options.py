"""What commands have in common: options that several take, and how a result is printed.

Imports nothing heavy, so that `--help` is immediate.
"""

from __future__ import annotations

__all__ = [
    "AllowPickle",
    "Authorities",
    "Bundle",
    "Checkpoint",
    "ClipSkip",
    "Device",
    "Expect",
    "Issuer",
    "Json",
    "Loras",
    "PublicKey",
    "RevocationList",
    "SignedBy",
    "Summary",
    "loras_of",
    "open_model",
    "print_result",
    "trust_of",
]

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from nemo_edge.system.terminal import visible, visible_json

Checkpoint = Annotated[str, typer.Argument(help="Diffusers folder, .safetensors file or hub id.")]
Bundle = Annotated[Path, typer.Argument(help="Folder of a bundle.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output and nothing else.")]
AllowPickle = Annotated[bool, typer.Option("--allow-pickle", help="Open pickle weights, which can run any code.")]
Device = Annotated[str, typer.Option("--device", help="What eager PyTorch runs on: cpu, or cuda.")]
Loras = Annotated[list[str] | None, typer.Option("--lora", help="A LoRA to fuse, PATH or PATH:SCALE; may be repeated.")]
ClipSkip = Annotated[int, typer.Option("--clip-skip", min=0, help="Last layers of the text encoders to skip, as diffusers counts them.")]
PublicKey = Annotated[Path | None, typer.Option("--public-key", help="PEM: a signature by its private key is asked for.")]
Authorities = Annotated[list[Path] | None, typer.Option("--authority", help="PEM: one by a certificate of theirs is; may be repeated.")]
SignedBy = Annotated[str | None, typer.Option("--signer", help="Address or URI: one by that Sigstore identity is.")]
Issuer = Annotated[str | None, typer.Option("--issuer", help="URL of who vouches for --signer.")]
RevocationList = Annotated[Path | None, typer.Option("--revocations", help="Signed list of bundles that are refused.")]


def _identity(given: str | None) -> str | None:
    if given is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", given):
        raise typer.BadParameter(f"--expect {given[:80]}: give an identity, 64 hexadecimal digits as `nemo-edge verify` prints them")
    return given


Expect = Annotated[str | None, typer.Option("--expect", callback=_identity, help="The identity of the bundle, or its manifest's sha256.")]
Summary = Annotated[Path | None, typer.Option("--summary", help="Add a job summary in Markdown to this file.")]


def print_result(result: Any, as_json: bool, show: Callable[[Any], None]) -> None:
    """Print a result: a table for people by `show`, or one JSON object."""
    if not as_json:
        show(result)
        return
    content = json.loads(result.model_dump_json()) if hasattr(result, "model_dump_json") else result
    passed = getattr(result, "passed", None)
    print(visible_json(content if passed is None else {**content, "passed": passed}))


def trust_of(
    public_key: Path | None,
    authorities: Sequence[Path] | None,
    signer: str | None,
    issuer: str | None,
    revocations: Path | None,
    asked: str,
) -> Any:
    """Whose signature is asked for, as the options say; None where nothing asks. `asked` is the option that does without saying whose."""
    given = {
        "public_key": public_key,
        "authorities": tuple(authorities or ()),
        "signer": signer,
        "issuer": issuer,
        "revocations": revocations,
    }
    found = {name: value for name, value in given.items() if value is not None and value != ()}
    if not found and not asked:
        return None
    from pydantic import ValidationError

    from nemo_edge.bundle.signature import Trust

    try:
        return Trust.model_validate(found)
    except ValidationError as error:
        named = asked or next(f"--{name.replace('_', '-')}" for name in found)
        raise typer.BadParameter(f"{named}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from error


def loras_of(given: Sequence[str] | None) -> tuple[Any, ...]:
    """The settings of LoRAs given as PATH or PATH:SCALE. Raises `InputError` for a scale that is no finite number."""
    from nemo_edge.recipe.recipe import from_options
    from nemo_edge.recipe.settings import LoraSettings

    found = []
    for text in given or ():
        path, _, scale = text.rpartition(":")
        with_scale = bool(path) and not Path(text).exists()
        found.append(from_options(LoraSettings, {}, {"path": path, "scale": scale} if with_scale else {"path": text}, {"scale": "lora"}))
    return tuple(found)


def open_model(path: str, allow_pickle: bool, device: str = "cpu", loras: Sequence[str] | None = None, clip_skip: int = 0) -> Any:
    """Open a checkpoint on a device, LoRAs fused into it, read with `clip_skip`; say on standard error what was assumed of it."""
    fused = loras_of(loras)
    from nemo_edge.model.checkpoint import open_checkpoint

    opened = open_checkpoint(path, allow_pickle=allow_pickle, device=device, loras=fused, clip_skip=clip_skip)
    for note in opened.notes:
        typer.echo(visible(f"note: {note}"), err=True)
    return opened

"""The commands that take a bundle to an inference server, and its repository to a cluster; and the audit of a server.

Translates as `cli` does, which puts them among its own; heavy imports are inside the commands.
"""

from __future__ import annotations

__all__ = ["kserve", "register", "ship"]

from pathlib import Path
from typing import Annotated, Any

import typer

from nemo_edge.cli.audits import audit
from nemo_edge.cli.options import (
    Authorities,
    Bundle,
    Expect,
    Issuer,
    Json,
    PublicKey,
    RevocationList,
    SignedBy,
    print_result,
    trust_of,
)
from nemo_edge.cli.panels import add
from nemo_edge.cli.screen import show_identity, show_line


def register(app: typer.Typer) -> None:
    """Put the commands into an app."""
    for command in (ship, kserve, audit):
        add(app, command)


def ship(
    bundle: Bundle,
    repository: Annotated[Path, typer.Option("--to", help="Triton model repository, a folder.")],
    backend: Annotated[str | None, typer.Option("--backend", help="native (Triton's) or python; else as the recipe.")] = None,
    variant: Annotated[str | None, typer.Option("--variant", help="baked or masked; masked where there is one.")] = None,
    name: Annotated[str, typer.Option("--name", help="Put before the models' names, so that several share a server.")] = "",
    policies: Annotated[str | None, typer.Option("--policies", help="The only ones the server knows: always,triggered.")] = None,
    instances: Annotated[int | None, typer.Option("--instances", min=1, help="Requests drawn at once (2; 1 with --policies).")] = None,
    log_prompts: Annotated[bool, typer.Option("--log-prompts", help="Let the server's log have the prompts.")] = False,
    masks_only: Annotated[bool, typer.Option("--masks-only", help="New neurons for engines that are there; needs no load.")] = False,
    expect: Expect = None,
    signed: Annotated[bool, typer.Option("--require-signature", help="Here and on the server; one of the next says whose.")] = False,
    public_key: PublicKey = None,
    authority: Authorities = None,
    signer: SignedBy = None,
    issuer: Issuer = None,
    revocations: RevocationList = None,
    trusted_at: Annotated[Path | None, typer.Option("--trusted-at", help="Folder of keys and list on the server, if another.")] = None,
    as_json: Json = False,
) -> None:
    """Put a bundle into a Triton model repository, as a new version.

    Refuses one that failed a gate or was changed.
    """
    trust = trust_of(public_key, authority, signer, issuer, revocations, "--require-signature" if signed else "")
    if trusted_at is not None and trust is None:
        raise typer.BadParameter("--trusted-at: nothing is trusted; say whose signature is, with --public-key or --authority")
    if masks_only:
        apart = {"--backend": backend, "--variant": variant, "--policies": policies, "--instances": instances}
        _check_alone({**apart, "--log-prompts": log_prompts, "--trusted-at": trusted_at})
        from nemo_edge.serving.hotupdate import ship_masks

        print_result(ship_masks(bundle, repository, name=name, expect=expect, trust=trust), as_json, _show_masks)
        return
    from nemo_edge.cli import console
    from nemo_edge.serving.repository import ship as run

    known = None if policies is None else [each.strip() for each in policies.split(",") if each.strip()]
    instances = instances or (2 if known is None else 1)
    asked: dict[str, Any] = {"name": name, "policies": known, "expect": expect, "trust": trust, "trusted_at": trusted_at}
    result = run(bundle, repository, backend, variant, instances=instances, log_prompts=log_prompts, progress=console.Bars(), **asked)
    print_result(result, as_json, _show)


def kserve(
    repository: Annotated[Path, typer.Argument(help="Model repository, as `nemo-edge ship` makes it.")],
    name: Annotated[str, typer.Option("--name", help="Of the service.")],
    storage: Annotated[str, typer.Option("--storage", help="URI where the cluster finds a copy of the repository: s3://…, pvc://….")],
    image: Annotated[str, typer.Option("--image", help="Of a Triton server whose Python has nemo-edge.")],
    namespace: Annotated[str | None, typer.Option("--namespace", help="Of the service; else that of `kubectl`.")] = None,
    cpu: Annotated[str, typer.Option("--cpu", help="Cores of a replica.")] = "4",
    memory: Annotated[str, typer.Option("--memory", help="Memory of a replica.")] = "16Gi",
    gpus: Annotated[int | None, typer.Option("--gpus", help="GPUs of a replica; else one where an engine needs it.")] = None,
    replicas: Annotated[int, typer.Option("--replicas", help="The fewest; 0 lets the service sleep.")] = 1,
    most: Annotated[int | None, typer.Option("--most-replicas", help="The most; else as many as the fewest.")] = None,
    as_json: Json = False,
) -> None:
    """Print the InferenceService of a repository, for kubectl."""
    import yaml

    from nemo_edge.recipe.recipe import from_options
    from nemo_edge.serving.kserve import Placement, describe_service

    asked = {"name": name, "storage": storage, "image": image, "namespace": namespace, "cpu": cpu, "memory": memory, "gpus": gpus}
    asked |= {"replicas": replicas, "most": max(replicas, 1) if most is None else most}
    service = describe_service(repository, from_options(Placement, {}, asked, {"most": "most-replicas"}))
    print_result(service, as_json, lambda found: print(yaml.safe_dump(found, sort_keys=False), end=""))


def _check_alone(options: dict[str, Any]) -> None:
    for name, value in options.items():
        if value:
            raise typer.BadParameter(f"--masks-only ships no engine: leave out {name}")


def _show(shipped: Any) -> None:
    """What is in a model repository now, and how a server takes it up."""
    what = f"version {shipped.version} of {', '.join(shipped.models)}"
    show_line(f"{shipped.repository}: {what} ({shipped.variant}, backend {shipped.backend})")
    show_identity(shipped.identity)
    if shipped.signed:
        print("who opens them asks for the signature first")
    print("a server that runs takes it up by POST to /v2/repository/models/NAME/load, in this order")


def _show_masks(shipped: Any) -> None:
    """What a server that runs silences from now on."""
    where = f"update {shipped.update} of version {shipped.version} of the pipeline"
    show_line(f"{shipped.repository}: {where}, policies {shipped.policies} ({shipped.neurons} neurons)")
    print("a server that runs silences them from its next request on, where it asks for signatures if it trusts who signed")

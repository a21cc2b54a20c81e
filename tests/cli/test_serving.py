"""`nemo-edge ship`: what it prints, and how it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from signing import write_key

from cli.test_main import Run, assert_refused, run
from nemo_edge.bundle.manifest import open_bundle

pytest.importorskip("tritonclient.grpc")

__all__ = ["run"]


def test_ship_says_what_is_in_the_repository_and_how_a_server_takes_it_up(run: Run, shippable: Path, tmp_path: Path) -> None:
    shown = run("ship", shippable, "--to", tmp_path / "repository")
    assert shown.code == 0
    assert "version 1 of text_encoder, vae_decoder, unet, pipeline (masked, backend python)" in shown.out
    assert "/v2/repository/models/NAME/load" in shown.out


def test_json_is_one_object_and_nothing_else(run: Run, shippable: Path, tmp_path: Path) -> None:
    options = ("--backend", "native", "--variant", "baked", "--instances", 3, "--log-prompts", "--json")
    shown = run("ship", shippable, "--to", tmp_path / "repository", *options)
    found = json.loads(shown.out)
    assert (found["version"], found["variant"], found["backend"]) == (1, "baked", "onnxruntime")
    written = (tmp_path / "repository" / "pipeline" / "config.pbtxt").read_text()
    assert "count: 3" in written
    assert 'key: "log_prompts"\n  value {\n    string_value: "true"' in written


def test_a_bundle_that_failed_is_refused_in_one_line(run: Run, tiny_bundle: Path, tmp_path: Path) -> None:
    assert_refused(run("ship", tiny_bundle, "--to", tmp_path / "repository"), "failed a gate", "and is not shipped")
    assert not (tmp_path / "repository").exists()


def test_a_bundle_that_is_none_is_refused_in_one_line(run: Run, tmp_path: Path) -> None:
    assert_refused(run("ship", tmp_path / "nothing", "--to", tmp_path / "repository"), "does not exist")


def test_masks_only_says_what_is_in_force(run: Run, shippable: Path, tmp_path: Path) -> None:
    run("ship", shippable, "--to", tmp_path / "repository")
    shown = run("ship", shippable, "--to", tmp_path / "repository", "--masks-only")
    assert shown.code == 0
    assert "repository: update 1 of version 1 of the pipeline, policies " in shown.out
    assert "silences them from its next request on" in shown.out
    found = json.loads(run("ship", shippable, "--to", tmp_path / "repository", "--masks-only", "--json").out)
    assert (found["version"], found["update"]) == (1, 2)


def test_masks_only_needs_a_repository(run: Run, shippable: Path, tmp_path: Path) -> None:
    assert_refused(
        run("ship", shippable, "--to", tmp_path / "repository", "--masks-only"),
        "has no pipeline that nemo-edge shipped: make it with `nemo-edge ship BUNDLE --to",
    )


def test_masks_only_takes_no_option_of_engines(run: Run, shippable: Path, tmp_path: Path) -> None:
    for option, value in (("--variant", "baked"), ("--instances", "4")):
        ran = run("ship", shippable, "--to", tmp_path / "repository", "--masks-only", option, value)
        assert_refused(ran, f"--masks-only ships no engine: leave out {option}")


def test_kserve_prints_what_kubectl_takes(run: Run, shippable: Path, tmp_path: Path) -> None:
    run("ship", shippable, "--to", tmp_path / "repository")
    options = ("--name", "sd", "--storage", "s3://models/sd", "--image", "registry.example/triton:1", "--most-replicas", 3)
    shown = run("kserve", tmp_path / "repository", *options)
    assert (shown.code, shown.err) == (0, "")
    service = yaml.safe_load(shown.out)
    assert (service["kind"], service["spec"]["predictor"]["maxReplicas"]) == ("InferenceService", 3)
    assert "&" not in shown.out  # no anchors, which some tools do not take
    assert json.loads(run("kserve", tmp_path / "repository", *options, "--json").out) == service


def test_kserve_names_the_option_that_is_wrong(run: Run, shippable: Path, tmp_path: Path) -> None:
    run("ship", shippable, "--to", tmp_path / "repository")
    options = ("--name", "sd", "--storage", "s3://models/sd", "--image", "registry.example/triton:1", "--replicas", 3, "--most-replicas", 2)
    assert_refused(run("kserve", tmp_path / "repository", *options), "--most-replicas 2: must not be fewer than the 3")
    assert_refused(run("kserve", tmp_path / "repository", *options[:3], "/srv", *options[4:6]), "--storage /srv: a cluster sees no folder")


def test_ship_asks_for_the_signature_that_is_required(run: Run, shippable: Path, tmp_path: Path) -> None:
    pytest.importorskip("model_signing.signing")
    bundle, (key, public) = shutil.copytree(shippable, tmp_path / "bundle"), write_key(tmp_path / "key.pem")
    identity = open_bundle(bundle).identity
    command = ("ship", bundle, "--to", tmp_path / "repository", "--expect", identity)
    assert_refused(run(*command, "--require-signature"), "--require-signature: say whose signature is taken")
    assert_refused(run(*command, "--require-signature", "--public-key", public), "is not signed (it has no manifest.sig)")
    assert_refused(run(*command, "--trusted-at", "/etc/keys"), "--trusted-at: nothing is trusted")
    assert not (tmp_path / "repository").exists()
    run("sign", bundle, "--key", key)
    shown = run(*command, "--require-signature", "--public-key", public)
    assert shown.code == 0
    assert f"identity: {identity}\nwho opens them asks for the signature first\n" in shown.out
    assert_refused(run(*command, "--masks-only"), "asks for signatures: say whose the bundle has, with --public-key")
    assert run(*command, "--masks-only", "--public-key", public).code == 0


def test_ship_names_the_models_and_refuses_a_name_that_is_none(run: Run, shippable: Path, tmp_path: Path) -> None:
    shown = run("ship", shippable, "--to", tmp_path / "repository", "--name", "sd15")
    assert "version 1 of sd15_text_encoder, sd15_vae_decoder, sd15_unet, sd15_pipeline (masked, backend python)" in shown.out
    assert run("ship", shippable, "--to", tmp_path / "repository", "--name", "sd15", "--masks-only").code == 0
    assert_refused(run("ship", shippable, "--to", tmp_path / "repository", "--masks-only"), "it has those of --name sd15")
    assert_refused(run("ship", shippable, "--to", tmp_path / "repository", "--name", "a/b"), "--name 'a/b': take letters, digits")


def test_ship_offers_the_policies_that_are_named(run: Run, shippable: Path, tmp_path: Path) -> None:
    shown = run("ship", shippable, "--to", tmp_path / "repository", "--policies", "always, triggered")
    assert "version 1 of pipeline (masked, backend python)" in shown.out
    assert "count: 1" in (tmp_path / "repository" / "pipeline" / "config.pbtxt").read_text()
    assert_refused(
        run("ship", shippable, "--to", tmp_path / "other", "--policies", "of"), "unknown policy 'of': this pipeline has always, off"
    )
    assert_refused(run("ship", shippable, "--to", tmp_path / "other", "--policies", ","), "no policy is offered: name one")
    assert_refused(run("ship", shippable, "--to", tmp_path / "repository"), "was shipped with --policies")

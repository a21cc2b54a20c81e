"""Which model a bundle is: the same for what is built, judged and compiled of the same inputs, and another for another model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import plans
import pytest

from bundle.test_manifest import add, manifest, published
from nemo_edge.bundle.identity import APART, RELIED_ON, identity_of, inputs_of, is_apart
from nemo_edge.bundle.manifest import MANIFEST, Manifest, amend, named, open_bundle, publish, staging, verify
from nemo_edge.system.clock import EPOCH
from nemo_edge.system.errors import BundleError
from nemo_edge.system.files import sha256_json, write_atomically

PLAN = "engines/unet.tensorrt.sm90.plan"
FILES = {"unet/model.onnx": "aa", "neurons.json": "bb"}


def with_plan(folder: Path, data: bytes, **described: Any) -> Manifest:
    """A bundle with a plan of these bytes, and a sidecar with these changes."""
    with staging(folder) as staged:
        plans.write(staged / "engines", data, plans.standard_sidecar(plan=PLAN, **described), Path(PLAN).name)
        return publish(staged, folder, manifest())


def test_it_is_the_hash_of_the_names_and_hashes_of_what_counts() -> None:
    apart = {"report/index.html": "1", "report/pictures/000/training.webp": "2", "latency.json": "3", "localization_times.jsonl": "4"}
    assert identity_of(FILES | apart, {}) == sha256_json(FILES) == identity_of(FILES, {})
    assert identity_of(FILES, {}) not in (identity_of({**FILES, "neurons.json": "cc"}, {}), identity_of({**FILES, "new.json": "cc"}, {}))


def test_no_kind_of_file_is_on_both_lists_and_each_that_is_apart_has_a_reason() -> None:
    assert not [pattern for pattern in RELIED_ON if is_apart(pattern)]
    assert all(APART.values())


def test_a_plan_counts_by_what_it_was_compiled_from(tmp_path: Path) -> None:
    one = with_plan(tmp_path / "one", plans.standard(), build_s=1.0)
    other = with_plan(tmp_path / "other", plans.standard(size=8192), build_s=2.0)
    assert one.files != other.files
    assert one.identity == other.identity == open_bundle(tmp_path / "other").identity
    assert with_plan(tmp_path / "third", plans.standard(), flags=("FP16",)).identity != one.identity
    assert with_plan(tmp_path / "fourth", plans.standard(), graph_hash="1" * 64).identity != one.identity


def test_what_a_sidecar_says_of_its_inputs_is_asked(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"graph_hash": "0", "build_s": 1}')
    assert inputs_of(tmp_path / "a.json") == sha256_json({"graph_hash": "0"})
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(BundleError, match="does not describe a plan: build the engine again"):
        inputs_of(tmp_path / "a.json")


def test_a_bundle_that_is_measured_and_judged_again_is_the_same_model(tmp_path: Path) -> None:
    folder = published(tmp_path / "out")
    before = open_bundle(folder)
    assert before.measurements == {}
    made = amend(folder, before.model_copy(update={"passed": False, "created": "2030-01-01T00:00:00+00:00"}), add)
    assert made.identity == before.identity == verify(folder).identity
    assert verify(folder).manifest != before
    assert amend(folder, made, lambda staged: write_atomically(staged / "neurons.json", "{}")).identity != before.identity


def test_the_manifest_says_when_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = published(tmp_path / "out")
    monkeypatch.setenv(EPOCH, "1700000000")
    made = amend(folder, open_bundle(folder), add)
    assert made.measurements == {"latency.json": "2023-11-14T22:13:20+00:00"}
    monkeypatch.setenv(EPOCH, "1800000000")
    assert amend(folder, made, lambda staged: None).measurements == made.measurements
    again = amend(folder, made, lambda staged: write_atomically(staged / "latency.json", '{"again": 1}'))
    assert again.measurements == {"latency.json": "2027-01-15T08:00:00+00:00"}


def test_a_manifest_tells_no_other_identity_than_that_of_its_files(tmp_path: Path) -> None:
    folder = published(tmp_path / "out")
    content = json.loads((folder / MANIFEST).read_text())
    assert content["identity"] == open_bundle(folder).identity
    (folder / MANIFEST).write_text(json.dumps({**content, "identity": "0" * 64}))
    with pytest.raises(BundleError, match="is not a manifest of schema 4, as it says"):
        open_bundle(folder)


def test_a_bundle_of_schema_3_is_read_and_keeps_its_identity_when_it_is_judged_again(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with_plan(folder, plans.standard())
    content = json.loads((folder / MANIFEST).read_text())
    former = {name: value for name, value in content.items() if name not in ("identity", "plans", "measurements")}
    (folder / MANIFEST).write_text(json.dumps({**former, "schema_version": 3}))
    assert verify(folder).problems == ()
    read = open_bundle(folder)
    assert (read.schema_version, read.plans) == (3, {})
    made = amend(folder, read, add)
    assert (made.schema_version, made.identity) == (4, read.identity)
    assert open_bundle(folder) == made


def test_what_is_named_twice_is_named_alike(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    made = with_plan(folder, plans.standard())
    (folder / MANIFEST).unlink()
    assert named(folder, made, made.files) == made

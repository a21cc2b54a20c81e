"""Every reader of files that others write, given what is no such file and what nearly is: it reads that or raises an error of ours.

Of each, 1,000 examples: bytes, letters and pieces of no meaning, and a good file with one to three things wrong. They are the same on every
run and machine, so that a change is judged by what it changes; nothing of them is kept, and none has a time limit of its own, since a
machine may have other work to do.
"""

from __future__ import annotations

from pathlib import Path

import hostile
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("tritonclient.grpc")
pytest.importorskip("model_signing.signing")

from readers import Given, readers

from nemo_edge.system.errors import NemoEdgeError

pytestmark = pytest.mark.timeout(900)

MADE, CHANGED = 250, 750
"""Examples of each kind, together 1,000; `slow` tries more."""

_BYTES = st.binary(max_size=100)
_LETTERS = st.text(st.characters(), max_size=40).map(lambda text: text.encode("utf-8", "surrogatepass"))
_PIECES = st.lists(st.sampled_from([*hostile.PIECES, *(bytes([letter]) for letter in b"{}[]:,\"'#\\\n")]), max_size=9).map(b"".join)
_EDITS = st.binary(min_size=hostile.EDIT_BYTES, max_size=3 * hostile.EDIT_BYTES)  # drawn as one thing, which is the fastest

NAMES = [
    *("p.txt", "p.csv", "p.tsv", "p.json", "p.jsonl", "r.toml", "n.json", "o.csv", "m.npy", "c.safetensors", "s.pt"),
    *("w.safetensors", "header.json", "shards.json", "unet.json", "vae.json", "text.json", "schedule.json", "parts.json", "index.json"),
    *("betas.json", "words.json", "tokenizer.json", "architecture.json", "m.yaml", "random_weights.json", "manifest.json", "policies.json"),
    *("steps.json", "g.onnx", "measurement.json", "localization.jsonl", "groups.jsonl", "attack.json", "quantization.json", "ranges.json"),
    *("audit.json", "times.json", "revocations.json", "manifest.sig", "key.pem", "key.pub", "authority.crt", "pipeline.json"),
    *("engine.json", "config.pbtxt", "delivery.json", "request.json", "session.json", "sidecar.json", "plan.json", "e.plan"),
    *("picture.png", "answer.png"),
]


@pytest.fixture(scope="module")
def each(shippable: Path, tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Given]:
    found = readers(shippable, tiny_recipe, tmp_path_factory.mktemp("readers"))
    assert list(found) == NAMES
    return found


def tried(reader: Given, path: Path, examples: st.SearchStrategy[bytes], most: int) -> None:
    """Give a reader so many examples; what it refuses it refuses with an error of ours."""
    count = refused = 0

    @settings(max_examples=most, deadline=None, derandomize=True, database=None, suppress_health_check=[*HealthCheck])
    @given(examples)
    def reads(content: bytes) -> None:
        nonlocal count, refused
        path.write_bytes(content)
        count += 1
        try:
            reader.read(path)
        except NemoEdgeError:
            refused += 1

    reads()
    assert count >= most
    assert refused, "of so many broken files one at least is refused"


def tried_all(reader: Given, path: Path, times: int = 1) -> None:
    path.write_bytes(reader.good)
    reader.read(path)
    tried(reader, path, st.one_of(_BYTES, _LETTERS, _PIECES), MADE * times)
    tried(reader, path, _EDITS.map(lambda drawn: hostile.edited(reader.good, hostile.edits(drawn))), CHANGED * times)


@pytest.mark.parametrize("name", NAMES)
def test_a_reader_raises_errors_of_ours_alone(each: dict[str, Given], name: str, tmp_path: Path) -> None:
    tried_all(each[name], tmp_path / name)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_reader_raises_errors_of_ours_alone_of_many(each: dict[str, Given], name: str, tmp_path: Path) -> None:
    tried_all(each[name], tmp_path / name, 10)


def test_the_page_has_these_numbers() -> None:
    page = Path(__file__).parents[2] / "docs" / "what-is-taken.md"
    assert f"{len(NAMES)} readers, {MADE + CHANGED:,} examples each" in page.read_text()

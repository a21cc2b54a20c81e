"""Every reader of files that others write, on good files with one thing wrong: it reads them or raises an error of ours, nothing else."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import hostile
import numpy as np
import pytest
import torch
from PIL import Image

from nemo_edge.bundle.manifest import open_bundle, verify
from nemo_edge.bundle.policies import Policies
from nemo_edge.graph.onnxfile import open_graph
from nemo_edge.localization.calibration import Calibration, load_statistics
from nemo_edge.localization.localizer import read_results
from nemo_edge.measure.mitigation import Measurement
from nemo_edge.measure.readings import load_readings
from nemo_edge.model._filekinds import read_contents
from nemo_edge.model.configuration import Configuration
from nemo_edge.model.inspection import check_kind
from nemo_edge.model.masks import read_mask
from nemo_edge.model.neurons import NeuronSet, OfficialRow, official_neurons, write_official_csv
from nemo_edge.recipe.prompts import read_prompts
from nemo_edge.recipe.recipe import load_recipe
from nemo_edge.sampling.steptable import read_table
from nemo_edge.serving.requests import read_json, read_request
from nemo_edge.system.errors import NemoEdgeError

pytestmark = pytest.mark.timeout(900)

Reader = Callable[[Path], object]
EXAMPLES, MANY = 100, 1000


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.arange(768, dtype=np.uint8).reshape(16, 16, 3)).save(file, "PNG")
    return file.getvalue()


def _official(own: NeuronSet, folder: Path) -> bytes:
    lists = [[0] for _ in own.layers]
    write_official_csv(
        folder / "o.csv", [OfficialRow(caption="a;b", url="u", initial=lists, initial_score=0.5, refined=lists, refined_score=0.1)]
    )
    return (folder / "o.csv").read_bytes()


def _pt(own: NeuronSet, folder: Path) -> bytes:
    torch.save([[torch.ones(layer.width) for layer in own.layers] for _ in range(2)], folder / "s.pt")
    return (folder / "s.pt").read_bytes()


def _request(path: Path) -> object:
    from nemo_edge.recipe.settings import SamplingSettings

    return read_request(read_json(path.read_bytes()), SamplingSettings())


def _step_table(path: Path) -> object:
    (path.parent / "scheduler").mkdir(exist_ok=True)
    shutil.copy(path, path.parent / "scheduler" / "steps.json")
    return read_table(path.parent)


def _manifest(path: Path) -> object:
    open_bundle(path.parent)
    return verify(path.parent)


def _in_place(folder: Path, name: str, read: Callable[[Path], object]) -> Reader:
    """A reader of a whole folder, in which the file takes the place of a good one."""

    def put(path: Path) -> object:
        shutil.copy(path, folder / name)
        return read(folder)

    return put


def readers(bundle: Path, recipe: Path, folder: Path) -> dict[str, tuple[bytes, Reader]]:
    """Of each reader, by the name of the file it is given: what is good, and the reader."""
    own = NeuronSet.load(bundle / "neurons.json")
    model = shutil.copytree(recipe.parent / "model", folder / "model")
    parts = shutil.copytree(bundle, folder / "parts", ignore=shutil.ignore_patterns("report", "*.onnx*"))
    table = 'Caption;URL;image\na pig;u;\n"an ""owl""";v;\n'
    rows = json.dumps([{"prompt": "a pig", "type": "VM"}, "an owl"])
    return {
        "p.txt": (b"a pig\nan owl\n", read_prompts),
        "p.csv": (table.encode(), read_prompts),
        "p.tsv": (table.replace(";", "\t").encode("utf-16"), read_prompts),
        "p.json": (rows.encode(), read_prompts),
        "p.jsonl": (b'{"prompt": "a pig"}\n"an owl"\n', read_prompts),
        "r.toml": (recipe.read_bytes(), load_recipe),
        "n.json": ((bundle / "neurons.json").read_bytes(), NeuronSet.load),
        "o.csv": (_official(own, folder), lambda path: official_neurons(path, own.layers)),
        "m.npy": (_npy(np.ones(own.total)), lambda path: read_mask(own, path)),
        "c.safetensors": ((bundle / "calibration.safetensors").read_bytes(), Calibration.load),
        "s.pt": (_pt(own, folder), lambda path: load_statistics(path, own.layers)),
        "w.safetensors": ((model / "vae/diffusion_pytorch_model.safetensors").read_bytes()[:20_000], read_contents),
        "g.onnx": ((bundle / "vae_decoder/model.onnx").read_bytes(), lambda path: open_graph(path).locations()),
        "manifest.json": ((bundle / "manifest.json").read_bytes(), _manifest),
        "policies.json": ((bundle / "policies.json").read_bytes(), Policies.load),
        "measurement.json": ((bundle / "measurement.json").read_bytes(), lambda path: Measurement.read(path.parent)),
        "localization.jsonl": ((bundle / "localization.jsonl").read_bytes(), read_results),
        "steps.json": ((bundle / "scheduler/steps.json").read_bytes(), _step_table),
        "picture.png": (_png(), lambda path: load_readings(path, (8, 8))),
        "request.json": (b'{"prompt": "a pig", "seed": 1, "steps": 11, "guidance": 1.5, "height": 64}', _request),
        "unet.json": ((model / "unet/config.json").read_bytes(), _in_place(model, "unet/config.json", check_kind)),
        "index.json": (
            (bundle / "model_index.json").read_bytes(),
            _in_place(parts, "model_index.json", lambda place: Configuration.load(place, tokenizers=False)),
        ),
    }


def tried(given: dict[str, tuple[bytes, Reader]], name: str, folder: Path, examples: int) -> None:
    good, read = given[name]
    refused = 0
    for seed in range(examples):
        path = folder / name
        path.write_bytes(hostile.changed(good, seed))
        try:
            read(path)
        except NemoEdgeError:
            refused += 1
        except Exception as error:
            raise AssertionError(f"example {seed} of {name}: {type(error).__name__}: {error}") from error
    assert refused, "of so many broken files one at least is refused"


NAMES = [
    *(
        "p.txt",
        "p.csv",
        "p.tsv",
        "p.json",
        "p.jsonl",
        "r.toml",
        "n.json",
        "o.csv",
        "m.npy",
        "c.safetensors",
        "s.pt",
        "w.safetensors",
        "g.onnx",
    ),
    *("manifest.json", "policies.json", "measurement.json", "localization.jsonl", "steps.json", "picture.png", "request.json", "unet.json"),
    "index.json",
]


@pytest.fixture(scope="module")
def given(tiny_bundle: Path, tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[bytes, Reader]]:
    found = readers(tiny_bundle, tiny_recipe, tmp_path_factory.mktemp("readers"))
    assert list(found) == NAMES
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_reader_raises_errors_of_ours_alone(given: dict[str, tuple[bytes, Reader]], name: str, tmp_path: Path) -> None:
    tried(given, name, tmp_path, EXAMPLES)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_reader_raises_errors_of_ours_alone_of_many(given: dict[str, tuple[bytes, Reader]], name: str, tmp_path: Path) -> None:
    tried(given, name, tmp_path, MANY)

"""Every reader of files that others write, each with a good file of its kind; no test.

A file's name says what reads it. Where a reader takes a folder, the file is put into the place of a good one.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from onnx import TensorProto, helper
from originals import of_sd1, write
from PIL import Image
from plans import sidecar, standard
from report.test_levels import campaign
from report.test_quantized import RECORDED
from safetensors.numpy import save
from serving.audit.test_base import BEGUN, made
from signing import write_certificates, write_key

from nemo_edge import demo
from nemo_edge.backends import onnxruntime
from nemo_edge.backends.tensorrt.plans import open_plan_file, plans_of, read_header
from nemo_edge.bundle.engines import inspect
from nemo_edge.bundle.manifest import MANIFEST, SIGNATURE, open_bundle, verify
from nemo_edge.bundle.policies import Policies
from nemo_edge.bundle.references import strays
from nemo_edge.bundle.revocations import Revocations, revoke
from nemo_edge.bundle.signature import Signer, Trust, check_signed_bytes, public_key_of, sign, sign_bytes, signed_manifest
from nemo_edge.export.quantization.ranges import Histogram, Ranges
from nemo_edge.export.quantization.record import RECORD, Quantized
from nemo_edge.graph.onnxfile import open_graph
from nemo_edge.localization.calibration import Calibration, load_statistics
from nemo_edge.localization.groups import Group, Member, Variant, read_groups
from nemo_edge.localization.localizer import read_results
from nemo_edge.measure.attacks.campaign import ATTACK, Campaign
from nemo_edge.measure.mitigation import Measurement
from nemo_edge.measure.readings import load_readings
from nemo_edge.model._filekinds import check_model, read_contents
from nemo_edge.model._sizes import architecture_of, sized
from nemo_edge.model._tokenizer import FileTokenizer
from nemo_edge.model.architectures import configurations
from nemo_edge.model.configuration import Configuration
from nemo_edge.model.inspection import check_kind
from nemo_edge.model.marker import MARKER, RandomWeights, read_marker
from nemo_edge.model.masks import read_mask
from nemo_edge.model.neurons import NeuronSet, OfficialRow, official_neurons, write_official_csv
from nemo_edge.model.singlefile import _original
from nemo_edge.recipe.prompts import read_prompts
from nemo_edge.recipe.recipe import load_recipe
from nemo_edge.recipe.settings import SamplingSettings
from nemo_edge.release._cache import cache_of, times_of
from nemo_edge.sampling.steptable import read_table
from nemo_edge.serving._delivery import Delivery, holding
from nemo_edge.serving.audit.campaign import _check_output
from nemo_edge.serving.modelconfig import read_config, recorded_version
from nemo_edge.serving.remotes.base import decode_picture
from nemo_edge.serving.repository import ship
from nemo_edge.serving.requests import read_json, read_request
from nemo_edge.serving.versions import DESCRIPTION, read_engine, read_pipeline
from nemo_edge.system.errors import InputError
from nemo_edge.system.weights import weights_of

Reader = Callable[[Path], object]


class Given(NamedTuple):
    """A good file, and what reads it."""

    good: bytes
    read: Reader


class Folders(NamedTuple):
    """What readers of folders are given, each a copy."""

    recipe: Path
    model: Path
    bundle: Path
    """Whole and signed."""
    parts: Path
    """A bundle's configurations and tokenizer, without what is large."""
    repository: Path
    scratch: Path
    trust: Trust


def folders(bundle: Path, recipe: Path, folder: Path) -> Folders:
    """Make them of a bundle that may be shipped, and of the recipe that it was built from."""
    key, public = write_key(folder / "key.pem")
    revoke(folder / "revocations.json", ["0" * 64], Signer(key=key))
    trust = Trust(public_key=public, revocations=folder / "revocations.json")
    whole = shutil.copytree(bundle, folder / "bundle")
    sign(whole, Signer(key=key))
    ship(whole, folder / "repository", trust=trust)
    parts = shutil.copytree(bundle, folder / "parts", ignore=shutil.ignore_patterns("report", "*.onnx*"))
    shutil.copyfile(demo.CHECKPOINT / "tokenizer/tokenizer.json", parts / "tokenizer/tokenizer.json")  # transformers 4 writes none
    model = shutil.copytree(recipe.parent / "model", folder / "model")
    return Folders(recipe, model, whole, parts, folder / "repository", folder, trust)


def readers(bundle: Path, recipe: Path, folder: Path) -> dict[str, Given]:
    """Every reader, by the name of the file that it is given."""
    given = folders(bundle, recipe, folder)
    of_each = (_prompts(given), _neurons(given), _weights(given), _models(given), _bundles(given), _results(given), _signatures(given))
    return {name: Given(*pair) for found in (*of_each, _served(given), _engines(given), _others(given)) for name, pair in found.items()}


Pairs = Mapping[str, tuple[bytes, Reader]]


def _in_place(folder: Path, name: str, read: Reader) -> tuple[bytes, Reader]:
    """What is good in a folder, and a reader of the folder in which a file takes its place."""
    good = (folder / name).read_bytes()

    def put(path: Path) -> object:
        shutil.copyfile(path, folder / name)
        try:
            return read(folder)
        finally:
            (folder / name).write_bytes(good)

    return good, put


def _prompts(given: Folders) -> Pairs:
    table = 'Caption;URL;image\na pig;u;\n"an ""owl""";v;\n'
    return {
        "p.txt": (b"a pig\nan owl\n", read_prompts),
        "p.csv": (table.encode(), read_prompts),
        "p.tsv": (table.replace(";", "\t").encode("utf-16"), read_prompts),
        "p.json": (json.dumps([{"prompt": "a pig", "type": "VM"}, "an owl"]).encode(), read_prompts),
        "p.jsonl": (b'{"prompt": "a pig"}\n"an owl"\n', read_prompts),
        "r.toml": (given.recipe.read_bytes(), load_recipe),
    }


def _neurons(given: Folders) -> Pairs:
    own = NeuronSet.load(given.bundle / "neurons.json")
    lists = [[0] for _ in own.layers]
    row = OfficialRow(caption="a;b", url="u", initial=lists, initial_score=0.5, refined=lists, refined_score=0.1)
    write_official_csv(given.scratch / "o.csv", [row])
    return {
        "n.json": ((given.bundle / "neurons.json").read_bytes(), NeuronSet.load),
        "o.csv": ((given.scratch / "o.csv").read_bytes(), lambda path: official_neurons(path, own.layers)),
        "m.npy": (_npy(np.ones(own.total)), lambda path: read_mask(own, path)),
    }


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _weights(given: Folders) -> Pairs:
    layers = NeuronSet.load(given.bundle / "neurons.json").layers
    torch.save([[torch.ones(layer.width) for layer in layers] for _ in range(2)], given.scratch / "s.pt")
    tensors = {"lora_unet_a.lora_down.weight": np.ones((2, 3), np.float32), "b": np.ones(4, np.int8), "c.bias": np.ones(0, np.float16)}
    return {
        "c.safetensors": ((given.bundle / "calibration.safetensors").read_bytes(), Calibration.load),
        "s.pt": ((given.scratch / "s.pt").read_bytes(), lambda path: load_statistics(path, layers)),
        "w.safetensors": (save(tensors, {"modelspec.resolution": "64x64"}), read_contents),
        "header.json": (_header(given.scratch), _whole_file),
        "shards.json": (b'{"weight_map": {"a": "diffusion_pytorch_model-00001-of-00002.safetensors"}}', _shards),
    }


def _header(folder: Path) -> bytes:
    """What a whole model in one file says of its tensors."""
    content = write(folder / "one.safetensors", of_sd1()).read_bytes()
    return content[8 : 8 + int.from_bytes(content[:8], "little")].strip()


def _whole_file(path: Path) -> object:
    """A file with this header, and as many bytes behind it as it says, within reason."""
    header, size = path.read_bytes(), 0
    try:
        entries = json.loads(header)
        size = max(entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__")
    except Exception:  # noqa: BLE001  whatever it is, it is what the reader is tried with
        size = 0
    whole = path.with_name("one.safetensors")
    with whole.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + (size if isinstance(size, int) and 0 < size < 1 << 40 else 0))
    contents = read_contents(whole)
    check_model(whole, contents)
    return sized(whole, contents, architecture_of(whole, contents))


def _shards(path: Path) -> object:
    part = path.parent / "unet"
    part.mkdir(exist_ok=True)
    (part / "diffusion_pytorch_model-00001-of-00002.safetensors").touch()
    shutil.copyfile(path, part / "diffusion_pytorch_model.safetensors.index.json")
    found = weights_of(part)
    if found is None or found.missing():
        raise InputError("shards are missing")
    return found


def _models(given: Folders) -> Pairs:
    parts, model = given.parts, given.model
    kinds = {"unet.json": "unet/config.json", "vae.json": "vae/config.json", "text.json": "text_encoder/config.json"}
    marker = RandomWeights(name="sd15", seed=0, dtype="fp32", architecture="0" * 64, versions={"torch": "2"})
    kinds |= {"schedule.json": "scheduler/scheduler_config.json", "parts.json": "model_index.json"}
    return {
        **{name: _in_place(model, place, check_kind) for name, place in kinds.items()},
        "index.json": _in_place(parts, "model_index.json", lambda folder: Configuration.load(folder, tokenizers=False)),
        "betas.json": _in_place(parts, "scheduler/scheduler_config.json", lambda folder: Configuration.load(folder, tokenizers=False)),
        "words.json": _in_place(parts, "tokenizer/tokenizer_config.json", lambda folder: FileTokenizer(folder / "tokenizer")),
        "tokenizer.json": _in_place(parts, "tokenizer/tokenizer.json", lambda folder: FileTokenizer(folder / "tokenizer")),
        "architecture.json": _in_place(model, "model_index.json", lambda folder: configurations(str(folder))),
        "m.yaml": (b"model:\n  params:\n    image_size: 64\n    parameterization: eps\n", _original),
        MARKER: (marker.model_dump_json().encode(), _marked),
    }


def _marked(path: Path) -> object:
    found = read_marker(path.parent)
    if found is None:
        raise InputError("it is none of ours")
    return found


def _bundles(given: Folders) -> Pairs:
    bundle = given.bundle

    def look(folder: Path) -> object:
        return open_bundle(folder), verify(folder, ["neurons.json"])

    return {
        "manifest.json": _in_place(bundle, MANIFEST, look),
        "policies.json": ((bundle / "policies.json").read_bytes(), Policies.load),
        "steps.json": _in_place(bundle, "scheduler/steps.json", read_table),
        "g.onnx": ((bundle / "vae_decoder/model.onnx").read_bytes(), lambda path: open_graph(path).locations()),
    }


def _results(given: Folders) -> Pairs:
    counted = Histogram()
    counted.add(np.arange(9, dtype=np.float32))
    ranges = {"component": "unet", "source": "s", "prompts": ["a dog"], "seed": 0, "sampling": {"steps": 3}, "version": "1"}
    found = Ranges.model_validate({**ranges, "inputs": {"a": counted.limits()}, "outputs": {}})
    return {
        "measurement.json": ((given.bundle / "measurement.json").read_bytes(), lambda path: Measurement.read(path.parent)),
        "localization.jsonl": ((given.bundle / "localization.jsonl").read_bytes(), read_results),
        "groups.jsonl": (_group(NeuronSet.load(given.bundle / "neurons.json")).model_dump_json().encode() + b"\n", read_groups),
        ATTACK: (campaign().model_dump_json().encode(), lambda path: Campaign.read(path.parent)),
        RECORD: (RECORDED.model_dump_json().encode(), lambda path: Quantized.read(path.parent)),
        "ranges.json": (found.model_dump_json().encode(), Ranges.read),
        "audit.json": (made().model_dump_json().encode(), lambda path: _check_output(path, BEGUN.inputs)),
        "times.json": (b'{"export": 12.5, "measure": 3}', _times),
    }


def _group(neurons: NeuronSet) -> Group:
    member = Member(prompt="a pig", variant=False, neurons=2, limit=0.5, score=0.2, overlap=1)
    variant = Variant(prompt="a pig", text="pig", kind="drop", score=0.9, before=0.8, after=0.1)
    facts = {"inputs": "i", "name": "pigs", "threshold": 0.5, "same": 0, "samples": 7, "seconds": 1}
    return Group.model_validate({**facts, "members": (member,), "neurons": neurons, "variants": (variant,)})


def _times(path: Path) -> object:
    output = path.parent / "out"
    cache_of(output).mkdir(exist_ok=True)
    shutil.copyfile(path, cache_of(output) / "times.json")
    found = times_of(output)
    if not found:
        raise InputError("no times are known")
    return found


def _signatures(given: Folders) -> Pairs:
    key, certificate, authority = write_certificates(given.scratch)
    revoked = given.trust.revocations
    assert revoked is not None
    signer = Signer(key=key)
    by_key, by_certificate = (sign_bytes(b"c", "n", each) for each in (signer, signer.model_copy(update={"certificate": certificate})))

    return {
        "revocations.json": (revoked.read_bytes(), lambda path: Revocations.load(path, given.trust)),
        SIGNATURE: _in_place(given.bundle, SIGNATURE, lambda folder: signed_manifest(folder, given.trust)),
        "key.pem": (key.read_bytes(), public_key_of),
        "key.pub": (public_key_of(key), lambda path: check_signed_bytes(b"c", "n", by_key, Trust(public_key=path), "it")),
        "authority.crt": (
            authority.read_bytes(),
            lambda path: check_signed_bytes(b"c", "n", by_certificate, Trust(authorities=(path,)), "it"),
        ),
    }


def _served(given: Folders) -> Pairs:
    repository = given.repository
    pipeline, engine = (repository / name / "1" for name in ("pipeline", "vae_decoder"))
    former = Delivery(number=2, manifest="0" * 64, former={"pipeline": None, "unet": "name: 'unet'"}).model_dump_json().encode()
    request = b'{"prompt": "a pig", "seed": 1, "steps": 11, "guidance": 1.5, "height": 64}'
    return {
        "pipeline.json": _in_place(pipeline, DESCRIPTION, read_pipeline),
        "engine.json": _in_place(engine, DESCRIPTION, read_engine),
        "config.pbtxt": ((repository / "pipeline/config.pbtxt").read_bytes(), lambda path: recorded_version(read_config(path))),
        "delivery.json": (former, _deliver),
        "request.json": (request, lambda path: read_request(read_json(path.read_bytes()), SamplingSettings())),
    }


def _deliver(path: Path) -> None:
    repository = path.parent / "repository"
    repository.mkdir(exist_ok=True)
    shutil.copyfile(path, repository / ".nemo-edge.json")
    with holding(repository):
        pass


def _engines(given: Folders) -> Pairs:
    name = "engines/unet_masked.onnxruntime.cpu.json"
    place = given.scratch / "engine"
    for folder in (place / "engines", place / "unet_masked"):
        folder.mkdir(parents=True)
    ports = [helper.make_tensor_value_info(port, TensorProto.FLOAT, [1]) for port in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", ports[:1], ports[1:])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    (place / "unet_masked/model.onnx").write_bytes(made.SerializeToString())
    shutil.copyfile(given.bundle / name, place / name)

    def opened(folder: Path) -> None:
        with onnxruntime.open_engine(folder, "unet_masked", "cpu"):
            pass

    def named(folder: Path) -> object:
        return inspect(folder), plans_of(folder, [name], ["unet_masked/model.onnx"]), [*strays(folder, [name], [name])]

    return {
        "session.json": _in_place(place, name, opened),
        "sidecar.json": _in_place(given.bundle, name, named),
        "plan.json": (sidecar().model_dump_json().encode(), open_plan_file),
        "e.plan": (standard(), read_header),
    }


def _others(given: Folders) -> Pairs:
    file = io.BytesIO()
    Image.fromarray(np.arange(768, dtype=np.uint8).reshape(16, 16, 3)).save(file, "PNG")
    return {
        "picture.png": (file.getvalue(), lambda path: load_readings(path, (8, 8))),
        "answer.png": (file.getvalue(), lambda path: decode_picture(path.read_bytes(), "the answer")),
    }

"""Configurations: Triton's own schema reads them, and they say what the graphs and plans say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tritonclient.grpc")

import plans
from tritonclient.grpc.model_config_pb2 import DataType, ModelInstanceGroup

from nemo_edge.backends.tensorrt.plans import Tensor
from nemo_edge.serving.modelconfig import (
    KEPT,
    ROWS,
    Service,
    engine_config,
    engine_signature,
    pipeline_config,
    read_config,
    recorded_version,
    write_config,
)
from nemo_edge.serving.requests import INPUTS
from nemo_edge.serving.versions import ServerBackend
from nemo_edge.system.errors import InputError

UNET = {
    "sample": Tensor(dtype="float16", dims=("batch", 4, "height", "width")),
    "timestep": Tensor(dtype="float16", dims=("batch",)),
    "encoder_hidden_states": Tensor(dtype="float16", dims=("batch", 77, 768)),
    "value_mask": Tensor(dtype="float16", dims=("batch", 5440)),
}
NOISE = {"out_sample": Tensor(dtype="float16", dims=("batch", 4, "height", "width"))}
PARAMETERS = {"manifest": "0" * 64, "version": "7"}


def unet_config(backend: ServerBackend, rows: int | None = None, on_gpu: bool = True, **changes: Any) -> Any:
    signature = engine_signature(changes.get("inputs", UNET), NOISE, backend, rows)
    return engine_config(Service("unet", "unet", backend, on_gpu, PARAMETERS), signature, (64, 64), changes.get("plans", ()))


def port(ports: Any, name: str) -> tuple[str, list[int]]:
    (found,) = (p for p in ports if p.name == name)
    return DataType.Name(found.data_type), list(found.dims)


@pytest.mark.parametrize(
    "config", [unet_config("python"), unet_config("onnxruntime"), pipeline_config(Service("p", "pipeline", "python", False, {}), 2)]
)
def test_a_configuration_is_read_as_it_was_written(tmp_path: Path, config: Any) -> None:
    write_config(tmp_path / "config.pbtxt", config)
    assert read_config(tmp_path / "config.pbtxt") == config
    assert list(tmp_path.iterdir()) == [tmp_path / "config.pbtxt"]


def test_a_number_that_is_too_great_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.pbtxt").write_text(f"max_batch_size: {'9' * 30}\n")
    with pytest.raises(InputError, match=r"config.pbtxt is no configuration of a Triton model: .*out of range"):
        read_config(tmp_path / "config.pbtxt")


def test_text_that_the_schema_does_not_take_is_refused_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "config.pbtxt").write_text('name: "unet"\nmax_batchsize: 3\n')
    with pytest.raises(InputError, match=r"config.pbtxt is no configuration of a Triton model: 2:1"):
        read_config(tmp_path / "config.pbtxt")


def test_our_runners_take_float32_and_native_backends_what_the_graph_has() -> None:
    ours, native = unet_config("python"), unet_config("onnxruntime")
    assert port(ours.input, "sample") == ("TYPE_FP32", [4, -1, -1])
    assert port(native.input, "sample") == ("TYPE_FP16", [4, -1, -1])
    assert port(native.output, "out_sample") == ("TYPE_FP16", [4, -1, -1])
    assert (ours.backend, native.backend) == ("python", "onnxruntime")


def test_the_batch_is_not_in_the_dims_and_one_number_a_row_is_reshaped() -> None:
    config = unet_config("python")
    assert config.max_batch_size == ROWS
    assert port(config.input, "value_mask") == ("TYPE_FP32", [5440])
    (timestep,) = (p for p in config.input if p.name == "timestep")
    assert list(timestep.dims) == [1]
    assert timestep.HasField("reshape")
    assert list(timestep.reshape.shape) == []


def test_batches_form_without_a_delay_and_two_versions_are_served() -> None:
    config = unet_config("python")
    assert config.HasField("dynamic_batching")
    assert config.dynamic_batching.max_queue_delay_microseconds == 0
    assert config.version_policy.latest.num_versions == KEPT
    assert config.parameters["manifest"].string_value == "0" * 64
    assert recorded_version(config) == 7


def test_a_pinned_batch_is_in_the_dims_of_native_backends_alone() -> None:
    inputs = {name: tensor.model_copy(update={"dims": (2, *tensor.dims[1:])}) for name, tensor in UNET.items()}
    native, ours = unet_config("onnxruntime", inputs=inputs), unet_config("python", inputs=inputs)
    assert (native.max_batch_size, ours.max_batch_size) == (0, ROWS)
    assert port(native.input, "timestep") == ("TYPE_FP16", [2])
    assert not native.HasField("dynamic_batching")
    assert port(ours.input, "timestep") == ("TYPE_FP32", [1])


def test_a_plan_s_greatest_rows_files_and_profiles_are_in_its_configuration() -> None:
    profile = dict.fromkeys(UNET, ((1, 4), (2, 4), (8, 4)))
    both = [
        plans.standard_sidecar(plan=f"engines/unet_masked.tensorrt.{target}.plan", targets=(target,), profiles=(profile, profile))
        for target in ("sm89", "sm120")
    ]
    config = unet_config("tensorrt", rows=8, plans=both)
    assert config.max_batch_size == 8
    assert dict(config.cc_model_filenames) == {"8.9": "unet_masked.tensorrt.sm89.plan", "12.0": "unet_masked.tensorrt.sm120.plan"}
    assert list(config.instance_group[0].profile) == ["0", "1"]
    assert config.instance_group[0].kind == ModelInstanceGroup.KIND_GPU


def test_a_plan_for_later_gpus_too_is_the_default_of_all() -> None:
    plan = plans.standard_sidecar(plan="engines/unet.tensorrt.sm80-ampere_plus.plan", hardware_compatibility="AMPERE_PLUS")
    config = unet_config("tensorrt", plans=[plan])
    assert config.default_model_filename == "unet.tensorrt.sm80-ampere_plus.plan"
    assert not config.cc_model_filenames
    assert not config.instance_group[0].profile


def test_engines_are_warmed_up_with_and_without_guidance() -> None:
    config = unet_config("python")
    assert [entry.batch_size for entry in config.model_warmup] == [1, 2]
    shapes = {name: list(given.dims) for name, given in config.model_warmup[1].inputs.items()}
    assert shapes == {"sample": [4, 64, 64], "timestep": [1], "encoder_hidden_states": [77, 768], "value_mask": [5440]}


@pytest.mark.parametrize(("backend", "on_gpu", "kind"), [("python", False, "CPU"), ("python", True, "MODEL"), ("onnxruntime", True, "GPU")])
def test_where_a_model_runs(backend: ServerBackend, on_gpu: bool, kind: str) -> None:
    (group,) = unet_config(backend, on_gpu=on_gpu).instance_group
    assert ModelInstanceGroup.Kind.Name(group.kind) == f"KIND_{kind}"


def test_bfloat16_is_for_our_runners_alone() -> None:
    inputs = {name: tensor.model_copy(update={"dtype": "bfloat16"}) for name, tensor in UNET.items()}
    assert port(unet_config("python", inputs=inputs).input, "sample")[0] == "TYPE_FP32"
    with pytest.raises(InputError, match="clients have no type for bfloat16"):
        unet_config("onnxruntime", inputs=inputs)


def test_all_of_the_pipeline_s_inputs_but_the_prompt_are_optional() -> None:
    config = pipeline_config(Service("pipeline", "pipeline", "python", False, {}), 3)
    assert {p.name: p.optional for p in config.input} == {name: name != "prompt" for name in INPUTS}
    assert port(config.output, "image") == ("TYPE_UINT8", [-1, -1, -1, 3])
    assert (config.max_batch_size, config.instance_group[0].count, config.version_policy.latest.num_versions) == (0, 3, 1)

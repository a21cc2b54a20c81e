"""What was not tested follows from what was."""

from __future__ import annotations

import pytest

from nemo_edge.recipe.settings import GateSettings, LatencySettings, LocalizationSettings
from nemo_edge.recipe.targets import EngineSettings, TensorRtSettings
from nemo_edge.report._untested import untested
from report.test_evidence import evidence, latency, measurement, mitigation, policies, recipe, shown


def lines(**changes: object) -> str:
    return "\n".join(untested(evidence(**changes)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "line",
    [
        "Text that people may send, prompts that are not on the list: 3 prompts",
        "Text that is searched for so as to bring a memory back",
        "Embeddings that are optimised by somebody who has the weights, which bring memories back (Finding DoRI, arXiv 2507.16880).",
        "train the memory back, start from a part of the picture (image-to-image)",
        "Copies of training pictures that are not known: pictures were compared with the 3 known ones.",
        "Other seeds:",
        "up blocks",
        "Quality at large",
        "GPUs:",
        "SSCD",
        "LPIPS",
    ],
)
def test_the_limits_of_every_build_on_a_cpu(line: str) -> None:
    assert line in lines()


def test_what_is_absent_is_named_and_what_is_there_is_not() -> None:
    assert "under the policy triggered: what was measured is always" in lines(policies=policies())
    assert "triggered" not in lines()
    assert "no times were taken" in lines(latency=None)
    assert "no times were taken" not in lines(latency=latency())
    assert "text_encoder: masked" in lines(latency=latency())
    assert "no training picture is known, so only" in lines(training=False)
    assert "that are not known" not in lines(training=False)
    assert "Gates that had nothing to measure: slow_down.baked." in lines()
    assert "Gates that had nothing to measure: replication.baked and slow_down.baked." in lines(training=False)
    gpu = lines(recipe=recipe(engine=EngineSettings(provider="cuda"), localization=LocalizationSettings(layers="all")))
    assert "Other hardware" in gpu
    assert "GPUs:" not in gpu
    assert "up blocks" not in gpu
    openvino = recipe(engine=EngineSettings(backend="openvino", precision="bf16"))
    assert "Other hardware: what was measured was run by OpenVINO in bf16 on one machine's CPU." in lines(recipe=openvino)
    why = "this CPU has no instructions for bf16"
    without = latency().model_copy(update={"left_out": {"eager bf16": why, "openvino bf16": why}})
    assert f"Times of eager bf16 and openvino bf16: {why}, and only imitates them." in lines(latency=without)
    assert "Times of" not in lines(latency=latency())
    own = recipe(engine=EngineSettings(backend="tensorrt"), tensorrt=TensorRtSettings())
    assert "Other hardware: every engine was run by TensorRT on one machine; those of ONNX Runtime were not run." in lines(recipe=own)
    assert "compiled and not run" not in lines(recipe=own)
    assert "TensorRT engines in this bundle: they were compiled and not run" in lines(recipe=recipe(tensorrt=TensorRtSettings()))
    assert "compiled and not run" not in lines()
    assert "eager_ratio" not in lines(recipe=recipe(latency=LatencySettings(), gates=GateSettings(latent_drift=1.0, eager_ratio=1.0)))


def test_copies_of_parts_are_counted_and_said_to_decide_nothing() -> None:
    judged = (mitigation(after=shown(0, local_copies=2), before=shown(4, local_copies=4)), mitigation())
    measured = measurement(local_threshold=0.6, local_pairs=12)
    variants = tuple(v.model_copy(update={"mitigations": judged}) for v in measured.variants)
    said = lines(measurement=measured.model_copy(update={"variants": variants}))
    counted = "before 4, baked 2 and masked 2 of 4 pictures of prompts whose own training picture is known"
    assert f"they were counted ({counted}) and decide nothing, a threshold from 12 unrelated" in said
    assert "unrelated pairs" not in lines(measurement=measurement(local_threshold=0.6, local_pairs=1000))
    assert "parts of a training picture" not in lines()


def test_prompts_without_a_training_picture_are_counted() -> None:
    measured = measurement()
    judged = (mitigation(training=False), mitigation(after=shown(0, sscd=0.2)), mitigation())
    variants = tuple(v.model_copy(update={"mitigations": judged}) for v in measured.variants)
    said = lines(measurement=measured.model_copy(update={"variants": variants}))
    assert "Whether 1 prompt gives copies of its own training picture: it is not known." in said
    assert "compared with the 2 known ones." in said
    assert "SSCD" not in said

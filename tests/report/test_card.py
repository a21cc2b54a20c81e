"""The model card has metadata the hub takes, and says how to load the bundle."""

from __future__ import annotations

from huggingface_hub import ModelCard

from nemo_edge.model.configuration import LCM_PIPELINE
from nemo_edge.report._card import model_card
from report.test_evidence import evidence, recipe


def test_the_metadata_is_the_hubs() -> None:
    card = ModelCard(model_card(evidence(recipe=recipe("CompVis/stable-diffusion-v1-4"))))
    data = card.data.to_dict()
    assert (data["license"], data["library_name"], data["pipeline_tag"]) == ("other", "diffusers", "text-to-image")
    assert data["base_model"] == "CompVis/stable-diffusion-v1-4"
    assert {"stable-diffusion", "onnx", "text-to-image", "nemo-edge", "memorization-mitigation"} <= set(data["tags"])


def test_it_says_how_to_load_and_what_holds() -> None:
    text = model_card(evidence())
    assert 'ORTStableDiffusionPipeline.from_pretrained(".")' in text
    assert "nemo-edge generate ." in text
    for heading in ("## Gates", "## What leaked, and what is left", "## Times", "## Limits", "## Verify and rebuild", "## Provenance"):
        assert heading in text
    assert "(0 of 4 a prompt: at most 53 % with 95 % confidence)" in text
    assert "no input of the graph gives them back" in text
    assert "what somebody who has the weights can do" in text
    attack = "nemo-edge attack toy --prompts m --checkpoint c --controls FOLDER -o attack.json"
    assert f"nemo-edge verify toy\nnemo-edge build toy.toml\n{attack}\n```" in text
    xl = model_card(evidence(family="StableDiffusionXLPipeline", latency=None))
    assert "ORTStableDiffusionXLPipeline" in xl
    assert "## Times" not in xl
    assert 'ORTLatentConsistencyModelPipeline.from_pretrained(".")' in model_card(evidence(family=LCM_PIPELINE))
    masked = model_card(evidence(variants=("masked",)))
    assert "optimum" not in masked
    assert "value_mask" in masked

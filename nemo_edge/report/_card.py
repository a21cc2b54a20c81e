"""The model card: what the bundle is, how to load it, and what holds, for the Hugging Face hub and for people."""

from __future__ import annotations

__all__ = ["base_model", "model_card"]

import re
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from nemo_edge.report._markdown import escape, gates_table, latency_table, levels_table, lights_line, mitigation_table, table
from nemo_edge.report._untested import untested
from nemo_edge.report._verdict import verdict_of
from nemo_edge.report.evidence import Evidence

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_TAGS = ["onnx", "text-to-image", "nemo-edge", "memorization-mitigation"]


def model_card(evidence: Evidence) -> str:
    """Return the card: YAML front matter, then Markdown. Prompts in it are escaped."""
    tags = (["stable-diffusion-xl"] if "XL" in evidence.family else []) + ["stable-diffusion", *_TAGS]
    data = ModelCardData(
        license="other",
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=tags,
        base_model=base_model(evidence.recipe.checkpoint.path),
    )
    verdict = verdict_of(evidence)
    parts = [
        f"# {escape(evidence.name)}",
        _intro(evidence),
        f"**{verdict.headline}**",
        levels_table(evidence),
        lights_line(evidence),
        "\n".join(f"- {line}" for line in verdict.lines),
    ]
    parts += ["## How to use it", *_usage(evidence)]
    parts += ["## What leaked, and what is left", mitigation_table(evidence), "## Gates", gates_table(evidence)]
    if evidence.latency is not None:
        parts += ["## Times", latency_table(evidence), f"Measured on {escape(evidence.latency.machine.words)}."]
    parts += ["## Limits", "What was not tested:", "\n".join(f"- {line}" for line in untested(evidence))]
    parts += ["## Provenance", _provenance(evidence)]
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"))


def base_model(checkpoint: str) -> str | None:
    """Return the hub id that a recipe's checkpoint is; None for a folder or a file."""
    local = checkpoint.endswith((".safetensors", ".ckpt")) or Path(checkpoint).expanduser().exists()
    return checkpoint if _HUB_ID.fullmatch(checkpoint) and not local else None


def _intro(evidence: Evidence) -> str:
    variants = {
        "baked": "In `unet/` the neurons' weights are zero: no input of the graph gives them back.",
        "masked": "`unet_masked/` takes one more input, `value_mask`, a factor per neuron and sample that decides what is silenced.",
    }
    source = base_model(evidence.recipe.checkpoint.path) or Path(evidence.recipe.checkpoint.path).name
    text = (
        f"ONNX engines of {escape(source)} ({escape(evidence.family)}, {evidence.recipe.export.dtype}) that silence the value neurons in "
        "which NeMo (Hintersdorf et al. 2024) found memories of training pictures. `report/index.html` shows what was drawn and measured."
    )
    return " ".join([text, *(variants[v.variant] for v in evidence.measurement.variants if v.variant in variants)])


def _usage(evidence: Evidence) -> list[str]:
    prompt = "a red bicycle in front of a house"
    call = f'nemo-edge generate . "{prompt}" --out bicycle.png --variant {evidence.measurement.variants[0].variant}'
    command = f"From the command line, with the variant you want:\n\n```sh\n{call}\n```"
    if all(v.variant != "baked" for v in evidence.measurement.variants):
        return [command]
    loader = f"ORT{evidence.family}"  # optimum's name for its class of the same pipeline
    code = f'from optimum.onnxruntime import {loader}\n\npipeline = {loader}.from_pretrained(".")\n'
    code += f'pipeline("{prompt}").images[0].save("bicycle.png")'
    return [f"In Python, with `optimum-onnx`:\n\n```python\n{code}\n```", command]


def _provenance(evidence: Evidence) -> str:
    rows = [
        (escape(key), f"`{re.sub('[`|]', ' ', value)}`")
        for key, value in evidence.facts.items()
        if not key.startswith(("Checkpoint", "Input"))
    ]
    if evidence.machine is not None:
        rows.append(("Machine", escape(evidence.machine.words)))
    return table(("What", "Value"), rows, right=2)

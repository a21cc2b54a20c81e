"""The model card: what the bundle is, how to load it, and what holds, for the Hugging Face hub and for people."""

from __future__ import annotations

__all__ = ["model_card"]

import re

from huggingface_hub import ModelCard, ModelCardData

from nemo_edge.export.quantization.record import Quantized
from nemo_edge.report._commands import commands_of
from nemo_edge.report._identity import base_model, identity_of, model_name
from nemo_edge.report._markdown import escape, gates_table, latency_table, levels_table, lights_line, mitigation_table, table
from nemo_edge.report._quantized import kept_of, quantized_of
from nemo_edge.report._untested import untested
from nemo_edge.report._verdict import verdict_of
from nemo_edge.report.evidence import Evidence

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
    if evidence.quantized is not None:
        parts += ["## Quantization", *_quantization(evidence.quantized)]
    parts += ["## Limits", "What was not tested:", "\n".join(f"- {line}" for line in untested(evidence))]
    parts += ["## Verify and rebuild", _checks(evidence), "## Provenance", _provenance(evidence)]
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"))


def _intro(evidence: Evidence) -> str:
    variants = {
        "baked": "In `unet/` the neurons' weights are zero: no input of the graph gives them back.",
        "masked": "`unet_masked/` takes one more input, `value_mask`, a factor per neuron and sample that decides what is silenced.",
    }
    model = model_name(evidence.recipe.checkpoint.path)
    text = (
        f"ONNX engines of {escape(model)} ({escape(evidence.family)}, {evidence.recipe.export.dtype}) that silence the value neurons in "
        "which NeMo (Hintersdorf et al. 2024) found memories of training pictures. `report/index.html` shows what was drawn and measured."
    )
    hardening = evidence.recipe.hardening
    if hardening is not None:
        text += f" With these silenced, its UNet was fine-tuned against embedding attacks ({hardening.rounds} rounds of hardening)."
    quantization = evidence.recipe.quantization
    if quantization is not None:
        text += f" Its UNet is quantized ({quantization.scheme}; `quantization.json` has each module)."
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


def _quantization(record: Quantized) -> list[str]:
    rows = [(escape(name), escape(value)) for name, value in quantized_of(record)]
    kept = [(escape(each.why), str(len(each.modules)), escape(each.named)) for each in kept_of(record)]
    return [table(("What", "Value"), rows, right=2), table(("Stays in float32, since", "Modules", "Such as"), kept, right=3)]


def _provenance(evidence: Evidence) -> str:
    told = [row for row in identity_of(evidence) if row.name != "Time"]  # the card of the same build is the same
    rows = [(escape(row.name), _code(row.value) if row.code else escape(row.value, 600)) for row in told]
    return table(("What", "Value"), rows, right=2)


def _checks(evidence: Evidence) -> str:
    """How to verify and to rebuild it, in lines for a shell."""
    lines = "\n".join(_plain(command.line) for command in commands_of(evidence))
    return f"Where the bundle, its recipe, the list of prompts and the checkpoint lie side by side:\n\n```sh\n{lines}\n```"


def _code(value: str) -> str:
    return f"`{re.sub('[`|]', ' ', _plain(value))}`"


def _plain(text: str) -> str:
    """Text on one line that ends no block of code."""
    return "".join(c if c.isprintable() else " " for c in text).replace("```", "")

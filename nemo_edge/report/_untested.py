"""What a report must not be read to say: everything that was not tested, derived from what was."""

from __future__ import annotations

__all__ = ["untested"]

from collections.abc import Iterator

from nemo_edge.backends.tensorrt.fit import product_of
from nemo_edge.measure.localcopies import ENOUGH_PAIRS
from nemo_edge.recipe.recipe import Recipe
from nemo_edge.recipe.settings import GateSettings
from nemo_edge.report._numbers import count, joined
from nemo_edge.report.evidence import Evidence


def untested(evidence: Evidence) -> tuple[str, ...]:
    """Return one sentence for each thing that was not tested, the most important first."""
    return (*_always(evidence), *_pictures(evidence), *_engines(evidence), *_gates(evidence))


def _always(evidence: Evidence) -> Iterator[str]:
    recipe, examined = evidence.recipe, len(evidence.localizations)
    limited = f", the first {recipe.prompts.limit} of the list at most" if recipe.prompts.limit else ""
    were = f"{count(examined, 'prompt')} {'was' if examined == 1 else 'were'} examined{limited}"
    yield f"Text that people may send, prompts that are not on the list: {were}. Other memories stay."
    yield from _attacks(evidence)
    yield f"Other seeds: each prompt was drawn from {count(recipe.fidelity.seeds, 'seed')} with one scheduler and guidance."
    if recipe.localization.layers == "paper":
        yield "Neurons of the up blocks: only the down and mid blocks were searched, as in the paper."
    if any(found.floor for found in evidence.localizations):
        yield "A full search for every prompt: at least one ended at the schedule's floor with a score above τ."
    if evidence.policies is not None and evidence.policies.trigger is not None:
        yield "Pictures under the policy triggered: what was measured is always. A prompt that does not trigger is not mitigated."
    general = len(evidence.measurement.general_prompts)
    yield (
        f"Quality at large (FID, CLIP score, people's judgement): {count(general, 'general prompt')} from "
        f"{count(recipe.fidelity.general_seeds, 'seed')} stand{'s' if general == 1 else ''} for everybody's use."
    )


def _attacks(evidence: Evidence) -> Iterator[str]:
    attack = evidence.attack
    text, embedding = (attack.level("text"), attack.level("embedding")) if attack else (None, None)
    if text is None:
        yield "Text that is searched for so as to bring a memory back, which whoever may send prompts can do."
    if embedding is None:
        yield "Embeddings that are optimised by somebody who has the weights, which bring memories back (Finding DoRI, arXiv 2507.16880)."
    given = len(evidence.measurement.variants[0].mitigations)
    attacked = max((level.memories.of for level in (text, embedding) if level), default=given)
    if attacked < given:
        yield f"Attacks on the other {given - attacked} of {given} prompts."
    yield (
        "What else an owner of the weights can do: train the memory back, start from a part of the picture (image-to-image), compare the "
        "weights with a public base model's."
    )


def _pictures(evidence: Evidence) -> Iterator[str]:
    judged = evidence.measurement.variants[0].mitigations
    unknown = sum(m.before.copies is None for m in judged)
    if unknown == len(judged):
        yield "Whether pictures are copies: no training picture is known, so only memorization scores speak for the mitigation."
    elif unknown:
        which = f"{count(unknown, 'prompt')} give{'s' if unknown == 1 else ''} copies of {'its' if unknown == 1 else 'their'} own"
        yield f"Whether {which} training picture: it is not known."
    if unknown < len(judged):
        known = len(judged) - unknown
        yield f"Copies of training pictures that are not known: pictures were compared with the {count(known, 'known one')}."
    if all(m.after.sscd is None for m in judged) and unknown < len(judged):
        yield "Copies by meaning (SSCD): only distances of pixels were taken, of wholes and of parts."
    yield from _parts(evidence)


def _parts(evidence: Evidence) -> Iterator[str]:
    measured = evidence.measurement
    if measured.local_threshold is None:
        return
    few = f", a threshold from {count(measured.local_pairs, 'unrelated pair')}, fewer than the {ENOUGH_PAIRS} that it needs"
    said = [f"{v.variant} {sum(m.after.local_copies or 0 for m in v.mitigations)}" for v in measured.variants]
    judged = [m for m in measured.variants[0].mitigations if m.before.local_copies is not None]
    before, pictures = sum(m.before.local_copies or 0 for m in judged), count(sum(m.seeds for m in judged), "picture")
    known = "" if len(judged) == len(measured.variants[0].mitigations) else " of prompts whose own training picture is known"
    yield (
        f"Copies of parts of a training picture, by a gate: they were counted (before {before}, {joined(said)} of {pictures}{known}) and "
        f"decide nothing{few if measured.local_pairs < ENOUGH_PAIRS else ''}; those of other prompts' training pictures were not."
    )


def _engines(evidence: Evidence) -> Iterator[str]:
    recipe, measured = evidence.recipe, evidence.measurement
    engine = recipe.engine
    if engine.flavour is not None:
        yield f"Other hardware: every engine was run by {product_of(engine.flavour)} on one machine; those of ONNX Runtime were not run."
    elif engine.backend == "openvino":
        yield f"Other hardware: what was measured was run by OpenVINO in {engine.precision} on one machine's {engine.device.upper()}."
    elif engine.provider == "cpu":
        yield "GPUs: what was measured was run by ONNX Runtime on the CPU. Another provider or runtime needs a build or a check of its own."
    else:
        yield f"Other hardware: every engine was run with the provider {engine.provider} of ONNX Runtime on one machine."
    compiled = [p for p in (recipe.tensorrt, recipe.tensorrt_rtx) if p is not None and engine.flavour is None]
    if compiled:
        yield "The TensorRT engines in this bundle: they were compiled and not run."
    if evidence.latency is None:
        yield "Speed and memory: no times were taken; the command nemo-edge bench takes them."
    elif evidence.latency.noisy:
        yield f"Precise times: some vary more than the recipe allows ({joined(evidence.latency.noisy)})."
    left_out = evidence.latency.left_out if evidence.latency else {}
    for why in dict.fromkeys(left_out.values()):
        yield f"Times of {joined([name for name in left_out if left_out[name] == why])}: {why}, and only imitates them."
    if all(v.trajectory.lpips is None for v in measured.variants):
        yield "Perceptual distance between engine and eager (LPIPS): the package is not installed."
    if all(m.distance_error is None for v in measured.variants for m in v.mitigations):
        yield "The mitigated pictures of eager PyTorch: engine and eager were compared on scores and trajectories alone."


def _gates(evidence: Evidence) -> Iterator[str]:
    empty = [gate.name for gate in evidence.gates if gate.value is None]
    if empty:
        yield f"Gates that had nothing to measure: {joined(empty)}."
    off = _switched_off(evidence.recipe)
    if off:
        yield f"Gates that the recipe leaves off: {joined(off)}."


def _switched_off(recipe: Recipe) -> list[str]:
    return [name for name in GateSettings.model_fields if getattr(recipe.gates, name) is False]

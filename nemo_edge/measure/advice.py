"""What to do about a gate that failed, one next step for each."""

from __future__ import annotations

__all__ = ["ADVICE", "advice"]

_OTHERS = (
    'too many neurons are silenced, or some that others need: [localization] mode = "fast" finds other sets, and the policy triggered '
    "leaves other prompts alone"
)
ADVICE = {
    "memorization_score": 'these neurons leave the prompt\'s score above τ: localize with [localization] mode = "paper" or layers = "all"',
    "schedule_floor": "the search for these prompts ended above τ, with the most neurons that it takes for one: try [localization] "
    'layers = "all", or take them off the list and refuse them in front of the engine',
    "paraphrases": "raise [localization] paraphrases, so that the neurons of the variants join",
    "replication": 'the report shows which prompts, and whose pictures: localize with [localization] layers = "all" or with paraphrases; a '
    "picture of a prompt that is not on the list wants that prompt on it",
    "attack_text": "the texts are in attack.json: put those that bring a picture back on the list of memorized prompts",
    "attack_embedding": "silenced neurons do not hold against this: add [hardening], or keep the weights and set the gate to false",
    "general_drift": _OTHERS,
    "latent_drift": _OTHERS,
    "diversity_loss": _OTHERS,
    "engine_error": "nemo-edge compare CHECKPOINT BUNDLE names the first tensor that differs, and its module; export.fp32 keeps "
    "a part in fp32, and of quantized engines another scheme errs less",
    "mitigation_agreement": "the engine mitigates otherwise than eager: nemo-edge compare CHECKPOINT BUNDLE, then as for engine_error",
    "mask_of_ones": "the product with the mask changes what this engine computes: another opset or backend, or baked alone",
    "slow_down": "time it again on a quiet machine (nemo-edge bench BUNDLE); where it stays, baked is the ordinary graph",
    "eager_ratio": "another engine may be faster here: [latency] beside times others in the same turns",
}
"""By the name of a gate in `[gates]`."""


def advice(gate: str) -> str | None:
    """The next step for a gate by its name, with or without its variant, as "replication.baked"; None for a gate that is not ours."""
    return ADVICE.get(gate.partition(".")[0])

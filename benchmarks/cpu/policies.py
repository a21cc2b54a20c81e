"""How well the policy `triggered` knows the demo's memorized captions in other words, and leaves other prompts alone.

    python -m benchmarks.cpu.policies

Writes `benchmarks/results/policies.json`. The paraphrases are the variants of the captions that the demo has memorized too, found as in
`paraphrases.py`; the general captions are others than those that the trigger is calibrated with. The trigger is calibrated twice: as a
build does that tried no variants, and as one does that did (`localization.paraphrases`). Of each paraphrase the memorization score is taken
once more with the neurons silenced that a policy silences for it. Beside the embedding that is used stand two others, by the same cosine.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.shared import CALIBRATED, general, here, keep, memorized
from nemo_edge import demo
from nemo_edge.bundle.policies import ALWAYS, TRIGGERED, Policies, apply
from nemo_edge.demo.captions import general_captions
from nemo_edge.localization.calibration import calibrate
from nemo_edge.localization.groups import Group, Groups, clusters_of
from nemo_edge.localization.localizer import Localizer
from nemo_edge.localization.refinement import firm_score
from nemo_edge.localization.roc import roc
from nemo_edge.localization.trials import Trial
from nemo_edge.model.checkpoint import Checkpoint, open_checkpoint
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.recipe.settings import LocalizationSettings
from nemo_edge.release.bundlepolicies import make_policies

VARIANTS, HELD_OUT = 12, 4000
"""Variants asked for a caption, and general prompts that the trigger has not seen."""

Embedding = Callable[[np.ndarray, np.ndarray], np.ndarray]
EMBEDDINGS: dict[str, Embedding] = {
    "mean over all tokens": lambda text_TD, ids_T: text_TD.mean(axis=0),
    "mean over the prompt's tokens": lambda text_TD, ids_T: text_TD[1 : int(ids_T.argmax()) + 1].mean(axis=0),
    "end of text": lambda text_TD, ids_T: text_TD[int(ids_T.argmax())],
}
"""The last is the state that CLIP pools; its id is the greatest."""


def main() -> None:
    checkpoint = open_checkpoint(str(demo.CHECKPOINT))
    texts, known = general()[:CALIBRATED], memorized()
    calibration = calibrate(checkpoint, texts, LocalizationSettings())
    assert calibration.threshold is not None
    localizer = Localizer(checkpoint, calibration.statistics, calibration.threshold.value, LocalizationSettings(mode="fast"))
    own = localizer.localize_all([p.text for p in known])
    groups = Groups(localizer, VARIANTS).make_all(clusters_of(known, "prompt"), own)
    seen = set(texts)
    others = [c.text for c in general_captions(HELD_OUT + len(texts), seed=77) if c.text not in seen][:HELD_OUT]
    policies = {"without variants": make_policies(checkpoint, known, own, (), texts)}
    policies["with variants"] = make_policies(checkpoint, known, own, groups, texts)
    found = {
        **here(),
        "threads": torch.get_num_threads(),
        "captions": len(known),
        "paraphrases": sum(len(group.variants) for group in groups),
        "embeddings": compare(checkpoint, [p.text for p in known], groups, texts, others),
        "triggers": {
            "without variants": judge(localizer, policies["without variants"], groups, [r.refined for r in own], others),
            "with variants": judge(localizer, policies["with variants"], groups, [g.neurons for g in groups], others),
        },
    }
    keep("policies", found)
    print(json.dumps({name: found[name] for name in ("embeddings", "triggers")}, indent=1))


def judge(
    localizer: Localizer, policies: Policies, groups: Sequence[Group], found: Sequence[NeuronSet], others: Sequence[str]
) -> dict[str, Any]:
    """What the trigger does with the memorized paraphrases and with general captions, by the factors that it gives.

    A paraphrase is missed unless all neurons are silenced that were `found` for its group.
    """
    policy, checkpoint = policies.choose(TRIGGERED), localizer.checkpoint
    assert policies.trigger is not None
    variants = [(variant.text, needed) for group, needed in zip(groups, found, strict=True) for variant in group.memorized]
    near_VN, near_V = apply(policy, states(checkpoint, [text for text, _ in variants]))
    far_GN, far_G = apply(policy, states(checkpoint, others))
    always_N = policies.choose(ALWAYS).mask_N
    assert near_VN is not None
    assert far_GN is not None
    assert always_N is not None
    texts = [text for text, _ in variants]
    left = {ALWAYS: scores_left(localizer, texts, [always_N] * len(texts)), TRIGGERED: scores_left(localizer, texts, near_VN)}
    return {
        "threshold": policies.trigger.threshold,
        "memorized_paraphrases": len(variants),
        "missed": [text for (text, needed), row_N in zip(variants, near_VN, strict=True) if (row_N > needed.mask()).any()],
        "leaking": {name: [t for t, s in zip(texts, scores, strict=True) if s > localizer.threshold] for name, scores in left.items()},
        "highest_score_left": {name: max(scores) for name, scores in left.items()},
        "general": len(others),
        "silenced_general": int((far_GN < 1).any(axis=1).sum()),
        "auroc": roc("trigger", near_V, far_G, 0).auroc,
        "lowest_paraphrase": float(near_V.min()),
        "highest_general": float(far_G.max()),
        "calibrated": None if policies.trigger.rates is None else policies.trigger.rates.model_dump(mode="json"),
    }


def scores_left(localizer: Localizer, texts: Sequence[str], masks: Iterable[np.ndarray]) -> list[float]:
    """The memorization score of each text with the neurons silenced that its mask [N] has zeros for."""
    found = []
    for text, mask_N in zip(texts, masks, strict=True):
        examined = localizer.examine(text, 0)
        localizer.trials.keep(examined.subject, localizer.above(examined.scores_S))
        neurons = silenced(localizer, mask_N)
        (scores,) = localizer.trials.scores([Trial(examined.subject, neurons)])
        found.append(firm_score(examined, neurons, scores, localizer.threshold))
    return found


def silenced(localizer: Localizer, mask_N: np.ndarray) -> NeuronSet:
    layers = localizer.trials.layers
    parts = np.split(mask_N, np.cumsum([layer.width for layer in layers])[:-1])
    return NeuronSet.from_lists(layers, [np.flatnonzero(part < 1).tolist() for part in parts])


def compare(
    checkpoint: Checkpoint, captions: Sequence[str], groups: Sequence[Group], general: Sequence[str], others: Sequence[str]
) -> dict[str, float]:
    """The AUROC of each embedding: cosine to the captions, centred by general prompts."""
    near = [variant.text for group in groups for variant in group.memorized]
    found = {}
    for name, embedding in EMBEDDINGS.items():

        def embedded(texts: Sequence[str], of: Embedding = embedding) -> np.ndarray:
            ids = checkpoint.config.token_ids(texts)[0]
            return np.stack([of(text_TD, ids_T) for text_TD, ids_T in zip(states(checkpoint, texts), ids, strict=True)])

        centre_D = embedded(general).mean(axis=0)
        known_CD, near_VD, other_GD = (unit(embedded(texts) - centre_D) for texts in (captions, near, others))
        found[name] = roc(name, (near_VD @ known_CD.T).max(axis=1), (other_GD @ known_CD.T).max(axis=1), rows=0).auroc
    return found


def states(checkpoint: Checkpoint, texts: Sequence[str]) -> np.ndarray:
    """What the UNet is told of texts, [B, T, D]."""
    parts = [checkpoint.encode(texts[i : i + 100])["encoder_hidden_states"].float().cpu().numpy() for i in range(0, len(texts), 100)]
    return np.concatenate(parts)


def unit(vectors: np.ndarray) -> np.ndarray:
    scaled: np.ndarray = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return scaled


if __name__ == "__main__":
    main()

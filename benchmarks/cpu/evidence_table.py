"""What each demo gives back, by who asks and by what was done to it: from the results of the demos and of what their pictures show."""

from __future__ import annotations

__all__ = ["adherence_table", "evidence_table"]

from typing import Any

from benchmarks.shared import machine_of
from nemo_edge.measure.bounds import at_most

Result = dict[str, Any]
_PLANTED, _REPEATED = "trained into chosen neurons", "by repetition alone"
_KINDS = ("object", "colour", "size", "ground", "place", "all")


def evidence_table(planted: Result, repeated: Result) -> list[str]:
    """Both demos as they are and with their neurons silenced, under each level of attack and beside its control."""
    demos = {_PLANTED: planted, _REPEATED: repeated}
    head = ("memories came", "silenced", "by their prompts", "by text", "by an embedding", "never seen, text", "embedding", "others' drift")
    return [
        _row(*head),
        "|---" * len(head) + "|",
        *(row for came, found in demos.items() for row in _rows(came, found)),
        "",
        "By their prompts: pictures; under attack: memories that come back, and beside them pictures that the model never saw. "
        "Where nothing is silenced the attack starts from what is not memorized. Others' drift is 1 − SSIM of general pictures. "
        f"Measured on {machine_of(planted)}, and {machine_of(repeated)} (`benchmarks/results/demo.json`, `repeated.json`).",
    ]


def _rows(came: str, found: Result) -> list[str]:
    variant = next(iter(found["variants"].values()))
    levels = {level["attack"]: level for level in (found["attack"] or {"levels": []})["levels"]}

    def attacked(group: str) -> list[str]:
        return [_of(levels[name][group]) if name in levels else "–" for name in ("text", "embedding")]

    def pictures(when: str) -> str:
        copies, drawn = variant[f"copies_{when}"], variant["seeds"]
        return f"{sum(copies)} of {len(copies) * drawn}"

    bound = f" ({at_most(max(variant['copies_after']), variant['seeds'])} of a caption's)"
    return [
        _row(came, "nothing", pictures("before"), *attacked("unmitigated"), "–", "–", "–"),
        _row(
            came,
            f"{found['neurons']} neurons",
            pictures("after") + (bound if max(variant["copies_after"]) < variant["seeds"] else ""),
            *attacked("memories"),
            *attacked("never_seen"),
            f"{variant['general_drift']:.3f}",
        ),
    ]


def _of(count: Result) -> str:
    return f"{count['returned']} of {count['of']}"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def adherence_table(found: Result) -> list[str]:
    """What the second demo's pictures show of their captions, before and with its neurons silenced."""
    names = {"held out": "words never together in training", "like training": "as in training", "unseen": "never seen, like the memorized"}
    detection = found["detection"]
    best = max(detection["rocs"], key=lambda roc: float(roc["auroc"]))
    return [
        f"| captions | neurons | {' | '.join(_KINDS[:-1])} | all that is named |",
        "|---" * (2 + len(_KINDS)) + "|",
        *(
            _row(words, when, *(_share(found[key]["adherence"][name].get(kind)) for kind in _KINDS))
            for name, words in {**names, "memorized": "memorized"}.items()
            for key, when in (("before", "as it is"), ("after", "silenced"))
            if key in found
        ),
        "",
        "The share of pictures that show it, as a small recogniser sees it; of drawn ones, through the VAE, it is right about the "
        f"object in {found['recogniser']['object']:.0%}, and about all that is named in {found['recogniser']['all']:.0%}. Of the "
        f"{len(found['before']['distances'])} memorized captions {detection['above']} are above τ = {detection['threshold']:.2f}, and of "
        f"{detection['others']} others {detection['others above']}; AUROC {best['auroc']:.4f} ({best['low']:.4f}–{best['high']:.4f}). "
        f"Measured on {machine_of(found)} (`benchmarks/results/adherence.json`).",
    ]


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"

"""The method: a checkpoint, prompts and τ in; which prompts are memorized, and which value neurons hold each memory, out.

NeMo (Hintersdorf et al. 2024) as its official code does it, and a faster search. Knows no engines and no bundles.

`multiscale` the score of two δ · `memorization` δ, and a prompt's score · `calibration` statistics and τ · `detection` which of many
prompts, as a stream · `detectors`, `roc` how well that tells them apart · `trials` scores of sets of neurons, many at once, by `_prefix` ·
`_searches` the two ways to look · `_decisions` scores too close to trust · `localizer` drives them, `_times` what they took · `refinement`,
`clusters`, `paraphrases`, `groups` several prompts with one set · `stages` what a build runs of it · `promptlists` what is called from
outside: `detect` and `localize`, a whole list from a checkpoint's place
"""

from __future__ import annotations

__all__ = ()

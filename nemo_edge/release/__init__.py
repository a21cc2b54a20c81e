"""From a recipe to a bundle, and a finished bundle once more.

Calls the rooms below in order, keeps their results and knows none of their insides.

`draft` a first recipe for a checkpoint, of which `_found` says what it is, as `_recipetext` writes it
`build` from a recipe to a bundle: `_preflight` the one look before, with `_inputs` what the recipe names and `_footprint` the memory it
takes, told by `_forecast` · `_stages` the list of stages, with `_keys` what each depends on, run and kept by `_cache` · `_judgement`
gates, manifest and report
· `bundlepolicies` policies from what was found · `random_weights` checkpoints to measure with · `smoke` an attack walked through on them
`reproduce` the same once more, beside it, and compared
`rebake` other neurons in a finished bundle, and with `_remeasure` measured again · `quantize` another of it in fewer bits · `compile` more
engines for it · `review` timed, judged and reported again
`doctor` what works here · `clean` what is kept and what was left, and away with it
"""

from __future__ import annotations

__all__ = ()

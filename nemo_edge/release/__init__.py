"""From a recipe to a bundle, and a finished bundle once more.

Calls the rooms above in order, keeps their results and knows none of their insides.

`build` the stages · `_inputs` what they are made from, and their keys · `_preflight` what is found out before · `_footprint` memory and
disk that a build takes · `random_weights` checkpoints to measure with · `bundlepolicies` policies from what was found · `rebake` other
neurons in a finished bundle, and with `_remeasure` measured again · `review` timed, judged and reported again · `doctor` what works here
"""

from __future__ import annotations

__all__ = ()

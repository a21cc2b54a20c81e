"""What an engine does: a checkpoint and its engines in; how faithful, mitigated and fast they are, and which gates hold, out.

Knows values, and leaves words to the report.

`similarity` how alike pictures are · `readings`, `replication`, `localcopies` training pictures, and which pictures are copies of them or
of a part · `bounds` what a count of a sample allows to be said · `fidelity`, `divergence`, `comparison` runner against runner, and the
first tensor that is wrong · `mitigation` what silencing does · `examination` the stage that measures it · `latency` times and ratios ·
`_contender`, `bench` eager and engines in turns · `profile` an engine by operator, beside the machine's `_rates` · `gates` what must hold ·
`advice` what to do where it does not · `attacks` what brings memories back all the same
"""

from __future__ import annotations

__all__ = ()

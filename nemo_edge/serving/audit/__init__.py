"""What a public server of pictures gives back of its training, found by asking it: prompts and a remote pipeline in, an audit out.

Knows nothing of weights, so that it claims no level of an attacker: what came back came back, and nothing found is no proof.

`base` what an audit is given and what it came to · `words` those that are thrown into a prompt · `copies` whether pictures are copies ·
`calibration` how near a copy is ·
`asking` every prompt asked, one after the other · `campaign` all of it
"""

from __future__ import annotations

__all__ = ()

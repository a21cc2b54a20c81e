"""The folder a build makes: files in, a finished bundle with its manifest out, or a refusal.

Knows names, hashes and verdicts; not how anything in it was made.

`manifest` the folder, its hashes, how it is put in its place at once · `identity` which model it is, and which files say so · `display`
what is shown of it · `references` what its files name · `engines` what engines it has, unopened · `signature`, `revocations` whose it is,
and which are not to be opened any more · `policies` which neurons are silenced, by name · `triggers` which prompts are near memorized ones
"""

from __future__ import annotations

__all__ = ()

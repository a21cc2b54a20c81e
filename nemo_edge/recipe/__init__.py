"""What the user asked for: a TOML file or options in, one frozen value out.

Checks names, ranges and what does not go together; knows no model and opens no checkpoint.

`settings`, `hardening`, `quantization`, `random_weights` the tables with every default · `limits` how large a number may be · `targets`
what engines are compiled for · `authorship` who stands behind a bundle · `components` what a bundle calls its parts · `revisions` which
commit of a hub id is meant · `recipe` the whole, read, anchored and made portable · `schema` its JSON schema, for editors · `prompts`
lists of prompts and their training pictures, from the rows that `_tables` reads
"""

from __future__ import annotations

__all__ = ()

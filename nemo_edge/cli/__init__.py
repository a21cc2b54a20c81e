"""The command line: options in, one library call, one result printed.

`main` the commands that make something of a checkpoint · `init` the one that writes a recipe for it · `hardening` the one that teaches
it to forget · `bundle`, `serving` those that take a bundle, `quantization` the one that makes another of it, `signing` those that sign ·
`attacks` the one that brings memories back · `audits` the one that asks a server · `clean` the one that tidies up · `options` what they
share · `panels` their groups and examples in the help · `screen` the terminal, `console`, `contents`, `datasheet`, `findings`, `gates`,
`plans` how results look on it
"""

from __future__ import annotations

__all__ = ()

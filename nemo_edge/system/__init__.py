"""This machine, its files and processes: what every other room stands on.

In come paths, processes and errors; out come hashes, written files, what this machine is and how a command ends. Knows nothing of
models, recipes or bundles.

`errors` what a user can do about a failure · `exits` from an error to an exit code · `terminal` text from outside, shown and not obeyed ·
`reading` every file that others write · `files` hashes, writing whole or not at all, the way from one file to another · `outputs` one
writer at a time, and what killed runs left · `weights` which files of a checkpoint are opened · `journal` results as JSON lines, taken up
again · `progress` what long work reports to · `memory` what is free, and how much runs together · `processes` a function in a process of
its own · `clock` the time, or what is said to be · `environment` what machine this is, which versions · `compatibility` versions that do
not go together
"""

from __future__ import annotations

__all__ = ()

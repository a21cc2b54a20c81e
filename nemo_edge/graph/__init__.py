"""Inside ONNX files: a file in; its inputs, its modules and its value weights out.

Reads and edits graphs, and never runs one.

`onnxfile` a file without its weights, and which PyTorch module each tensor comes from · `valueweights` the value layers' weights, read and
replaced · `unmasking` a graph without its mask · `agreement` how a file agrees with eager, as it is kept
"""

from __future__ import annotations

__all__ = ()

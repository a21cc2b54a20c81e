"""TensorRT and TensorRT-RTX: an ONNX file in; a plan with its sidecar, or an open plan, out.

`backend` file → plan → runner · `flavours` what differs between the two products · `profiles` which sizes a plan takes · `plans` a plan's
sidecar and header, read without opening it · `fit` whether it runs here, and why not · `refit` new weights in a plan · `_build` the process
that compiles · `_run` the open engine
"""

from __future__ import annotations

__all__ = ()

"""What runs a graph: a component, a file or a plan in; a runner, a mapping of named arrays to named arrays, out.

One file or folder a backend, each with the same verbs. Knows nothing of prompts, memories or bundles' verdicts.

`base` the runner · `feeds` checks what it is given · `torch` eager PyTorch · `onnxruntime`, `openvino` with `_openvinocache`, what it
compiled before, and `onnxfiles`, the one of them that a recipe names · `tensorrt` in both of its products · `triton` a served model ·
`probes` which of them work here · `readiness` whether a bundle's engines run here
"""

from __future__ import annotations

__all__ = ()

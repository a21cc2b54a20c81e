"""ONNX files in fewer bits: a bundle's UNets in float32 in, the same with rounded weights (and activations) out.

Knows neither memories nor gates. The value layers stay as they are, so that what is silenced stays silenced to the bit.

`quantize` ranges found, files written and tried · `ranges` how large activations become · `record` what a bundle says of it · `base` what
a scheme is · `integers`, `floats` the schemes · `half` the file for TensorRT · `_operators` which operators · `_observation` activations,
counted while pictures are drawn · `_rewriting` the graph
"""

from __future__ import annotations

__all__ = ()

"""What a machine can do at best: matrix products and the reading of weights, as the same runtime does them at the same precision.

Two graphs of one matrix product each, of square matrices and of a row by a large matrix, are timed.
"""

from __future__ import annotations

__all__ = ["Rates", "measure_rates"]

import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from pydantic import BaseModel, ConfigDict

from nemo_edge.backends import onnxfiles
from nemo_edge.recipe.targets import EngineSettings

_SQUARE = 1536
_LARGE = 8192
"""Side of a matrix of 256 MB, which no cache holds."""
_ROUNDS = 5


class Rates(BaseModel):
    """The best of some rounds."""

    model_config = ConfigDict(frozen=True)

    gflops: float
    """10⁹ operations of matrix products a second, a multiplication and an addition each."""
    gbytes: float
    """10⁹ bytes of float32 weights read a second."""

    def limit_ms(self, operations: float, weight_bytes: float) -> float:
        """What these take at best, the products and the reading beside each other."""
        return max(operations / self.gflops, weight_bytes / self.gbytes) / 1e6


def measure_rates(engine: EngineSettings) -> Rates:
    """Measure them with a runtime's settings. Raises as opening an engine does."""
    square, row = _seconds(engine, _SQUARE, _SQUARE), _seconds(engine, 1, _LARGE)
    return Rates(gflops=round(2 * _SQUARE**3 / square / 1e9, 2), gbytes=round(4 * _LARGE**2 / row / 1e9, 2))


def _seconds(engine: EngineSettings, rows: int, side: int) -> float:
    """The best time of a product of [rows, side] by [side, side]."""
    rng = np.random.default_rng(0)
    weights = numpy_helper.from_array(rng.standard_normal((side, side), dtype=np.float32), "weights")
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [rows, side]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "weights"], ["y"])], "product", ports[:1], ports[1:], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    feed, best = {"x": rng.standard_normal((rows, side), dtype=np.float32)}, float("inf")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "product.onnx"
        onnx.save(model, str(path))
        with onnxfiles.open_runner(path, engine) as runner:
            for number in range(_ROUNDS + 1):
                started = time.perf_counter()
                runner(feed)
                best = min(best, time.perf_counter() - started) if number else best
    return best

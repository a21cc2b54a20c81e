"""The README's table of a GPU."""

from __future__ import annotations

from typing import Any

from benchmarks.gpu import table


def test_the_table_says_what_was_not_measured_and_shares_of_the_limit() -> None:
    row = {"contender": "eager, channels_last", "variant": "baked", "p50_ms": 20.0}
    faster = {"contender": "CUDA graph", "variant": "baked", "p50_ms": 10.0, "to_reference": {"value": 0.5, "low": 0.4, "high": 0.6}}
    masked = {**faster, "variant": "masked", "to_baked": {"value": 1.25, "low": 1.2, "high": 1.3}}
    about = {"model": "sd15", "dtype": "fp16", "batch": 1, "latents": 64}
    found: dict[str, Any] = {
        "machine": {"gpus": [{"name": "NVIDIA X1", "driver": "1"}], "versions": {"torch": "2"}, "cores": 4},
        "results": [
            {"key": "card", "flop_per_s": {"fp16": 1e12}, "bytes_per_s": 1e12},
            {"key": "limits", "sd15 fp16 batch 1 latents 64": {"flops": 4e9, "bytes": 5e9}},
            {"key": "sd15 fp16 batch 1 latents 64", **about, "rows": [row, faster, masked]},
            {"key": "build", "failed": "no time"},
        ],
    }
    text = "\n".join(table.gpu_table(found))
    assert "| eager, channels_last | 20.0 · 25% |" in text  # 5 ms of bytes, 4 of FLOPs
    assert "| CUDA graph | 10.0 · 0.50 (0.40–0.60) · 50% |" in text
    assert "| TensorRT-RTX | not measured |" in text
    assert "1.2500 to 1.2500 times" in text
    assert "anything in bf16; SD 1.5 fp16, 4 pictures of 512²; SD XL fp16, 1 picture of 1024²" in text

"""What processes of their own import: quietly, and before they need it."""

from __future__ import annotations

import subprocess
import sys

CODE = "import sys, nemo_edge.export.preload; print([name in sys.modules for name in sys.argv[1:]])"
LATE = ("diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion", "transformers.models.clip.modeling_clip", "onnxscript.optimizer")


def test_what_is_imported_late_is_there_and_nothing_is_said() -> None:
    done = subprocess.run([sys.executable, "-c", CODE, *LATE], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[True, True, True]\n", "")

"""A UNet of ours as a model of MLServer, which knows nothing of Triton: what a user would write. Runs in MLServer's environment."""

from __future__ import annotations

from pathlib import Path

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.errors import InferenceError
from mlserver.types import InferenceRequest, InferenceResponse

from nemo_edge.backends.onnxruntime import open_runner
from nemo_edge.system.errors import InputError


class UNet(MLModel):
    """The ONNX file that the model's settings name."""

    async def load(self) -> bool:
        self._runner = open_runner(Path(self.settings.parameters.uri))
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        try:
            outputs = self._runner({tensor.name: NumpyCodec.decode_input(tensor) for tensor in payload.inputs})
        except InputError as error:
            raise InferenceError(str(error)) from error
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output(name, array) for name, array in outputs.items()])

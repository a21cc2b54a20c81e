"""Draws what requests ask for with the models of a server: the library's own loop, whose every call is a call of a served model.

Runs inside the pipeline model; how a model is called is given to it.
"""

from __future__ import annotations

__all__ = ["Painter", "Painting"]

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np

from nemo_edge.backends.triton import Signature, TritonRunner
from nemo_edge.bundle.policies import Policies, apply
from nemo_edge.model.configuration import Configuration
from nemo_edge.recipe.settings import SamplingSettings
from nemo_edge.sampling.loop import Pipeline, check_size, condition, generate
from nemo_edge.sampling.steps import open_steps
from nemo_edge.sampling.steptable import StepTable, read_table
from nemo_edge.serving.components import Call, open_components
from nemo_edge.serving.requests import PictureRequest, read_request
from nemo_edge.serving.updates import PoliciesInForce
from nemo_edge.serving.versions import PipelineVersion, model_name, read_pipeline
from nemo_edge.system.errors import InputError, MissingDependency

LARGEST = 4
"""Times the size a model was trained on that a request may ask for, in each direction."""


@dataclass(frozen=True)
class Painting:
    """What a request gave: pictures uint8 [B, height, width, 3], the policy's score of each, and the neurons it silenced of each.

    `policy` is the name of the policy that was applied, clusters in the order of the alphabet; `policies` the version of those in force.
    """

    pictures: np.ndarray
    score_B: np.ndarray
    silenced_B: np.ndarray | None
    request: PictureRequest
    policy: str
    policies: str


class Painter:
    """A pipeline version of the repository, with the models it calls; `policies` gives those in force when a request comes."""

    def __init__(
        self, version: PipelineVersion, config: Configuration, policies: Callable[[], Policies], call: Call, table: StepTable | None = None
    ) -> None:
        self.version, self.policies = version, policies
        models = {name: (model_name(version.label, name), signature) for name, signature in version.models.items()}
        runners = {name: _runner(model, version.number, signature, call) for name, (model, signature) in models.items()}
        texts = tuple(runners[name] for name in config.text_encoder_names)
        self._pipeline = Pipeline(config, texts, runners["unet"], runners["vae_decoder"], table=table)

    @classmethod
    def open(
        cls, folder: Path, call: Call | None, complain: Callable[[str], None] = lambda message: None, stack: ExitStack | None = None
    ) -> Self:
        """Open a version folder of the pipeline model; `complain` gets a line on an update of its policies that cannot be used.

        `call` calls the models of a server. Without it, and where the version has its components inside, these are opened here, and are
        open as long as `stack`. Raises `BundleError` for files that are not as they were shipped, `MissingDependency` for an engine that
        does not run here, and as `open_steps` for the pipeline's own steps.
        """
        version, config, table = read_pipeline(folder), Configuration.load(folder), read_table(folder)
        if call is None or version.inside:
            call = open_components(folder, version, stack or ExitStack())
        open_steps(config, version.sampling, (), table)  # imports diffusers now, where it is installed, and not in the first request
        return cls(version, config, PoliciesInForce(folder, complain, version.trust), call, table)

    def paint(self, tensors: Mapping[str, np.ndarray]) -> Painting:
        """Draw what a request asks for. Raises `InputError` for one that cannot be drawn, before any model is called."""
        policies = self.policies()
        request = read_request(tensors, self.version.sampling, policies.default)
        policy = policies.choose(request.policy)
        self._check_size(request.settings)
        self._check_steps(request.settings)
        told = condition(self._pipeline, request.prompts, request.settings)
        mask_BN, score_B = apply(policy, told["encoder_hidden_states"][-len(request.prompts) :])  # behind the unconditional rows
        pictures = generate(self._pipeline, request.prompts, request.seeds, request.settings, mask_BN, conditioning=told)
        silenced_B = None if mask_BN is None else (mask_BN < 1).sum(axis=1)
        return Painting(pictures, score_B, silenced_B, request, policy.name, policies.version)

    def _check_steps(self, settings: SamplingSettings) -> None:
        try:
            open_steps(self._pipeline.config, settings, (), self._pipeline.table)
        except MissingDependency as error:
            raise InputError(f"steps {settings.steps} are not those of this pipeline: leave them out") from error

    def _check_size(self, settings: SamplingSettings) -> None:
        config, dims = self._pipeline.config, self._pipeline.unet.inputs["sample"][2:]
        asked = (settings.height, settings.width)
        for name, pixels, own, dim in zip(("height", "width"), asked, config.pixel_size, dims, strict=True):
            if pixels and isinstance(dim, int) and pixels != dim * config.factor:
                raise InputError(f"{name} {pixels} is not that of this pipeline's engines: take {dim * config.factor}")
            if pixels and pixels > LARGEST * own:
                raise InputError(f"{name} {pixels} is too large: take {LARGEST * own} at the most")
        check_size(config, settings, [name for name, dim in zip(("height", "width"), dims, strict=True) if isinstance(dim, str)])


def _runner(name: str, number: int, signature: Signature, call: Call) -> TritonRunner:
    return TritonRunner(signature, partial(call, name, number, tuple(signature.outputs)))

"""The settings of random weights, which stand in for a checkpoint's."""

from __future__ import annotations

__all__ = ["RandomSettings"]

from pathlib import Path

from nemo_edge.recipe.limits import Seed
from nemo_edge.recipe.settings import Settings
from nemo_edge.system.reading import expanded


class RandomSettings(Settings):
    """A model of an exact architecture with random weights, to find out how large and how fast its engines are.

    It remembers nothing, so nothing is calibrated, localized or measured; its bundle can be timed, and never be shipped.
    """

    architecture: str
    """One that comes with nemo-edge (sd15, sd21, sdxl, bk-sdm-small), or a folder of configurations (`./mine`)."""
    seed: Seed = 0
    """Of the weights: the same seed makes the same weights."""
    neurons: Path | None = None
    """What is silenced: neurons.json, or a result file of the official code; a few neurons at random where it is not given."""

    @property
    def name(self) -> str:
        """The architecture's name; that of its folder where it is one, and not where this lies."""
        return expanded(self.architecture).resolve().name

"""What of a bundle is shipped, and as what.

Knows bundles, graphs and plans; nothing of a repository.
"""

from __future__ import annotations

__all__ = ["Shipment", "choose_backend"]

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nemo_edge import __version__
from nemo_edge.backends.tensorrt.plans import PlanFile, Tensor, open_plan_file
from nemo_edge.backends.triton import Signature
from nemo_edge.bundle.manifest import Manifest
from nemo_edge.bundle.signature import Trust
from nemo_edge.graph.onnxfile import open_graph
from nemo_edge.model.configuration import Configuration
from nemo_edge.recipe.components import UNET_FOLDERS
from nemo_edge.recipe.recipe import Recipe
from nemo_edge.recipe.targets import Flavour
from nemo_edge.serving.modelconfig import engine_signature
from nemo_edge.serving.signed import SIGNED, copy_origin, origin_of
from nemo_edge.serving.versions import PIPELINE, ServerBackend, model_name
from nemo_edge.system.errors import BundleError, InputError
from nemo_edge.system.files import explain, sha256_json


@dataclass(frozen=True)
class Shipment:
    """A bundle that may be shipped, and how its components are to be served."""

    bundle: Path
    manifest: Manifest
    digest: str
    """sha256 of the manifest."""
    recipe: Recipe
    model: Configuration
    variant: str
    backend: ServerBackend
    number: int
    trust: Trust | None = None
    """Whose signature whoever opens it asks for."""
    label: str = ""
    """What stands before the names of its models."""
    policies: tuple[str, ...] | None = None
    """The policies that its server knows; None for all, and for components that are models, which take any mask."""

    @property
    def places(self) -> dict[str, str]:
        """Name of each component → folder of its graph in the bundle."""
        return {**{n: n for n in self.model.text_encoder_names}, "vae_decoder": "vae_decoder", "unet": UNET_FOLDERS[self.variant]}

    @property
    def names(self) -> dict[str, str]:
        """Name of each component that is served, and of the pipeline as the last → name of its model, in the order of their loading."""
        return {name: model_name(self.label, name) for name in (*(self.places if self.policies is None else ()), PIPELINE)}

    @property
    def flavour(self) -> Flavour | None:
        """The product whose plans are shipped; None for ONNX files."""
        return self.recipe.engine.flavour if self.backend == "python" else "tensorrt" if self.backend == "tensorrt" else None

    @property
    def parameters(self) -> dict[str, str]:
        """What every configuration says of where its model came from."""
        own = {"bundle": self.manifest.name, "identity": self.manifest.identity, "manifest": self.digest, "weights": self.weights}
        return {**own, "version": str(self.number), "nemo_edge": __version__}

    @property
    def weights(self) -> str:
        """Of which model it is: one hash over those of the checkpoint's files."""
        return sha256_json(self.manifest.checkpoint)

    def plans(self, place: str) -> tuple[PlanFile, ...]:
        """The sidecars of a component's plans, where plans are shipped. Raises `InputError` where there is none."""
        if self.flavour is None:
            return ()
        found = sorted((self.bundle / "engines").glob(f"{place}.{self.flavour}.*.json"))
        if not found:
            table = self.flavour.replace("-", "_")
            raise InputError(f"the bundle {self.bundle} has no {self.flavour} engine of {place}: build it with [{table}] in the recipe")
        return tuple(open_plan_file(path) for path in found)

    def copy(self, files: Mapping[str, str], folder: Path) -> dict[str, str]:
        """Copy files of the bundle, by their names there and here; return the hashes that the manifest has of them.

        Raises `BundleError` for a name that leads out of the bundle or that its manifest does not have.
        """
        for target, source in files.items():
            if source not in self.manifest.files or ".." in (*Path(target).parts, *Path(source).parts):
                raise BundleError(f"{self.bundle} names {source}, which is no file of its manifest: build it again; nothing was shipped")
            try:
                (folder / target).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self.bundle / source, folder / target)
            except OSError as error:
                raise explain(error, folder / target) from error
        return {target: self.manifest.files[source] for target, source in files.items()}

    def copy_origin(self, folder: Path, *, policies: bool = False) -> dict[str, str]:
        """Copy what a signature is of into a version's folder, where one is asked for; return the hashes."""
        if self.trust is None:
            return {}
        return copy_origin(self.bundle, folder / SIGNED, origin_of(self.manifest.files, policies=policies))

    def signature(self, place: str) -> Signature:
        """What a component is served as: with as many rows as each of its plans takes in one of its profiles."""
        plans = self.plans(place)
        ports = open_graph(self.bundle / place / "model.onnx").ports()
        inputs, outputs = ({n: Tensor(dtype=p.dtype, dims=p.dims) for n, p in group.items()} for group in ports)
        rows = [max(min(shapes[2][0] for shapes in profile.values()) for profile in plan.profiles) for plan in plans if plan.profiles]
        return engine_signature(inputs, outputs, self.backend, min(rows, default=None))


def choose_backend(recipe: Recipe, asked: str | None) -> ServerBackend:
    """Return what of Triton runs the components: native backends on GPUs, but TensorRT-RTX's engines, which have none.

    Where it is not asked for, it runs what the bundle was examined with. Raises `InputError` for anything but "native" and "python".
    """
    engine = recipe.engine
    if asked is None:
        native: ServerBackend = "tensorrt" if engine.flavour == "tensorrt" else "onnxruntime"
        return native if engine.torch_device == "cuda" and engine.flavour != "tensorrt-rtx" else "python"
    if asked not in ("native", "python"):
        raise InputError(f"--backend {asked}: take native (Triton's own) or python (nemo-edge's runners)")
    if asked == "python":
        return "python"
    return "tensorrt" if recipe.tensorrt is not None else "onnxruntime"

"""diffusers' schedulers by the names that a recipe has for them, made as diffusers' own pipelines make them.

Knows configurations and steps, nothing of runners or pictures. A scheduler of another class than the checkpoint's takes those of its
keys that the two classes share and its own defaults for the rest, as after `pipe.scheduler = X.from_config(pipe.scheduler.config)`. One
key is never left to a default: latents are clipped only where the checkpoint's own configuration says so (DDIM's default would).
"""

from __future__ import annotations

__all__ = ["last_latents", "make_scheduler", "scheduled", "step_options"]

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import TYPE_CHECKING, Any

from nemo_edge.model.configuration import LCM_PIPELINE, Configuration
from nemo_edge.recipe.settings import SamplingSettings
from nemo_edge.system.errors import InputError, first_line

if TYPE_CHECKING:
    import torch

_NAMED: dict[str, tuple[str, dict[str, str]]] = {
    "ddim": ("DDIMScheduler", {}),
    "pndm": ("PNDMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "dpmsolver++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "sde-dpmsolver++": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "lcm": ("LCMScheduler", {}),
}
"""The class of each name, and what of its configuration the name says."""
_OWN = {name for name, _ in _NAMED.values()} | {
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "TCDScheduler",
}
"""Classes that a checkpoint's own scheduler may be of."""
_NO_SAMPLES = ("PNDMScheduler", "EulerAncestralDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler")
"""Classes that diffusers does not have for models that predict the picture itself."""
_SIGMAS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
"""Keys of which diffusers takes one at the most."""


def make_scheduler(config: Configuration, settings: SamplingSettings) -> Any:
    """Make the scheduler that `settings` ask for with the model's noise schedule.

    Raises `InputError` for a checkpoint's own one of a class that is not known, for a setting that the class lacks, and for one that
    diffusers does not have for what the model predicts.
    """
    cls, own = _class(config, settings.scheduler)
    taken = signature(cls.__init__).parameters
    live = _live(config)
    if own:
        live.pop("_use_default_values", None)  # they are defaults of this very class
    given: dict[str, Any] = dict(_NAMED[settings.scheduler][1]) if not own else {}
    if "clip_sample" in taken:
        given["clip_sample"] = _clips(config)
    if own and "steps_offset" in taken and _corrected(config):
        given["steps_offset"] = 1
    given |= _chosen(settings, cls.__name__, taken)
    if config.prediction_type == "sample" and cls.__name__ in _NO_SAMPLES:
        raise InputError(
            f"sampling.scheduler = {settings.scheduler!r}: diffusers has no {cls.__name__} for a model that predicts 'sample': "
            "take ddim, euler, dpmsolver++ or unipc"
        )
    try:
        return cls.from_config(live, **given)
    except (ImportError, NotImplementedError, TypeError, ValueError) as error:
        raise InputError(f"diffusers makes no {cls.__name__} of the checkpoint's scheduler configuration: {first_line(error)}") from error


def scheduled(config: Configuration, settings: SamplingSettings) -> Any:
    """The scheduler with its steps. Raises `InputError` as `make_scheduler`, and for a number of steps that it does not have.

    Of as many steps as there are times the first is beyond them all, where they are offset by one.
    """
    scheduler = make_scheduler(config, settings)
    try:
        scheduler.set_timesteps(settings.steps)
    except (ArithmeticError, IndexError, ValueError) as error:
        raise InputError(
            f"steps {settings.steps} are not what {type(scheduler).__name__} takes ({first_line(error)}): take another number, or another "
            "scheduler"
        ) from error
    times = int(scheduler.config.num_train_timesteps)
    if float(scheduler.timesteps.max()) >= times:
        raise InputError(f"steps {settings.steps} go beyond the {times} times of this model's noise schedule: take {times - 1} or fewer")
    return scheduler


def step_options(scheduler: Any, generators: Sequence[torch.Generator]) -> dict[str, Any]:
    """What `scheduler.step` is given beside tensors, as diffusers' pipelines do: each picture's generator where it draws noise."""
    taken = signature(scheduler.step).parameters
    return {name: value for name, value in (("eta", 0.0), ("generator", list(generators))) if name in taken}


def last_latents(config: Configuration, stepped: Sequence[torch.Tensor]) -> torch.Tensor:
    """What is decoded: the latents after the last step, for which diffusers' first pipeline of consistency models takes the prediction."""
    return stepped[1] if config.index["_class_name"] == LCM_PIPELINE and len(stepped) > 1 else stepped[0]


def _class(config: Configuration, name: str) -> tuple[Any, bool]:
    """The class of a name, and whether it is the checkpoint's own scheduler as it is."""
    import diffusers

    if name != "checkpoint":
        return getattr(diffusers, _NAMED[name][0]), False
    own = str(config.scheduler.get("_class_name"))
    if own not in _OWN:
        raise InputError(
            f"the checkpoint's own scheduler is a {own}, which nemo-edge does not sample with: name another, "
            f"sampling.scheduler = {', '.join(map(repr, _NAMED))}"
        )
    return getattr(diffusers, own), True


def _corrected(config: Configuration) -> bool:
    """Whether diffusers' pipeline changes its scheduler's configuration: that of Stable Diffusion 1.x and 2.x does."""
    return config.family == "sd" and config.index["_class_name"] != LCM_PIPELINE


def _live(config: Configuration) -> dict[str, Any]:
    """The scheduler's configuration as it is in diffusers' pipeline, read from a file or from the pipeline."""
    found = dict(config.scheduler)
    return {**found, "steps_offset": 1} if _corrected(config) and "steps_offset" in found else found


def _clips(config: Configuration) -> bool:
    """Whether the checkpoint's configuration says that latents are clipped, and diffusers' pipeline leaves it at that."""
    found = config.scheduler
    return not _corrected(config) and bool(found.get("clip_sample")) and "clip_sample" not in found.get("_use_default_values", ())


def _chosen(settings: SamplingSettings, cls: str, taken: Mapping[str, object]) -> dict[str, Any]:
    """The keys that the recipe sets. Raises `InputError` where the class lacks one."""
    found: dict[str, Any] = {}
    if settings.timestep_spacing is not None:
        found["timestep_spacing"] = settings.timestep_spacing
    if settings.karras is not None:
        found["use_karras_sigmas"] = settings.karras
    for name, key in (("timestep_spacing", "timestep_spacing"), ("karras", "use_karras_sigmas")):
        if key in found and key not in taken:
            raise InputError(f"sampling.{name}: {cls} has no {key}: leave it out, or take dpmsolver++, euler or unipc")
    return {**(dict.fromkeys([key for key in _SIGMAS if key in taken], False) if settings.karras else {}), **found}

"""Which noise schedules are taken: those of betas, on which the scores of memorization, τ and the neurons rest.

Looks at configurations alone.
"""

from __future__ import annotations

__all__ = ["unfit_schedule"]

from collections.abc import Mapping
from typing import Any

_SCHEDULERS = (
    "DDIMScheduler",
    "DDIMParallelScheduler",
    "DDPMScheduler",
    "DDPMParallelScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "SASolverScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
)
"""diffusers' schedulers that are made of betas and draw pictures from text."""
_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
"""Those that every one of them knows."""
_PREDICTIONS = ("epsilon", "v_prediction", "sample")
_OTHERS = {
    "sigma_data": "EDM",
    "use_flow_sigmas": "flow matching",
    "shift": "flow matching",
    "base_shift": "flow matching",
    "max_shift": "flow matching",
    "use_dynamic_shifting": "flow matching",
}
"""Keys that only schedules without betas have, or set, and what these are."""
_REMEDY = "τ and neurons mean nothing on it; give a checkpoint trained with betas (as DDIMScheduler, EulerDiscreteScheduler)"


def unfit_schedule(config: Mapping[str, Any], name: str) -> str:
    """Return what is wrong with the scheduler's configuration, of a class that `model_index.json` names; nothing where it is taken."""
    for told in (name, str(config.get("_class_name", name))):
        if told not in _SCHEDULERS:
            return f"its scheduler is a {told}, which has no schedule of betas that nemo-edge knows: {_REMEDY}"
    other = next((f"{kind} ({key})" for key, kind in _OTHERS.items() if config.get(key)), "")
    if config.get("sigma_max") and "beta_start" not in config:
        other = "EDM (sigma_max without betas)"
    if config.get("timestep_type") == "continuous":
        other = "continuous noise levels (timestep_type)"
    if other:
        return f"its scheduler's configuration is of {other}, without a schedule of betas: {_REMEDY}"
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in _PREDICTIONS:
        return f"its scheduler's prediction_type is {prediction}; nemo-edge takes {', '.join(_PREDICTIONS)}"
    return _unfit_betas(config) or _unfit_end(config, str(prediction))


def _unfit_betas(config: Mapping[str, Any]) -> str:
    times, trained = config.get("num_train_timesteps", 1000), config.get("trained_betas")
    if not _number(times) or times != int(times) or times < 1:
        return f"its scheduler has {times} num_train_timesteps: give their number"
    if trained is not None:
        if isinstance(trained, list) and len(trained) == times and all(_number(beta) and 0 <= beta <= 1 for beta in trained):
            return ""
        return f"its scheduler's trained_betas are not {times} numbers from 0 to 1"
    schedule = config.get("beta_schedule", "linear")
    if schedule not in _SCHEDULES:
        return f"its scheduler's beta_schedule is {schedule}; nemo-edge takes {', '.join(_SCHEDULES)}"
    for key in ("beta_start", "beta_end"):
        beta = config.get(key, 0.01)
        if not _number(beta) or not 0 < beta < 1:
            return f"its scheduler's {key} is {beta}, which is no beta: give a number between 0 and 1"
    return ""


def _unfit_end(config: Mapping[str, Any], prediction: str) -> str:
    """Pure noise at the end of the schedule tells nothing of ε: diffusers divides by zero there."""
    trained = config.get("trained_betas")
    if prediction != "epsilon" or not (config.get("rescale_betas_zero_snr") or (trained and trained[-1] >= 1)):
        return ""
    return (
        "its noise schedule ends in pure noise (rescale_betas_zero_snr), which no prediction of ε can undo: set prediction_type to what "
        "it was trained for (v_prediction), or rescale_betas_zero_snr to false, in scheduler/scheduler_config.json"
    )


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)

"""Which noise schedules are taken, from their configurations alone."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest

from nemo_edge.model._betas import _SCHEDULERS, unfit_schedule

EPSILON = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.mark.parametrize("name", _SCHEDULERS)
def test_every_scheduler_that_is_taken_is_diffusers_own_and_takes_its_own_defaults(name: str) -> None:
    assert unfit_schedule(EPSILON, name) == ""
    scheduler = getattr(diffusers, name)
    if hasattr(scheduler, "_backends"):  # it stands for one whose library (scipy, torchsde) is not here
        pytest.skip(f"{name} needs {scheduler._backends}")
    assert "beta_start" in scheduler.__init__.__annotations__


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"_class_name": "EDMEulerScheduler"}, "its scheduler is a EDMEulerScheduler, which has no schedule of betas"),
        ({"sigma_data": 0.5}, "is of EDM (sigma_data)"),
        ({"shift": 3.0}, "is of flow matching (shift)"),
        ({"prediction_type": "flow_prediction"}, "prediction_type is flow_prediction; nemo-edge takes epsilon"),
        ({"beta_schedule": "exponential"}, "beta_schedule is exponential"),
        ({"beta_start": 0}, "beta_start is 0, which is no beta"),
        ({"num_train_timesteps": True}, "has True num_train_timesteps"),
        ({"rescale_betas_zero_snr": True}, "ends in pure noise"),
        ({"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}, ""),
    ],
)
def test_what_is_wrong_is_said(changes: dict[str, Any], reason: str) -> None:
    found = unfit_schedule({**EPSILON, **changes}, "DDIMScheduler")
    assert reason in found if reason else found == ""

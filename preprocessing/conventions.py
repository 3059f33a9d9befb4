"""From the canonical 11-D action to the 7-D convention of Octo and OpenVLA, whose gripper is absolute with 1 = open.

Nothing in conversion or loading calls this on its own: the two conventions differ in the gripper's sign and meaning,
and a caller says so by naming it. The target space is `rt_models.spec.seven_d_action_spec`.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from preprocessing.dataset_spec import GROUPS

_COMMAND = 0.1  # a relative gripper value beyond +-0.1 is a command (Octo)


def seven_d(action_NA: np.ndarray, gripper: Literal["absolute", "relative", "none"]) -> np.ndarray:
    """float32 (N, 7) of one episode's canonical actions (N, 11): position delta, rotation delta, openness.

    Terminate and base are left out. Without a gripper the openness is 1 (Octo writes 0 for berkeley_cable_routing).
    """
    closedness = action_NA[:, GROUPS["gripper_closedness_action"]]
    if gripper == "absolute":
        openness = np.clip((1 - closedness) / 2, 0, 1)
    elif gripper == "relative":
        openness = held_openness(closedness[:, 0])[:, None]
    else:
        openness = np.ones_like(closedness)
    arm = [action_NA[:, GROUPS[group]] for group in ("world_vector", "rotation_delta")]
    return np.concatenate([*arm, openness], axis=1).astype(np.float32)


def held_openness(closedness_N: np.ndarray) -> np.ndarray:
    """Openness 0 or 1 that relative commands (+ closes, - opens) of one episode lead to.

    A command holds until the next one; before the first the gripper was in the opposite state; without any it is open.
    """
    commanded = np.flatnonzero(np.abs(closedness_N) > _COMMAND)
    if len(commanded) == 0:
        return np.ones(len(closedness_N), np.float32)
    opens = (closedness_N[commanded] < 0).astype(np.float32)
    last = np.searchsorted(commanded, np.arange(len(closedness_N)), side="right") - 1
    return np.where(last < 0, 1 - opens[0], opens[last])

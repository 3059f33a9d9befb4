"""LIBERO through openpi's client: `observation/image`, `prompt`, and the action that robosuite's controller takes.

robosuite's OSC_POSE (its default controller configuration) takes displacement and rotation in [-1, 1], where 1 is
0.05 m and 0.5 rad as an axis-angle vector, and a gripper of -1 open to +1 closed. The client turns the pictures by 180
degrees before it sends them, and executes 5 steps of an answer unless it is told `--replan-steps 1`.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.serving.adapters.seven import SevenNumbers


@dataclass(frozen=True, kw_only=True)
class Libero(SevenNumbers):
    """7-D in the controller's range. Values that the contract calls unitless are already in it, as in LIBERO's data."""

    image_keys: tuple[str, ...] = ("observation/image", "images.agentview", "image")
    text_keys: tuple[str, ...] = ("prompt", "task_description")
    position_unit_m: float = 0.05
    rotation_unit_rad: float = 0.5
    position_limit: float = 1.0
    rotation_limit: float = 1.0

    def gripper_of(self, closedness: float) -> float:
        return closedness

    def closedness_of(self, gripper: float) -> float:
        return gripper

    def gripper_unit(self) -> str:
        return "+1 closed, -1 open"

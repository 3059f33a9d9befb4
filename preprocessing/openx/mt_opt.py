"""MT-Opt (a fleet of KUKA iiwa), config rlds 1.0.0: absolute target poses, discrete gripper and terminate commands.

Source: features.json. A step commands either a pose, the gripper, or the end; on the last two the pose is all zero. The
canonical displacement is that from the last commanded pose to this one, in the frame of the poses (zero on the
episode's first pose and where no pose is commanded). Quaternions are taken as x, y, z, w. There is no language: the
instruction is the task code with spaces. The control rate is not documented; 10 Hz is kuka's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from preprocessing.dataset_spec import GROUPS, DatasetSpec, Proprio, Steps, TaskCode, Terminate
from preprocessing.provenance import FEATURES, Provenance

_POSE = "action/target_pose"


@dataclass(frozen=True, kw_only=True)
class PoseChange:
    """The change of a commanded absolute pose (x, y, z, quaternion): metres, or roll, pitch and yaw in radians."""

    group: str
    unit: str
    path: str = _POSE

    @property
    def width(self) -> int:
        return GROUPS[self.group].stop - GROUPS[self.group].start

    def values(self, steps: Steps) -> np.ndarray:
        pose_N7 = np.asarray(steps[self.path], np.float64).reshape(-1, 7)
        commanded = np.flatnonzero(pose_N7.any(axis=1))
        changes = np.zeros((len(pose_N7), 3))
        before, after = pose_N7[commanded[:-1]], pose_N7[commanded[1:]]
        if self.group == "world_vector":
            changes[commanded[1:]] = after[:, :3] - before[:, :3]
        else:
            changes[commanded[1:]] = _roll_pitch_yaw(_quotient(after[:, 3:], before[:, 3:]))
        return changes


@dataclass(frozen=True, kw_only=True)
class CloseOrOpen:
    """+1 at steps that command the gripper to close, -1 at those that command it to open, else 0."""

    group: str = "gripper_closedness_action"
    unit: str = "closedness"
    width: int = 1
    path: str = "action/close_gripper"
    open_path: str = "action/open_gripper"

    def values(self, steps: Steps) -> np.ndarray:
        close, open_ = (np.asarray(steps[path], np.float64).reshape(-1, 1) for path in (self.path, self.open_path))
        return close - open_


def _quotient(after_N4: np.ndarray, before_N4: np.ndarray) -> np.ndarray:
    """after * conjugate(before) of quaternions (x, y, z, w), normalised: the rotation from `before` to `after`."""
    ax, ay, az, aw = after_N4.T
    bx, by, bz, bw = (before_N4 * [-1, -1, -1, 1]).T
    product = [
        aw * bx + ax * bw + ay * bz - az * by,
        aw * by - ax * bz + ay * bw + az * bx,
        aw * bz + ax * by - ay * bx + az * bw,
        aw * bw - ax * bx - ay * by - az * bz,
    ]
    quotient_N4 = np.stack(product, axis=1)
    return quotient_N4 / np.maximum(np.linalg.norm(quotient_N4, axis=1, keepdims=True), 1e-12)


def _roll_pitch_yaw(quaternion_N4: np.ndarray) -> np.ndarray:
    """radians (N, 3) of unit quaternions (x, y, z, w), rotations about the fixed x, y, z axes in this order."""
    x, y, z, w = quaternion_N4.T
    roll = np.arctan2(2 * (w * x + y * z), 1 - 2 * (x * x + y * y))
    pitch = np.arcsin(np.clip(2 * (w * y - z * x), -1, 1))
    yaw = np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
    return np.stack([roll, pitch, yaw], axis=1)


SPEC = DatasetSpec(
    name="mt_opt",
    cameras={"image": "observation/image"},
    instruction=TaskCode(path="task_code"),
    action=(
        Terminate(path="action/terminate"),
        PoseChange(group="world_vector", unit="m"),
        PoseChange(group="rotation_delta", unit="rad"),
        CloseOrOpen(),
    ),
    source_actions=(_POSE, "action/close_gripper", "action/open_gripper", "action/terminate"),
    gripper="relative",
    control_hz=10,
    proprio=(
        Proprio(
            path="observation/state_dense",
            names=tuple(f"state_{i}" for i in range(7)),
            units=("unknown",) * 7,
        ),
        Proprio(path="observation/gripper_closed", names=("closed",), units=("closedness",)),
        Proprio(path="observation/height_to_bottom", names=("height",), units=("m",)),
    ),
)

PROVENANCE = Provenance(
    units=f"poses: {FEATURES}; that x, y, z are in m is the catalogue's word",
    gripper=f"commands to close or to open: {FEATURES}",
    rate="not documented; 10 Hz, as of kuka",
    rotation="quaternions, taken as x, y, z, w; their change as roll, pitch, yaw",
    unknown=("control rate", "order of the quaternion's values", "meaning of state_dense"),
)

"""What a robot sends at a control step, looked at against what the model reads: pictures by camera, and its state.

Axes: R robots, P values of a model's state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from rt_models.camera_roles import MAIN_CAMERA, camera_role
from rt_models.spec import DatasetContract, StateColumns, StateInput

Picture: TypeAlias = np.ndarray | Tensor
Frame: TypeAlias = Picture | Mapping[str, Picture]
"""A picture of the only camera that is read, or one by role."""
RobotState: TypeAlias = object
"""Physical values by name, or all in the order of the data set; of R robots an array (R, values)."""


class ObservationInlet:
    """Reads what robots of one data set send; without a data set every camera is needed, and a state is normalised."""

    def __init__(self, cameras: Sequence[str], state: StateInput | None, dataset: DatasetContract | None) -> None:
        lacking = () if dataset is None else dataset.without_cameras
        self.cameras = tuple(role for role in cameras if role not in lacking)
        """Those that a robot must send."""
        self._names = () if state is None else state.names
        self._side = None if dataset is None else dataset.state
        self._has_dataset = dataset is not None

    def pictures(self, frame: object) -> dict[str, object]:
        """The picture of each camera that is read. Raises ValueError naming one that is missing."""
        if isinstance(frame, Mapping):
            given = {camera_role(str(name)): picture for name, picture in frame.items()}
            missing = [role for role in self.cameras if given.get(role) is None]
            if missing:
                raise ValueError(
                    f"frame: camera {missing[0]} is missing: this policy reads {', '.join(self.cameras)}, and got "
                    f"{', '.join(given) or 'none'}"
                )
            return {role: given[role] for role in self.cameras}
        if len(self.cameras) != 1:
            raise ValueError(
                f"frame: this policy reads the cameras {', '.join(self.cameras)}: give a picture of each, by its name"
            )
        return {self.cameras[0]: frame}

    def state(self, state: RobotState, *, num_robots: int) -> tuple[Tensor, Tensor] | None:
        """(float32 (R, P) normalised, bool (R, P) whether the robot has the value); None where the model reads none.

        Raises ValueError, naming the value, for a state that is missing, incomplete or not finite.
        """
        if not self._names:
            return None
        state_RP = np.zeros((num_robots, len(self._names)), np.float32)
        if self._has_dataset and self._side is None:
            return torch.from_numpy(state_RP), torch.zeros(state_RP.shape, dtype=torch.bool)
        if state is None:
            known = ", ".join(self._names) if self._side is None else self._side.described()
            raise ValueError(f"state: it is missing, and this policy reads {known}")
        sent = [state] if num_robots == 1 and np.ndim(state) < 2 else state  # type: ignore[arg-type]
        if not isinstance(sent, Sequence | np.ndarray) or len(sent) != num_robots:
            raise ValueError(f"state: expected one for each of {num_robots} robots")
        columns = StateColumns(names=self._names, sides=(self._side,))
        for robot, values in enumerate(sent):
            if self._side is None:
                state_RP[robot] = _normalised(values, len(self._names))
            else:
                state_RP[robot] = columns.placed(self._side.read(values), 0)
        has_P = np.ones(len(self._names), bool) if self._side is None else columns.mask()[0]
        return torch.from_numpy(state_RP), torch.from_numpy(has_P).expand(num_robots, -1).clone()


def _normalised(values: object, size: int) -> np.ndarray:
    state_P = np.asarray(values, np.float32)
    if state_P.shape != (size,) or not np.isfinite(state_P).all():
        raise ValueError(f"state: expected {size} finite normalised numbers, got {state_P!r:.60}")
    return state_P


def camera_name(role: str) -> str:
    """What a message calls a camera's picture."""
    return "frame" if role == MAIN_CAMERA else f"frame of camera {role}"

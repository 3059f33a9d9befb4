"""What V-D4RL's format itself says of its fields (arXiv 2206.04779): a dataset spec that needs no file.

Actions are dm_control's, scaled to +-1: the effort of each actuator, 0 being none. Rewards are summed over the two
control steps that an action is repeated for. There is no language: the instruction is the task, the same everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from preprocessing.action_parts import Columns
from preprocessing.dataset_spec import Always, DatasetSpec, Proprio, Text
from preprocessing.tfds.features import Feature
from rt_models.action_space import SPACES, ActionSpace, SpaceDimension

IMAGE, TASK = "observation/image", "task"


def task_spec(name: str, features: Mapping[str, Feature], control_hz: float) -> DatasetSpec:
    """The spec of a folder with these features by step path, recorded at `control_hz` decisions a second."""
    space = _space(features["action"].fixed_shape()[0])
    states = [path for path in features if path.startswith("observation/") and path != IMAGE]
    return DatasetSpec(
        name=name,
        cameras={"image": IMAGE},
        instruction=Text(path=TASK),
        space=space,
        action=(Columns(names=space.names, path="action", unit="unitless", kind="effort", neutral=0.0),),
        source_actions=("action",),
        gripper="none",
        control_hz=control_hz,
        proprio=tuple(_state(path, math.prod(features[path].fixed_shape())) for path in states),
        flags=(Always(name="uninformative_instruction"),),
        notes="Row t + 1 of the files is the action of frame t; the last frame of an episode has none and is left out.",
    )


def _space(size: int) -> ActionSpace:
    """The shipped space of so many actuators, or one of this size."""
    name = f"actuators-{size}d"
    dimensions = tuple(SpaceDimension(name=f"actuator_{number}") for number in range(size))
    return SPACES.get(name) or ActionSpace(name=name, dimensions=dimensions)


def _state(path: str, count: int) -> Proprio:
    word = path.rpartition("/")[2]
    return Proprio(path=path, names=tuple(f"{word}_{number}" for number in range(count)), units=("unknown",) * count)

"""Datasets of three robots whose actions are not RT-1's: an arm's pose in six dimensions, two arms in fourteen joints
and grippers, seven joint velocities; in TFDS layout, with the YAML spec that a lab would write.

`fault` plants one mistake: the data stay as a robot would record them, and what is declared no longer fits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from tensorflow_datasets.core import features as tfds

from preprocessing.convert import ConvertConfig, convert
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.tfds.writer import RldsWriter, SplitPlan
from tests.support.tiny_rlds import jpeg

CONTROL_HZ = 10
STEPS = 20
Fault = Literal["none", "sign", "unit", "kind"]


@dataclass(frozen=True, kw_only=True)
class Robot:
    """`names` of the dimensions; `parts` of the spec's action; `kind` of the arm's dimensions and their `units`.

    `wrong` is the dimension that a fault of sign or unit is planted in.
    """

    name: str
    space: Any
    names: tuple[str, ...]
    parts: dict[str, Any]
    kind: Literal["delta", "absolute", "velocity"]
    units: tuple[str, ...]
    wrong: str

    def spec(self) -> dict[str, Any]:
        """The YAML of the spec."""
        return {
            "name": self.name,
            "cameras": {"image": "observation/image"},
            "instruction": "language_instruction",
            "control_hz": CONTROL_HZ,
            **({"gripper": "relative"} if self.space is None else {"space": self.space}),
            "action": self.parts,
            "proprio": [
                {"path": "observation/state", "names": [f"s_{n}" for n in self.names], "units": list(self.units)}
            ],
        }

    def episode(self, seed: int, fault: Fault) -> dict[str, Any]:
        """Steps of a robot that wanders, each dimension by up to 0.05 of its unit a step."""
        random = np.random.default_rng(seed)
        size = len(self.names)
        moves_TA = random.uniform(-0.05, 0.05, (STEPS, size))
        state_TA = random.uniform(-0.5, 0.5, size) + np.concatenate([np.zeros((1, size)), np.cumsum(moves_TA, axis=0)])
        command_TA = self._commands(moves_TA, state_TA, fault)
        steps = [
            {
                "observation": {"image": jpeg(random), "state": state_TA[step].astype(np.float32)},
                "action": command_TA[step].astype(np.float32),
                "language_instruction": ("fold the towel", "lift the lid")[seed % 2],
                "is_first": step == 0,
                "is_last": step == STEPS - 1,
                "is_terminal": False,
            }
            for step in range(STEPS)
        ]
        return {"steps": steps}

    def _commands(self, moves_TA: np.ndarray, state_TA: np.ndarray, fault: Fault) -> np.ndarray:
        kinds = {"delta": moves_TA, "absolute": state_TA[1:], "velocity": moves_TA * CONTROL_HZ}
        wrong_kind = "delta" if self.kind == "absolute" else "absolute"
        command_TA = np.array(kinds[wrong_kind if fault == "kind" else self.kind])
        place = self.names.index(self.wrong)
        command_TA[:, place] *= {"sign": -1, "unit": 57.3}.get(fault, 1)
        return command_TA


_POSE = tuple(f"{group}_{axis}" for group in ("position_delta", "rotation_delta") for axis in "xyz")
_ARMS = tuple(
    name for side in ("left", "right") for name in (*(f"{side}_joint_{i}" for i in range(6)), f"{side}_gripper_open")
)
_JOINTS = tuple(f"joint_{i}" for i in range(7))

POSE = Robot(
    name="pose_arm",
    space={"name": "pose-6d", "dimensions": list(_POSE)},
    names=_POSE,
    parts={
        "position_delta": {"path": "action", "unit": "m", "kind": "delta", "state": [f"s_{n}" for n in _POSE[:3]]},
        "rotation_delta": {
            "path": "action",
            "first": 3,
            "unit": "rad",
            "kind": "delta",
            "rotation": "euler xyz",
            "state": "s_rotation_delta",
        },
    },
    kind="delta",
    units=("m",) * 3 + ("rad",) * 3,
    wrong="position_delta_y",
)
TWO_ARMS = Robot(
    name="two_arms",
    space="two-arms-14d",
    names=_ARMS,
    parts={
        f"{side}_{part}": {
            "path": "action",
            "first": first + at,
            "unit": unit,
            "kind": "absolute",
            "state": f"s_{side}_{part}",
        }
        for side, at in (("left", 0), ("right", 7))
        for part, first, unit in (("joint", 0, "rad"), ("gripper_open", 6, "openness"))
    },
    kind="absolute",
    units=((("rad",) * 6) + ("openness",)) * 2,
    wrong="right_joint_2",
)
JOINTS = Robot(
    name="seven_joints",
    space="joints-7d",
    names=_JOINTS,
    parts={"joint": {"path": "action", "unit": "rad/s", "kind": "velocity", "state": "s_joint"}},
    kind="velocity",
    units=("rad",) * 7,
    wrong="joint_4",
)
ROBOTS = (POSE, TWO_ARMS, JOINTS)
SEVEN = Robot(
    name="seven_d",
    space="end-effector-7d",
    names=(*_POSE, "gripper_open"),
    parts={
        "position_delta": {"path": "action", "unit": "m", "kind": "delta"},
        "rotation_delta": {"path": "action", "first": 3, "unit": "rad", "kind": "delta", "rotation": "euler xyz"},
        "gripper_open": {"path": "action", "first": 6, "unit": "openness", "kind": "delta"},
    },
    kind="delta",
    units=("m",) * 3 + ("rad",) * 3 + ("openness",),
    wrong="position_delta_y",
)
ELEVEN = Robot(
    name="eleven_d",
    space=None,  # RT-1's own
    names=SEVEN.names,
    parts={
        "world_vector": {"path": "action", "unit": "m"},
        "rotation_delta": {"path": "action", "first": 3, "unit": "rad"},
        "gripper_closedness_action": {"path": "action", "first": 6, "scale": -1, "unit": "closedness"},
    },
    kind="delta",
    units=SEVEN.units,
    wrong="position_delta_y",
)
INTO_RT1 = "world_vector = position_delta; rotation_delta = rotation_delta; gripper_closedness_action = -gripper_open"
"""The map of SEVEN into RT-1's space: their grippers record a change of openness here."""


def write_source(robot: Robot, folder: Path, *, fault: Fault = "none", episodes: int = 8) -> Path:
    """The dataset's version folder."""
    step = {
        "observation": {
            "image": tfds.Image(shape=(16, 24, 3), encoding_format="jpeg"),
            "state": tfds.Tensor(shape=(len(robot.names),), dtype=np.float32),
        },
        "action": tfds.Tensor(shape=(len(robot.names),), dtype=np.float32),
        "language_instruction": tfds.Text(),
        **{name: tfds.Scalar(dtype=np.bool_) for name in ("is_first", "is_last", "is_terminal")},
    }
    writer = RldsWriter(
        name=robot.name, version="1.0.0", features=tfds.FeaturesDict({"steps": tfds.Dataset(step)}), description="test"
    )

    def of_split(first: int, count: int) -> Iterator[dict[str, Any]]:
        return (robot.episode(seed, fault) for seed in range(first, first + count))

    splits = {
        "train": SplitPlan(episodes=of_split(0, episodes), num_episodes=episodes, num_shards=2),
        "val": SplitPlan(episodes=of_split(1000, 2), num_episodes=2),
    }
    return Path(writer.write(folder, splits))


def make_store(robot: Robot, folder: Path, *, fault: Fault = "none", split: str = "train") -> EpisodeStore:
    """The store of a split, made with the YAML spec as `rtp preprocess` makes it."""
    source = folder / robot.name / "1.0.0"
    if not source.is_dir():
        write_source(robot, folder, fault=fault)
    spec = folder / f"{robot.name}.yaml"
    spec.write_text(yaml.safe_dump(robot.spec()))
    config = ConvertConfig(workers=0, dataset=str(spec), encoder="hash", split=split)
    return EpisodeStore.open(convert(str(source), str(folder / "stores"), config).store)

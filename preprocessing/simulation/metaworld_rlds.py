"""What a Meta-World episode looks like as RLDS: fields in the style of fractal20220817_data, and the instructions."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from tensorflow_datasets.core.features import Dataset, FeaturesDict, Image, Scalar, Tensor, Text

from rt_models.action_space import ARM, TERMINATE

INSTRUCTIONS = {
    "assembly-v3": "put the ring on the peg",
    "basketball-v3": "put the ball into the hoop",
    "bin-picking-v3": "move the block to the other bin",
    "box-close-v3": "put the lid on the box",
    "button-press-topdown-v3": "press the button from above",
    "button-press-topdown-wall-v3": "press the button behind the wall from above",
    "button-press-v3": "press the button",
    "button-press-wall-v3": "press the button behind the wall",
    "coffee-button-v3": "press the button of the coffee machine",
    "coffee-pull-v3": "pull the mug away from the coffee machine",
    "coffee-push-v3": "push the mug under the coffee machine",
    "dial-turn-v3": "turn the dial",
    "disassemble-v3": "take the ring off the peg",
    "door-close-v3": "close the door",
    "door-lock-v3": "lock the door",
    "door-open-v3": "open the door",
    "door-unlock-v3": "unlock the door",
    "drawer-close-v3": "close the drawer",
    "drawer-open-v3": "open the drawer",
    "faucet-close-v3": "turn the faucet off",
    "faucet-open-v3": "turn the faucet on",
    "hammer-v3": "hammer the nail in",
    "hand-insert-v3": "put the hand into the hole",
    "handle-press-side-v3": "press the handle down from the side",
    "handle-press-v3": "press the handle down",
    "handle-pull-side-v3": "pull the handle up from the side",
    "handle-pull-v3": "pull the handle up",
    "lever-pull-v3": "pull the lever up",
    "peg-insert-side-v3": "put the peg into the hole",
    "peg-unplug-side-v3": "pull the peg out",
    "pick-out-of-hole-v3": "lift the puck out of the hole",
    "pick-place-v3": "pick up the puck and bring it to the goal",
    "pick-place-wall-v3": "pick up the puck and bring it over the wall",
    "plate-slide-back-side-v3": "pull the plate out of the cabinet sideways",
    "plate-slide-back-v3": "pull the plate out of the cabinet",
    "plate-slide-side-v3": "slide the plate into the cabinet sideways",
    "plate-slide-v3": "slide the plate into the cabinet",
    "push-back-v3": "pull the puck back",
    "push-v3": "push the puck to the goal",
    "push-wall-v3": "push the puck around the wall",
    "reach-v3": "reach the goal",
    "reach-wall-v3": "reach the goal behind the wall",
    "shelf-place-v3": "put the block on the shelf",
    "soccer-v3": "push the ball into the goal",
    "stick-pull-v3": "pull the thermos with the stick",
    "stick-push-v3": "push the thermos with the stick",
    "sweep-into-v3": "sweep the block into the hole",
    "sweep-v3": "sweep the block off the table",
    "window-close-v3": "close the window",
    "window-open-v3": "open the window",
}


@dataclass(frozen=True, kw_only=True)
class Recording:
    """One success: T observations; the action at the last one is zero, at the one before it the end is declared.

    `state_TS` is hand x, y, z in metres and the opening of the gripper, 0 closed to 1 open. `action_TA` is the
    simulator's own action, x, y, z and gripper in [-1, 1], averaged over the simulator steps of a recorded step.
    `frames_T` are the main camera's, `further_frames` by role those of the others.
    """

    frames_T: list[bytes]
    further_frames: Mapping[str, list[bytes]] = field(default_factory=dict)
    state_TS: np.ndarray
    action_TA: np.ndarray
    metres_per_action: float


def picture_field(role: str) -> str:
    """The field of an observation that holds the pictures of a camera: image, wrist_image."""
    return "image" if role == "image" else f"{role}_image"


def dataset_features(
    *, height: int, width: int, further_sizes: Mapping[str, tuple[int, int]] | None = None
) -> FeaturesDict:
    """Features of an episode whose frames have this size in pixels, those of further cameras, by role, theirs."""
    floats = functools.partial(Tensor, dtype=np.float32)
    action = {
        "terminate_episode": Tensor(shape=(3,), dtype=np.int32, doc="one-hot: terminate, arm and gripper, base"),
        "world_vector": floats(shape=(3,), doc="commanded displacement of the hand in the world frame, m"),
        "rotation_delta": floats(shape=(3,), doc="always 0: the hand does not rotate, rad"),
        "gripper_closedness_action": floats(shape=(1,), doc="mean command: +1 closes, -1 opens, absolute"),
        "base_displacement_vector": floats(shape=(2,), doc="always 0: the base is fixed, m"),
        "base_displacement_vertical_rotation": floats(shape=(1,), doc="always 0, rad"),
        "metaworld_action": floats(shape=(4,), doc="mean of the simulator's x, y, z, gripper actions, -1 to 1"),
    }
    observation = {
        **{
            picture_field(role): Image(shape=(*size, 3), encoding_format="jpeg")
            for role, size in {"image": (height, width), **(further_sizes or {})}.items()
        },
        "state": floats(shape=(4,), doc="hand x, y, z in m, world frame; gripper opening, 0 closed to 1 open"),
        "natural_language_instruction": Text(),
    }
    step = {
        "observation": FeaturesDict(observation),
        "action": FeaturesDict(action),
        "reward": Scalar(dtype=np.float32, doc="1 on the last step, which is reached by success, else 0"),
        "discount": Scalar(dtype=np.float32, doc="0 on the last step, else 1"),
        **{name: Scalar(dtype=np.bool_) for name in ("is_first", "is_last", "is_terminal")},
    }
    metadata = {
        "episode_id": Text(),
        "task": Text(),
        "seed": Scalar(dtype=np.int64),
        "success": Scalar(dtype=np.bool_),
        "control_hz": Scalar(dtype=np.float32, doc="recorded steps per second"),
    }
    return FeaturesDict({"steps": Dataset(step), "episode_metadata": FeaturesDict(metadata)})


def rlds_episode(recording: Recording, *, task: str, seed: int, control_hz: int) -> dict[str, object]:
    """A recording with frames as nested dictionaries that fit `dataset_features`."""
    metadata = {"episode_id": f"{task}/{seed}", "task": task, "seed": seed, "success": True, "control_hz": control_hz}
    steps = [_step(recording, index, INSTRUCTIONS[task]) for index in range(len(recording.state_TS))]
    return {"steps": steps, "episode_metadata": metadata}


def _step(recording: Recording, index: int, instruction: str) -> dict[str, object]:
    action = recording.action_TA[index].astype(np.float32)
    last = len(recording.state_TS) - 1
    mode = TERMINATE if index == last - 1 else ARM
    return {
        "observation": {
            "image": recording.frames_T[index],
            **{picture_field(role): frames_T[index] for role, frames_T in recording.further_frames.items()},
            "state": recording.state_TS[index],
            "natural_language_instruction": instruction,
        },
        "action": {
            "terminate_episode": np.eye(3, dtype=np.int32)[mode],
            "world_vector": (recording.action_TA[index][:3] * recording.metres_per_action).astype(np.float32),
            "rotation_delta": np.zeros(3, np.float32),
            "gripper_closedness_action": action[3:],
            "base_displacement_vector": np.zeros(2, np.float32),
            "base_displacement_vertical_rotation": np.zeros(1, np.float32),
            "metaworld_action": action,
        },
        "reward": float(index == last),
        "discount": float(index < last),
        "is_first": index == 0,
        "is_last": index == last,
        "is_terminal": index == last,
    }

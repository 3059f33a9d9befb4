"""How recorded episodes lie in a folder: TFDS features, and the dataset spec by which `rtp preprocess` reads them.

The canonical action is what the policy answered, in the robot's own space and units, so that a store made from it has
the meanings of the store that the policy was trained on.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from tensorflow_datasets.core.features import Dataset, FeaturesDict, Image, Scalar, Tensor, Text

from pipelines.serving.recording.messages import RobotLayout
from preprocessing.tfds.growing import GrowingDataset, write_whole_bytes
from preprocessing.tfds.writer import RldsWriter
from rt_models.action_space import RT1_SPACE
from rt_models.spec import EMBEDDING_WIDTH

SPEC = "spec.yaml"
UNKNOWN = -1
"""In place of success, where nobody said."""
_RATES = {
    "told_hz": "steps a second as the robot said; 0: it did not",
    "measured_hz": "steps a second by the server's clock; 0: of a single step",
}
_VALUES, _TERMINATE = "action/values", "action/terminate_episode"
_TEXT, _VECTOR = "observation/natural_language_instruction", "observation/natural_language_embedding"
_NOTES = "Recorded by rtp serve."
_UNKNOWN_GRIPPER = " Its policy does not say whether the gripper of RT-1's space holds or changes."


def dataset_of(root: Path, layout: RobotLayout) -> GrowingDataset:
    """The folder of such steps below `root`: NAME/1.0.0, or where that holds others the next version."""
    spec = yaml.safe_dump(_spec(layout), sort_keys=False, width=120).encode()
    for number in itertools.count():
        writer = RldsWriter(
            name=layout.side.name,
            version=f"1.0.{number}",
            features=features(layout),
            description="What robots did with a policy that rtp serve served.",
        )
        dataset = GrowingDataset(root=root, writer=writer)
        written = dataset.folder / SPEC
        if written.exists() and written.read_bytes() != spec:
            continue
        try:
            dataset.begin()
        except ValueError:  # another size of frames, or other fields
            continue
        write_whole_bytes(written, spec)
        return dataset
    raise AssertionError("there is always another version")


def features(layout: RobotLayout) -> FeaturesDict:
    observation: dict[str, Any] = {
        role: Image(shape=(height, width, 3), encoding_format="jpeg") for role, height, width in layout.cameras
    }
    observation["natural_language_instruction"] = Text()
    if layout.encoder:
        observation["natural_language_embedding"] = Tensor(shape=(EMBEDDING_WIDTH,), dtype=np.float32)
    for field, places in _state_fields(layout).items():
        observation[field] = Tensor(shape=(len(places),), dtype=np.float32)
    action = {"values": Tensor(shape=(layout.space.size,), dtype=np.float32, doc=", ".join(layout.space.names))}
    if _terminates(layout):
        action["terminate_episode"] = Tensor(shape=(3,), dtype=np.int32, doc="one-hot: terminate, arm, base")
    step = {
        "observation": FeaturesDict(observation),
        "action": FeaturesDict(action),
        "tokens": Tensor(shape=(layout.num_tokens,), dtype=np.int32, doc="the bins chosen, in the policy's space"),
        **{name: Scalar(dtype=np.bool_) for name in ("is_first", "is_last", "is_terminal")},
    }
    metadata: dict[str, Any] = {name: Text() for name in ("robot", "model", "contract", "began")}
    metadata["success"] = Scalar(dtype=np.int32, doc=f"1: solved, 0: not, {UNKNOWN}: nobody said")
    metadata |= {name: Scalar(dtype=np.float32, doc=said) for name, said in _RATES.items()}
    return FeaturesDict({"steps": Dataset(step), "episode_metadata": FeaturesDict(metadata)})


def episode(layout: RobotLayout, steps: Iterator[Mapping[str, Any]], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """An episode for `features`, from steps with frames, instruction, embedding, values, tokens and success.

    Every action in it was answered, the last one too: no step is terminal but a last one at which the robot said that
    its task was solved, whose action nobody needed.
    """
    rows, solved = [], False
    for step in steps:
        rows.append(_step(layout, step))
        solved = step.get("success", False)
    for place, row in enumerate(rows):
        is_last = place == len(rows) - 1
        row |= {"is_first": place == 0, "is_last": is_last, "is_terminal": is_last and solved}
    return {"steps": rows, "episode_metadata": dict(metadata)}


def _step(layout: RobotLayout, step: Mapping[str, Any]) -> dict[str, Any]:
    values_A = np.array(step["values"], np.float32)
    observation = {**step["frames"], "natural_language_instruction": step["instruction"]}
    if layout.encoder:
        observation["natural_language_embedding"] = np.frombuffer(step["embedding"], np.float32)
    for field, places in _state_fields(layout).items():
        observation[field] = np.array([step["state"][place] for place in places], np.float32)
    action: dict[str, Any] = {"values": values_A}
    if _terminates(layout):
        action["terminate_episode"] = np.eye(3, dtype=np.int32)[int(values_A[0])]
    return {"observation": observation, "action": action, "tokens": np.array(step["tokens"], np.int32)}


def _state_fields(layout: RobotLayout) -> dict[str, list[int]]:
    """The values of the state by the field that they lie in: a store will call the value x of the field arm "arm/x"."""
    fields: dict[str, list[int]] = {}
    for place, (name, _) in enumerate(layout.state):
        fields.setdefault(name.partition("/")[0], []).append(place)
    return fields


def _terminates(layout: RobotLayout) -> bool:
    return _is_rt1(layout) and layout.side.action_mask[0]


def _is_rt1(layout: RobotLayout) -> bool:
    return layout.space.space().identity == RT1_SPACE.identity


# --- the spec ---


def _spec(layout: RobotLayout) -> dict[str, Any]:
    vectors = {"embedding": _VECTOR, "embedding_encoder": layout.encoder} if layout.encoder else {}
    return {
        "name": layout.side.name,
        "cameras": {role: f"observation/{role}" for role, _, _ in layout.cameras},
        "instruction": _TEXT,
        **vectors,
        "control_hz": layout.side.control_hz,
        **({"proprio": _proprio(layout)} if layout.state else {}),
        **(_rt1_action(layout) if _is_rt1(layout) else _own_action(layout)),
        "flags": {
            "failure": {"path": "episode_metadata/success", "equals": 0},
            "unknown_success": {"path": "episode_metadata/success", "equals": UNKNOWN},
        },
        "notes": _NOTES + (_UNKNOWN_GRIPPER if _is_rt1(layout) and not layout.side.gripper else ""),
    }


def _proprio(layout: RobotLayout) -> list[dict[str, Any]]:
    return [
        {
            "path": f"observation/{field}",
            "names": [layout.state[place][0].partition("/")[2] for place in places],
            "units": [layout.state[place][1] for place in places],
        }
        for field, places in _state_fields(layout).items()
    ]


def _rt1_action(layout: RobotLayout) -> dict[str, Any]:
    """By RT-1's groups, of which a data set has the first dimensions or none."""
    mask, units, action = layout.side.action_mask, layout.side.units, {}
    for group, place in RT1_SPACE.groups().items():
        width = sum(mask[place])
        if group == "terminate_episode" and width:
            action[group] = {"path": _TERMINATE}
        elif width:
            action[group] = {"path": _VALUES, "first": place.start, "width": width, "unit": units[place.start]}
    known = layout.side.gripper or "absolute"
    return {"gripper": known if "gripper_closedness_action" in action else "none", "action": action}


def _own_action(layout: RobotLayout) -> dict[str, Any]:
    space, side = layout.space, layout.side
    dimensions = [{d.name: list(d.class_names)} if d.class_names else d.name for d in space.dimensions]
    action: dict[str, Any] = {}
    for place, (dimension, is_there) in enumerate(zip(space.dimensions, side.action_mask, strict=True)):
        if not is_there:
            continue
        action[dimension.name] = part = {"path": _VALUES, "first": place, "unit": side.units[place]}
        if not dimension.class_names:
            meaning = side.meanings[place]
            part |= {"kind": meaning.kind, "frame": meaning.frame, "rotation": meaning.rotation}
            part["neutral"] = "none" if meaning.neutral is None else meaning.neutral
    return {"space": {"name": space.name, "dimensions": dimensions, "gripper": space.gripper}, "action": action}

"""A robot with a main camera of 16x24, a camera on its hand of 8x8 and a state of four values, in TFDS layout, with the
YAML spec that a lab would write."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from tensorflow_datasets.core import features as tfds

from preprocessing.convert import ConvertConfig, convert
from preprocessing.store.episode_store import EpisodeStore
from tests.support.tiny_rlds import jpeg, write_dataset

STATE = ("x", "y", "z", "opening")
HAND = "hand"


def source(
    folder: Path,
    *,
    name: str = "two_cameras",
    shards: Sequence[Sequence[int]] = ((9, 4), (6,)),
    hand: str | None = HAND,
    hand_size: tuple[int, int] = (8, 8),
    state: bool = True,
    seed: int = 0,
) -> Path:
    """A dataset of episodes of these lengths; with `hand` None the robot has no second camera."""
    random, image = np.random.default_rng(seed), tfds.Image(shape=(None, None, 3), encoding_format="jpeg")
    observation = {
        "image": image,
        **({f"{hand}_image": image} if hand else {}),
        **({"state": tfds.Tensor(shape=(4,), dtype=np.float32)} if state else {}),
    }
    steps = {
        "observation": observation,
        "action": tfds.Tensor(shape=(4,), dtype=np.float32),
        "language_instruction": tfds.Text(),
        **dict.fromkeys(("is_first", "is_last", "is_terminal"), tfds.Scalar(dtype=np.bool_)),
    }
    features = tfds.FeaturesDict({"steps": tfds.Dataset(steps)})

    def episode(length: int) -> dict[str, Any]:
        return {"steps": [_step(random, step, length, hand, hand_size, state) for step in range(length)]}

    return write_dataset(folder, name, features, [[episode(length) for length in shard] for shard in shards])


def _step(
    random: np.random.Generator, step: int, length: int, hand: str | None, hand_size: tuple[int, int], state: bool
) -> dict[str, Any]:
    return {
        "observation": {
            "image": jpeg(random),
            **({f"{hand}_image": jpeg(random, *hand_size)} if hand else {}),
            **({"state": random.normal(size=4).astype(np.float32)} if state else {}),
        },
        "action": random.normal(size=4).astype(np.float32),
        "language_instruction": ("lift it", "drop it")[length % 2],
        "is_first": step == 0,
        "is_last": step == length - 1,
        "is_terminal": False,
    }


def spec(path: Path, *, name: str = "two_cameras", hand: str | None = HAND, state: bool = True) -> Path:
    """The spec file."""
    proprio = [{"path": "observation/state", "names": list(STATE), "units": ["m", "m", "m", "openness"]}]
    path.write_text(
        yaml.safe_dump(
            {
                "name": name,
                "cameras": {"image": "observation/image", **({hand: f"observation/{hand}_image"} if hand else {})},
                "instruction": "language_instruction",
                "control_hz": 5,
                "gripper": "absolute",
                "action": {
                    "world_vector": {"path": "action", "unit": "m"},
                    "gripper_closedness_action": {"path": "action", "first": 3, "unit": "closedness"},
                },
                **({"proprio": proprio} if state else {}),
            },
            sort_keys=False,
        )
    )
    return path


def store(
    folder: Path, *, name: str = "two_cameras", hand: str | None = HAND, state: bool = True, **asked: Any
) -> EpisodeStore:
    """The store of a dataset in `folder`; what is `asked` goes to `source`, but for the settings of the conversion."""
    settings = {key: asked.pop(key) for key in ("cameras", "image_size") if key in asked}
    settings.setdefault("cameras", ("image", hand) if hand else ("image",))
    written = source(folder / "source", name=name, hand=hand, state=state, **asked)
    declared = spec(folder / "robot.yaml", name=name, hand=hand, state=state)
    config = ConvertConfig(dataset=str(declared), encoder="hash", workers=0, **settings)
    return EpisodeStore.open(convert(str(written), str(folder / "out"), config).store)

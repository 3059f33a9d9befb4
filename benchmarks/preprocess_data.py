"""RLDS datasets for the preprocessing benchmarks: RT-1's schema, made-up episodes, JPEG frames of a real one's size.

The schema is what the fractal20220817_data spec reads, and nothing else, so that no side decodes a field for nothing.
A frame is a random scene with fine texture and noise; at 256x320 it takes about 35 KB, RT-1's own about 30 KB.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image
from tensorflow_datasets.core.features import Dataset, FeaturesDict, Scalar, Tensor, Text
from tensorflow_datasets.core.features import Image as ImageFeature

from preprocessing.tfds.writer import RldsWriter, SplitPlan

NAME, VERSION = "fractal20220817_data", "0.1.0"
_DISTINCT_FRAMES = 64


def write_dataset(
    root: Path, *, num_episodes: int, num_steps: int, num_shards: int, size: tuple[int, int] = (256, 320)
) -> Path:
    """Write `num_episodes` of `num_steps` each below `root`; the version folder. `size` is (height, width)."""
    rng = np.random.default_rng(0)
    frames = [scene(rng, *size) for _ in range(_DISTINCT_FRAMES)]
    episodes = (episode(rng, frames, number, num_steps) for number in range(num_episodes))
    writer = RldsWriter(name=NAME, version=VERSION, features=_features(), description="Made-up episodes.")
    plan = SplitPlan(episodes=episodes, num_episodes=num_episodes, num_shards=num_shards)
    return writer.write(root, {"train": plan})


def scene(rng: np.random.Generator, height: int, width: int) -> bytes:
    """One JPEG frame of quality 95 with colour subsampling: large blobs, fine texture, sensor noise."""
    blobs, texture = (_resized_noise(rng, shape, height, width) for shape in ((8, 10), (height // 4, width // 4)))
    image = 0.8 * blobs + 0.2 * texture + rng.normal(0, 2, (height, width, 1))
    return simplejpeg.encode_jpeg(np.clip(image, 0, 255).astype(np.uint8), quality=95, colorsubsampling="420")


def episode(rng: np.random.Generator, frames: list[bytes], number: int, num_steps: int) -> dict[str, Any]:
    """An episode in the features' form, with one of 20 instructions."""
    text = f"pick object {number % 20}"
    vector = np.random.default_rng(number % 20).normal(size=512).astype(np.float32)
    return {
        "steps": list(_steps(rng, frames, text, vector, num_steps)),
        "aspects": {"undesirable": False},
    }


def _steps(
    rng: np.random.Generator, frames: list[bytes], text: str, vector: np.ndarray, num_steps: int
) -> Iterator[dict[str, Any]]:
    for step in range(num_steps):
        yield {
            "observation": {
                "image": frames[rng.integers(len(frames))],
                "natural_language_instruction": text,
                "natural_language_embedding": vector,
                "base_pose_tool_reached": rng.normal(size=7).astype(np.float32),
                "gripper_closed": rng.random(1).astype(np.float32),
                "height_to_bottom": rng.random(1).astype(np.float32),
            },
            "action": {
                "world_vector": rng.normal(0, 0.05, 3).astype(np.float32),
                "rotation_delta": rng.normal(0, 0.1, 3).astype(np.float32),
                "gripper_closedness_action": rng.integers(-1, 2, 1).astype(np.float32),
                "base_displacement_vertical_rotation": np.zeros(1, np.float32),
                "base_displacement_vector": np.zeros(2, np.float32),
                "terminate_episode": np.array([0, 1, 0], np.int32),
            },
            "reward": np.float32(step == num_steps - 1),
            "is_first": step == 0,
            "is_last": step == num_steps - 1,
            "is_terminal": step == num_steps - 1,
        }


def _features() -> FeaturesDict:
    vectors = {size: Tensor(shape=(size,), dtype=np.float32) for size in (1, 2, 3, 7, 512)}
    observation = {
        "image": ImageFeature(shape=(None, None, 3), encoding_format="jpeg"),
        "natural_language_instruction": Text(),
        "natural_language_embedding": vectors[512],
        "base_pose_tool_reached": vectors[7],
        "gripper_closed": vectors[1],
        "height_to_bottom": vectors[1],
    }
    action = {
        "world_vector": vectors[3],
        "rotation_delta": vectors[3],
        "gripper_closedness_action": vectors[1],
        "base_displacement_vertical_rotation": vectors[1],
        "base_displacement_vector": vectors[2],
        "terminate_episode": Tensor(shape=(3,), dtype=np.int32),
    }
    step = {
        "observation": FeaturesDict(observation),
        "action": FeaturesDict(action),
        "reward": Scalar(dtype=np.float32),
        **{name: Scalar(dtype=np.bool_) for name in ("is_first", "is_last", "is_terminal")},
    }
    return FeaturesDict({"steps": Dataset(step), "aspects": FeaturesDict({"undesirable": Scalar(dtype=np.bool_)})})


def _resized_noise(rng: np.random.Generator, shape: tuple[int, int], height: int, width: int) -> np.ndarray:
    """float (height, width, 3)."""
    noise = Image.fromarray(rng.integers(0, 255, (*shape, 3), dtype=np.uint8))
    return np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC), np.float64)

"""A few RT-1 episodes in the shape of the release, with the vectors of a small SavedModel for its sentence encoder."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np

from preprocessing.tfds.features import flatten
from tests.support.tiny_rlds import fabricate, jpeg, write_records

NAME = "fractal20220817_data"
TEXTS = ("pick coke can", "move coke can near apple", "open middle drawer")
STEPS = 8
_SAVE = """
    import sys
    import numpy as np
    import tensorflow as tf

    class Encoder(tf.Module):
        def __init__(self):
            self.table = tf.Variable(np.random.default_rng(0).normal(size=(997, 512)).astype(np.float32))

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
        def __call__(self, texts):
            words = tf.strings.to_hash_bucket_fast(tf.strings.split(texts).to_tensor(""), 997)
            return tf.math.l2_normalize(tf.reduce_sum(tf.gather(self.table, words), axis=1), axis=1)

    encoder = Encoder()
    tf.saved_model.save(encoder, sys.argv[1])
    np.save(sys.argv[1] + "/vectors.npy", encoder(tf.constant(sys.argv[2:])).numpy())
"""


def save_encoder(folder: Path) -> np.ndarray:
    """A SavedModel of 512 values a text, hashed word by word; the vectors of TEXTS. TensorFlow in its own process."""
    command = [sys.executable, "-c", textwrap.dedent(_SAVE), str(folder), *TEXTS]
    subprocess.run(command, check=True, capture_output=True)
    return np.load(folder / "vectors.npy")


def write_fractal(folder: Path, schema: Path, vectors: np.ndarray, *, episodes: int) -> Path:
    """The version folder: an arm that goes where it is told, a gripper that closes once."""
    tree = json.loads(schema.read_text())
    records = [
        fabricate(flatten(tree), _episode(number, vectors[number % len(TEXTS)]), num_steps=STEPS)
        for number in range(episodes)
    ]
    folder.parent.mkdir(parents=True)
    return write_records(folder, NAME, tree, records)


def _episode(number: int, vector: np.ndarray) -> dict[str, object]:
    rng = np.random.default_rng(number)
    move = rng.uniform(-0.05, 0.05, (STEPS, 3)).astype(np.float32)
    move[-1] = 0
    place = np.cumsum(np.vstack([rng.uniform(0.3, 0.6, 3), move[:-1]]), axis=0)
    pose = np.hstack([place, np.tile([0, 0, 0, 1], (STEPS, 1))]).astype(np.float32)
    grips = np.zeros((STEPS, 1), np.float32)
    grips[STEPS // 2] = 1
    closed = (np.cumsum(grips, axis=0) > 0).astype(np.float32)
    last = np.arange(STEPS) == STEPS - 1
    return {
        "observation/image": [jpeg(rng, 64, 80) for _ in range(STEPS)],
        "observation/natural_language_instruction": [TEXTS[number % len(TEXTS)].encode()] * STEPS,
        "observation/natural_language_embedding": np.tile(vector, (STEPS, 1)),
        "observation/base_pose_tool_reached": pose,
        "observation/gripper_closed": closed,
        "action/world_vector": move,
        "action/rotation_delta": rng.uniform(-0.1, 0.1, (STEPS, 3)).astype(np.float32),
        "action/gripper_closedness_action": grips,
        "action/base_displacement_vector": np.zeros((STEPS, 2), np.float32),
        "action/base_displacement_vertical_rotation": np.zeros((STEPS, 1), np.float32),
        "action/terminate_episode": np.eye(3, dtype=np.int32)[np.where(last, 0, 1)],
        "is_first": np.arange(STEPS) == 0,
        "is_last": last,
        "is_terminal": last,
        "aspects/undesirable": [False],
        "reward": last.astype(np.float32),
    }

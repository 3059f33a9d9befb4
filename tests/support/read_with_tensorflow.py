"""Run as a program: splits of a dataset as real TFDS and TensorFlow read them, images left encoded, as a pickle.

python read_with_tensorflow.py FOLDER OUT SPLIT ... A process of its own keeps TensorFlow out of the other tests.
"""

from __future__ import annotations

import gc
import pickle
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    gc.disable()  # with garbage collection TensorFlow takes half as long again to import

import tensorflow_datasets as tfds


def episodes(folder: str, split: str) -> list[dict[str, Any]]:
    """Each episode as nested dictionaries of NumPy values, `steps` as a list of them."""
    encoded = {"steps": {"observation": {"image": tfds.decode.SkipDecoding()}}}
    builder: Any = tfds.builder_from_directory(folder)
    dataset = builder.as_dataset(split=split, decoders=encoded)
    return [{**episode, "steps": list(episode["steps"])} for episode in tfds.as_numpy(dataset)]


if __name__ == "__main__":
    folder, out, *splits = sys.argv[1:]
    Path(out).write_bytes(pickle.dumps({split: episodes(folder, split) for split in splits}))

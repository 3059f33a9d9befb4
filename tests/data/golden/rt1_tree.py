"""Rebuild the random flax parameter tree that the golden RT-1 logits were computed from (NumPy only).

The official JAX RT-1-X (google-deepmind/open_x_embodiment, models/rt1.py) was run once on parameters drawn here, so a
golden file needs to hold only its outputs and the calibrated BatchNorm statistics, not 35M weights.

A leaf is addressed by its path in the flax variables, for example
"params/image_tokenizer/EfficientNetWithFilm_0/Stem_0/conv2d/kernel", in the flax layout (HWIO convolutions, (in, out)
dense).
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent


def leaf(path: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """One float32 parameter: a pure function of its path, shape and the seed."""
    random = np.random.RandomState(zlib.crc32(f"{seed}:{path}".encode()))
    noise = random.randn(*shape)
    name = path.rsplit("/", 1)[-1]
    if "FilmConditioning" in path:
        value = 0.3 * noise / np.sqrt(shape[0])
    elif name == "bias":
        value = 0.05 * noise
    elif name == "scale":
        value = 1.0 + 0.05 * noise
    elif name == "depthwise_kernel" or ("MultiHeadDotProductAttention" in path and "/out/" in path):
        value = noise / np.sqrt(shape[0] * shape[1])
    elif "MultiHeadDotProductAttention" in path:
        value = noise / np.sqrt(shape[0])
    elif "Dense_1/kernel" in path and path.startswith("params/Transformer_0/Dense_1"):
        value = 0.5 * noise
    else:
        value = noise / np.sqrt(np.prod(shape[:-1]))
    return value.astype(np.float32)


def inputs(batch: int, steps: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(image, embedding): float32 (batch, steps, 300, 300, 3) in [0, 1] and (batch, steps, 512)."""
    random = np.random.RandomState(seed)
    image = random.rand(batch, steps, 300, 300, 3).astype(np.float32)
    embedding = (0.05 * random.randn(batch, steps, 512)).astype(np.float32)
    return image, embedding


def load(name: str, folder: Path = HERE) -> tuple[dict, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(config, flat variables, expected) of the golden file `name`.npz.

    `expected` holds 'image_tokens' (batch, steps, tokens, 512) and 'logits' (batch, steps * (tokens + 11), vocab).
    """
    stored = dict(np.load(folder / f"{name}.npz"))
    config = json.loads(str(stored.pop("config")))
    expected = {key: stored.pop(key) for key in ("image_tokens", "logits")}
    shapes = json.loads((folder / f"{name}.shapes.json").read_text())
    variables = {path: leaf(path, tuple(shape), config["seed"]) for path, shape in shapes.items()}
    return config, variables | stored, expected

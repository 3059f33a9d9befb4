"""Instruction vectors that episodes ship: whether there are any, and whether an encoder gives the same ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from itertools import islice

import numpy as np

from preprocessing.dataset_spec import DatasetSpec
from preprocessing.episode_source import EpisodeSource
from preprocessing.rlds import Episode, SourceShard
from rt_models.spec import EMBEDDING_WIDTH

_RECORDS, _TEXTS = 16, 8  # looked at, from the beginning
_AGREES = 0.999  # cosine; the same network in another TensorFlow differs by less


def ships_vectors(dataset: EpisodeSource, spec: DatasetSpec) -> bool:
    """Whether the episodes hold the vectors that `spec` declares, of the width that a store keeps."""
    return not why_not_kept(dataset, spec)


def why_not_kept(dataset: EpisodeSource, spec: DatasetSpec) -> str:
    """Why the vectors of the episodes cannot be stored, in words; empty if they can."""
    path = spec.embedding
    if path is None:
        return f"spec {spec.name} names no field of them"
    if path not in dataset.step_paths:
        return f"it has no field {path!r}"
    feature = dataset.feature(path)
    if feature.is_bytes or len(feature.outer) != 1 or None in feature.shape:
        return f"{path!r} holds no vectors of one length"
    if (width := math.prod(feature.fixed_shape())) != EMBEDDING_WIDTH:
        return f"{path!r} holds vectors of {width} values where a store keeps {EMBEDDING_WIDTH}"
    return ""


def require_agreement(
    dataset: EpisodeSource,
    shard: SourceShard,
    spec: DatasetSpec,
    encoder: str,
    embed: Callable[[list[str]], np.ndarray],
) -> None:
    """Raise ValueError if `embed` computes other vectors than the episodes of `shard` ship under its encoder id."""
    if spec.embedding_encoder != encoder or not ships_vectors(dataset, spec):
        return
    shipped = _shipped(dataset, shard, spec)
    texts = list(shipped)[:_TEXTS]
    if not texts:
        return
    computed_ND = embed(texts)
    shipped_ND = np.stack([shipped[text] for text in texts])
    lengths = np.linalg.norm(computed_ND, axis=1) * np.linalg.norm(shipped_ND, axis=1)
    cosine_N = (computed_ND * shipped_ND).sum(axis=1) / np.maximum(lengths, 1e-12)
    worst = int(cosine_N.argmin())
    if not cosine_N[worst] >= _AGREES:
        raise ValueError(
            f"{encoder} gives {texts[worst]!r} another vector than the episodes ship (cosine {cosine_N[worst]:.4f}, at "
            f"least {_AGREES} is expected): give the --use-model that theirs come from, or --encoder dataset"
        )


def _shipped(dataset: EpisodeSource, shard: SourceShard, spec: DatasetSpec) -> dict[str, np.ndarray]:
    """Vectors by text, without blank texts (zeros, whatever the encoder) and without what will go to quarantine."""
    assert spec.embedding is not None
    vector_of_text: dict[str, np.ndarray] = {}
    for item in islice(dataset.read_shard(shard, paths=(spec.instruction.path, spec.embedding)), _RECORDS):
        if isinstance(item, Episode):
            with suppress(ValueError):
                vectors = np.asarray(item.steps[spec.embedding], np.float32).reshape(item.num_steps, -1)
                pairs = zip(spec.instruction.texts(item), vectors, strict=True)
                vector_of_text |= {text: vector for text, vector in pairs if text.strip() and np.isfinite(vector).all()}
    return vector_of_text

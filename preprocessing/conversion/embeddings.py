"""Instruction encoders: texts in, one float32 vector of 512 a text out.

An encoder is named twice: by what a user types (`use`, `hash`, ...) and by the id that goes into the contract, from
which serving finds the same encoder again. Empty instructions are zeros for every encoder that computes, so that "no
instruction" looks like the padding of a window. TensorFlow is imported by `UseEncoder.encode` alone.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from preprocessing.conversion.multilingual_encoder import MULTILINGUAL_ENCODER, MultilingualEncoder
from preprocessing.saved_model.imported_encoder import IMPORTED, find_encoder, is_folder, open_encoder, require_found
from preprocessing.saved_model.saved_model_files import TFHUB, saved_model_folder
from rt_models.spec import EMBEDDING_WIDTH

ENCODERS = (
    "dataset",
    "use-multilingual",
    "use",
    "FOLDER of rtp import-encoder",
    "sentence-transformers:MODEL",
    "hash",
)
HASH_ENCODER = "hash-512"
USE_ENCODER = "universal-sentence-encoder-large/5"
USE_FAMILY = "universal-sentence-encoder"
_FLAG = "--use-model"
_SENTENCE_TRANSFORMERS = "sentence-transformers:"
_BATCH = 64


class Encoder(Protocol):
    """Embeds texts; `id` names it in contracts."""

    @property
    def id(self) -> str: ...
    def require(self) -> None:
        """Raise ValueError or FileNotFoundError now for what would fail in `encode`."""
        ...

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """float32 (N, 512)."""
        ...


@dataclass(frozen=True, kw_only=True)
class HashEncoder:
    """Words, word pairs and letter triples hashed with a sign into 512 buckets, scaled to length 1.

    For tests of the plumbing: it is no sentence encoder. Sentences are near when they share words, not when they share
    meaning, so a policy knows the very words of its training and nothing else.
    """

    id: str = HASH_ENCODER

    def require(self) -> None:
        pass

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        vectors = np.zeros((len(texts), EMBEDDING_WIDTH), np.float32)
        for vector, text in zip(vectors, texts, strict=True):
            for gram in _grams(text):
                digest = hashlib.blake2b(gram.encode(), digest_size=8).digest()
                vector[int.from_bytes(digest[:4], "little") % EMBEDDING_WIDTH] += 1 - 2 * (digest[4] & 1)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.divide(vectors, lengths, out=vectors, where=lengths > 0)


@dataclass(frozen=True, kw_only=True)
class UseEncoder:
    """The Universal Sentence Encoder from a TF-Hub SavedModel: a local folder, a .tar.gz, or a URL of one.

    A URL is downloaded once into TFHUB_CACHE_DIR (default ~/.cache/rt-pipelines).
    """

    model: str = TFHUB + USE_ENCODER
    id: str = USE_ENCODER

    def require(self) -> None:
        if importlib.util.find_spec("tensorflow") is None:
            raise ValueError(
                "the `use` encoder needs TensorFlow: pip install 'rt-pipelines[use]', or give another --encoder"
            )
        saved_model_folder(self.model, _FLAG)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        import tensorflow as tf

        loaded: Any = tf.saved_model.load(str(saved_model_folder(self.model, _FLAG)))
        parts = []
        for first in range(0, len(texts), _BATCH):
            output = loaded(tf.constant(list(texts[first : first + _BATCH])))
            parts.append(np.asarray(output["outputs"] if isinstance(output, dict) else output, np.float32))
        return np.concatenate(parts)


@dataclass(frozen=True, kw_only=True)
class SentenceTransformersEncoder:
    """A sentence-transformers model; wider vectors keep their first 512 values, narrower ones are padded with zeros.

    Vectors are scaled to length 1 afterwards.
    """

    model: str

    @property
    def id(self) -> str:
        return _SENTENCE_TRANSFORMERS + self.model

    def require(self) -> None:
        if importlib.util.find_spec("sentence_transformers") is None:
            raise ValueError(f"the encoder {self.id} needs: pip install sentence-transformers")

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        module = importlib.import_module("sentence_transformers")
        vectors = np.asarray(module.SentenceTransformer(self.model).encode(list(texts)), np.float32)[
            :, :EMBEDDING_WIDTH
        ]
        padded = np.pad(vectors, ((0, 0), (0, EMBEDDING_WIDTH - vectors.shape[1])))
        return padded / np.maximum(np.linalg.norm(padded, axis=1, keepdims=True), 1e-12)


def load_encoder(name: str, *, use_model: str | None = None) -> Encoder:
    """The encoder a user names or a contract records: one that was imported runs without TensorFlow.

    Raises ValueError for an unknown one, and for one that was imported and is not here.
    """
    if name in ("hash", HASH_ENCODER):
        return HashEncoder()
    if name in ("use-multilingual", MULTILINGUAL_ENCODER):
        return MultilingualEncoder()
    if is_folder(name):
        return open_encoder(name)
    if name == "use" or name.startswith((USE_FAMILY, IMPORTED)):
        name = USE_ENCODER if name == "use" else name
        imported = None if use_model else find_encoder(name)
        if imported is not None or name.startswith(IMPORTED):
            return imported or require_found(name)
        return UseEncoder(model=use_model or TFHUB + name, id=name)
    if name.startswith(_SENTENCE_TRANSFORMERS) and name != _SENTENCE_TRANSFORMERS:
        return SentenceTransformersEncoder(model=name.removeprefix(_SENTENCE_TRANSFORMERS))
    raise ValueError(f"there is no instruction encoder {name!r}: choose one of {', '.join(ENCODERS)}")


def embed_texts(encoder: Encoder | str, texts: Sequence[str]) -> np.ndarray:
    """float32 (N, 512) in the order of `texts`; each distinct text is encoded once, an empty one is zeros.

    Raises ValueError if the encoder returns vectors of another width.
    """
    encoder = load_encoder(encoder) if isinstance(encoder, str) else encoder
    distinct = sorted({text for text in texts if text.strip()})
    table = {text: np.zeros(EMBEDDING_WIDTH, np.float32) for text in texts}
    if distinct:
        vectors = encoder.encode(distinct)
        if vectors.shape != (len(distinct), EMBEDDING_WIDTH):
            raise ValueError(f"encoder {encoder.id} gave vectors {vectors.shape}, needed (N, {EMBEDDING_WIDTH})")
        table |= dict(zip(distinct, vectors, strict=True))
    return np.stack([table[text] for text in texts]) if texts else np.zeros((0, EMBEDDING_WIDTH), np.float32)


def _grams(text: str) -> list[str]:
    words = re.findall(r"\w+", text.lower())
    pairs = [f"{first} {second}" for first, second in pairwise(words)]
    spaced = f" {' '.join(words)} "
    return [*words, *pairs, *(f"#{spaced[i : i + 3]}" for i in range(len(spaced) - 2))] if words else []

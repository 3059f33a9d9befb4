"""How well a picture and its text fit: from a column of the store, from a file, or by a CLIP or SigLIP of one's own.

A higher score is a better fit. What the numbers are (cosines, logits) does not matter: only their order does, unless
`--min-score` is given.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from preprocessing.store.file_system import file_system_of
from preprocessing.store.images import decode_image
from preprocessing.store.shard_files import with_retries

SCORERS = ("column", "file:PATH", "clip:PATH", "siglip:PATH", "none")
MODELS = ("clip", "siglip")
"""Scorers that are models, which are also the types of model in the config.json of transformers."""
_MODEL_FILE = "config.json"


class PairScorer(Protocol):
    """Scores pictures with texts where they lie, shard by shard."""

    def scores(self, pictures: Sequence[bytes], texts: Sequence[str]) -> list[float]:
        """One a pair. Raises ValueError for a picture that cannot be decoded."""
        ...


def scorer_parts(scorer: str) -> tuple[str, str]:
    """("clip", PATH) of "clip:PATH". Raises ValueError for what is no scorer."""
    kind, _, path = scorer.partition(":")
    named = {name.partition(":")[0]: ":" in name for name in SCORERS}
    if kind not in named or named[kind] != bool(path):
        raise ValueError(f"--scorer {scorer} is not one of {', '.join(SCORERS)}")
    return kind, path


# --- A file ---


def read_scores(path: str, *, count: int) -> np.ndarray:
    """float64 (N,) of a .parquet, .jsonl or .csv file whose column `score` has one number an example of the store, in
    its order. Raises ValueError if it has not `count` rows, or another value than a number or an empty one (NaN)."""
    filesystem, inside = file_system_of(path)
    if not filesystem.exists(inside):
        raise FileNotFoundError(
            f"--scorer file:{path} does not exist: give a .parquet, .jsonl or .csv with a column score"
        )
    blob = with_retries(lambda: filesystem.cat_file(inside), what=path)
    column = _score_column(blob, path)
    if len(column) != count:
        raise ValueError(
            f"{path} has {len(column)} scores and the store {count} examples: write one for each example, in the order "
            f"of the store's shards and rows"
        )
    try:
        return np.array([math.nan if value is None else float(value) for value in column])
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{path} holds a score that is no number ({error}): leave it empty where there is none"
        ) from None


def _score_column(blob: bytes, path: str) -> list[Any]:
    try:
        if path.endswith(".parquet"):
            return pq.read_table(pa.BufferReader(blob), columns=["score"])["score"].to_pylist()
        if path.endswith(".jsonl"):
            return [json.loads(line)["score"] for line in blob.splitlines() if line.strip()]
        if path.endswith(".csv"):
            from pyarrow import csv

            return csv.read_csv(pa.BufferReader(blob))["score"].to_pylist()
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError) as error:
        reason = f"no column {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise ValueError(f"{path} holds no scores ({reason}): it needs a column named score") from None
    raise ValueError(f"--scorer file:{path} must end in .parquet, .jsonl or .csv")


# --- A model ---


@dataclass(frozen=True, kw_only=True)
class DualEncoder:
    """A CLIP or SigLIP of transformers in a local folder: the cosine between picture and text. Weights are read from
    safetensors only, and no code of the folder is run."""

    folder: str
    batch: int = 32
    device: str | None = None
    """Of torch; None: a GPU where this process may use one, else the CPU."""

    def require(self) -> None:
        """Raise ValueError or OSError if the folder holds no such model."""
        path = Path(self.folder, _MODEL_FILE)
        if not path.is_file():
            raise FileNotFoundError(
                f"{self.folder} has no {_MODEL_FILE}: give the folder of a CLIP or SigLIP of transformers"
            )
        try:
            kind = json.loads(path.read_text())["model_type"]
        except (ValueError, LookupError, TypeError):
            raise ValueError(
                f"{path} names no model_type: give the folder of a CLIP or SigLIP of transformers"
            ) from None
        if kind not in MODELS:
            raise ValueError(f"{self.folder} holds a model of type {kind}: give one of {', '.join(MODELS)}")
        _loaded(self.folder, self.device)

    def fingerprint(self) -> str:
        """Of everything in the folder, so that other weights under the same name are not taken for these."""
        digest = hashlib.sha256()
        for path in sorted(path for path in Path(self.folder).rglob("*") if path.is_file()):
            digest.update(path.relative_to(self.folder).as_posix().encode() + b"\0")
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()[:16]

    def scores(self, pictures: Sequence[bytes], texts: Sequence[str]) -> list[float]:
        import torch

        model, tokenizer, processor, device = _loaded(self.folder, self.device)
        found: list[float] = []
        with torch.inference_mode():
            for first in range(0, len(texts), self.batch):
                frames = [decode_image(picture) for picture in pictures[first : first + self.batch]]
                words = tokenizer(
                    list(texts[first : first + self.batch]),
                    padding="max_length",
                    truncation=True,
                    return_tensors="pt",
                    max_length=model.config.text_config.max_position_embeddings,
                )
                seen = processor(images=frames, return_tensors="pt")
                inputs = {key: words[key].to(device) for key in ("input_ids", "attention_mask") if key in words}
                out = model(**inputs, pixel_values=seen["pixel_values"].to(device))
                cosine = torch.nn.functional.cosine_similarity(out.image_embeds.float(), out.text_embeds.float())
                found += cosine.cpu().double().tolist()
        return found


@lru_cache(maxsize=1)
def _loaded(folder: str, wanted: str | None) -> tuple[Any, Any, Any, str]:
    """(model, tokenizer, image processor, device), once a process."""
    try:
        import torch
        from transformers import AutoImageProcessor, AutoModel, AutoTokenizer
    except ImportError:
        raise ValueError("a CLIP or SigLIP needs transformers: pip install 'rt-pipelines[vlm]'") from None
    device = wanted or ("cuda" if torch.cuda.is_available() else "cpu")
    local = {"local_files_only": True, "trust_remote_code": False}
    try:
        model = AutoModel.from_pretrained(folder, use_safetensors=True, **local).to(device).eval()
        return (
            model,
            AutoTokenizer.from_pretrained(folder, **local),
            AutoImageProcessor.from_pretrained(folder, **local),
            device,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{folder} cannot be loaded as a CLIP or SigLIP of transformers ({reason})") from None

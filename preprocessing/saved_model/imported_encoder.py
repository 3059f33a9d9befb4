"""An instruction encoder that `rtp import-encoder` made of a SavedModel: NumPy alone, no TensorFlow.

A folder of four files: encoder.json (id, fingerprint, TensorFlow's version, the texts of the check), graph.json,
encoder.safetensors (weights and vocabulary) and check.safetensors (TensorFlow's vectors of those texts). Contracts
record the id, and by the id the folder is found again, in RTP_ENCODERS or in the folder where imports are noted.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from preprocessing.saved_model.graph import Graph
from preprocessing.saved_model.saved_model_files import cache_folder

IMPORTED = "saved-model:"
"""Ids of imported models that are not of the Universal Sentence Encoder begin so; the fingerprint follows."""
ENCODERS_VARIABLE = "RTP_ENCODERS"
RECORD, GRAPH, WEIGHTS, CHECK = "encoder.json", "graph.json", "encoder.safetensors", "check.safetensors"
FORMAT = 1
TOLERANCE = 1e-5  # between NumPy and TensorFlow, of vectors of length 1


@dataclass(frozen=True, kw_only=True)
class ImportedEncoder:
    """The encoder in `folder`. Vectors agree with TensorFlow's to 1e-5."""

    folder: str
    id: str
    fingerprint: str
    texts_at_once: int = 1

    def require(self) -> None:
        """Raise ValueError if files are damaged, or vectors are others here than they were for TensorFlow."""
        from safetensors.numpy import load_file

        record = _record(Path(self.folder))
        worst = largest_difference(self.encode(record["check"]), load_file(Path(self.folder, CHECK))["vectors"])
        if not worst <= TOLERANCE:
            raise ValueError(
                f"the encoder {self.folder} gives other vectors on this machine than TensorFlow did (by {worst:.1e}, "
                f"{TOLERANCE:.0e} is allowed): import it again with rtp import-encoder"
            )

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """float32 (N, 512). Raises ValueError for a text that is no Unicode or that the model has no vector for."""
        for text in texts:
            if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
                raise ValueError(f"the instruction {text!r:.60} is not valid Unicode: send whole characters")
        graph = _graph(self.folder, self.fingerprint)
        parts = [graph.run(texts[i : i + self.texts_at_once]) for i in range(0, len(texts), self.texts_at_once)]
        vectors = np.concatenate(parts).astype(np.float32)
        if len(vectors) != len(texts) or not np.isfinite(vectors).all():
            raise ValueError(f"the encoder {self.folder} gives no finite vector for each of {len(texts)} instructions")
        return vectors


def is_folder(name: str) -> bool:
    """Whether `name` means a folder: an encoder lies there, or it is written as a path."""
    return (Path(name).expanduser() / RECORD).is_file() or name.startswith(("/", "./", "../", "~"))


def open_encoder(folder: str | Path) -> ImportedEncoder:
    """Raises ValueError if `folder` is not one that `rtp import-encoder` wrote."""
    path = Path(os.path.abspath(Path(folder).expanduser()))
    record = _record(path)
    try:
        return ImportedEncoder(
            folder=str(path),
            id=str(record["id"]),
            fingerprint=str(record["fingerprint"]),
            texts_at_once=max(int(record["texts_at_once"]), 1),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path / RECORD} is damaged ({error}): import the encoder again") from None


def note(encoder: ImportedEncoder) -> Path | None:
    """A link to the encoder where `find_encoder` looks first, under its id; None if there is no room for one."""
    place = _searched()[0] / encoder.id.replace("/", "_").replace(":", "_")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.is_symlink():
            place.unlink()
        place.symlink_to(encoder.folder)
    except OSError:
        return None
    return place


def find_encoder(encoder_id: str) -> ImportedEncoder | None:
    """The imported encoder with this id, from the folders of RTP_ENCODERS (separated as in PATH), or where imports are
    noted. A folder may be an encoder itself or hold several."""
    for folder in _searched():
        inside = sorted(folder.iterdir()) if folder.is_dir() else []
        for candidate in (folder, *inside):
            if (candidate / RECORD).is_file() and (encoder := open_encoder(candidate)).id == encoder_id:
                return encoder
    return None


def require_found(encoder_id: str) -> ImportedEncoder:
    """As `find_encoder`. Raises ValueError if it is not there."""
    encoder = find_encoder(encoder_id)
    if encoder is None:
        raise ValueError(
            f"the imported encoder {encoder_id} is not in {' or '.join(map(str, _searched()))}: copy its folder there, "
            f"or set {ENCODERS_VARIABLE} to where it lies"
        )
    return encoder


def fingerprint_of(folder: Path) -> str:
    """SHA-256 of graph and weights."""
    digest = hashlib.sha256()
    for name in (GRAPH, WEIGHTS):
        with (folder / name).open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def largest_difference(vectors_ND: np.ndarray, others_ND: np.ndarray) -> float:
    """Between the values of two sets of vectors, for vectors longer than 1 as a part of the largest value."""
    if vectors_ND.shape != others_ND.shape:
        return np.inf
    scale = max(float(np.abs(others_ND).max(initial=0)), 1.0)
    return float(np.abs(vectors_ND - others_ND).max(initial=0)) / scale


def _searched() -> list[Path]:
    named = [Path(part).expanduser() for part in os.environ.get(ENCODERS_VARIABLE, "").split(os.pathsep) if part]
    return named or [cache_folder() / "encoders"]


def _record(folder: Path) -> dict[str, Any]:
    path = folder / RECORD
    try:
        record = json.loads(path.read_text())
    except OSError:
        raise ValueError(f"{folder} holds no {RECORD}: give the folder that rtp import-encoder wrote") from None
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): import the encoder again") from None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ValueError(f"{path} is not of format {FORMAT}: import the encoder with this version of rt-pipelines")
    return record


@lru_cache(maxsize=1)
def _graph(folder: str, fingerprint: str) -> Graph:
    """Read once a process."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = Path(folder)
    try:
        found = fingerprint_of(path)
        if found != fingerprint:
            raise ValueError(f"the encoder {folder} is damaged: its files have another fingerprint than {RECORD} says")
        return Graph(json.loads((path / GRAPH).read_text()), load_file(path / WEIGHTS))
    except (OSError, SafetensorError) as error:
        raise ValueError(f"the encoder {folder} cannot be read ({error}): import it again") from None

"""A SavedModel that embeds texts -> a folder that embeds them alike without TensorFlow, checked against the original.

TensorFlow runs in a process of its own and is gone before the vectors are compared. Nothing appears at `out` unless
every vector agrees to 1e-5.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from preprocessing.conversion.embeddings import USE_ENCODER, USE_FAMILY
from preprocessing.saved_model.graph import Graph
from preprocessing.saved_model.imported_encoder import (
    CHECK,
    FORMAT,
    GRAPH,
    IMPORTED,
    RECORD,
    TOLERANCE,
    WEIGHTS,
    fingerprint_of,
    largest_difference,
    note,
    open_encoder,
)
from preprocessing.saved_model.known_vectors import is_use_large_5
from preprocessing.saved_model.saved_model_files import saved_model_folder
from rt_models.spec import EMBEDDING_WIDTH

_EXPORT = Path(__file__).with_name("tensorflow_export.py")
_TEXTS_AT_ONCE = 64
# Instructions of the data sets, and what tokenisers stumble over: capitals, punctuation, digits, unknown words,
# other scripts, nothing but punctuation, many words, none.
CHECK_TEXTS = (
    "pick up the green can",
    "open the top drawer",
    "move the 7up can near apple, then 3 cm to the left",
    "Put the RED block into the bowl!",
    "don't touch the robot's arm",
    "place the coke-can (upright) on the table; stop",
    "knock redbull can over",
    "pick rxbar blueberry from bottom drawer and place on counter",
    "  two  spaces   and a tab\there ",
    "zxqv wugglefrob the blicket",
    "öffne die Schublade",
    "打开抽屉",
    "naïve café — “quoted” 🤖",
    "?!...",
    "a",
    "http://example.com/x?y=1 & e-mail@example.org",
    "0.5 1,000 #3 $4 50%",
    " ".join(["move the arm to the left of the bowl and then to the right of the cup"] * 6),
    "",
)


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What was imported. `batched`: texts may be encoded together without changing each other's vectors."""

    encoder: str
    fingerprint: str
    nodes: int
    values: int
    largest_difference: float
    batched: bool
    noted: str | None


def import_encoder(
    source: str, out: str, *, encoder_id: str | None = None, say: Callable[[str], None] = lambda line: None
) -> Imported:
    """Write the encoder to the new folder `out`. Raises ValueError or OSError, one sentence for a user to act on."""
    if "://" in out:
        raise ValueError(f"{out} is an address, and an encoder is written to a local disk: copy it there afterwards")
    target = Path(os.path.abspath(Path(out).expanduser()))
    if target.exists():
        raise ValueError(f"{out} exists: name a new folder for the encoder")
    if encoder_id is not None and not encoder_id.startswith(USE_FAMILY):
        raise ValueError(f"--id {encoder_id} names no Universal Sentence Encoder, as {USE_FAMILY}/4 does: leave it out")
    if find_spec("tensorflow") is None:
        raise ValueError("importing an encoder needs TensorFlow, once: pip install 'rt-pipelines[use]'")
    folder = saved_model_folder(source, "SOURCE")
    there = next(parent for parent in target.parents if parent.exists())  # the others are made once all is well
    with tempfile.TemporaryDirectory(dir=there, prefix=".importing-") as temporary:
        exported, ready = Path(temporary, "exported"), Path(temporary, "encoder")
        exported.mkdir()
        ready.mkdir()
        say(f"TensorFlow reads {source} and embeds {len(CHECK_TEXTS)} texts")
        _export(source, folder, exported)
        say("comparing the vectors without TensorFlow")
        record, graph, counts = _written(exported, ready, source)
        if "" not in record["check"]:
            say(f"{source} has no vector for an empty text: only the other {len(record['check'])} are compared")
        known = is_use_large_5(graph.run)
        record["id"] = _id(encoder_id, record["fingerprint"], known=known)
        (ready / RECORD).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")
        target.parent.mkdir(parents=True, exist_ok=True)
        ready.rename(target)
    encoder = open_encoder(target)
    place = note(encoder)
    return Imported(
        encoder=encoder.id,
        fingerprint=encoder.fingerprint,
        largest_difference=record["largest_difference"],
        batched=encoder.texts_at_once > 1,
        noted=str(place) if place else None,
        **counts,
    )


def _export(source: str, folder: Path, out: Path) -> None:
    """Run the export in a process of its own, on the CPU."""
    texts = out / "texts.json"
    texts.write_text(json.dumps(CHECK_TEXTS))
    command = [sys.executable, "-P", str(_EXPORT), str(folder), str(texts), str(out)]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace")
    if run.returncode:
        lines = [line for line in run.stderr.splitlines() if line.strip()] or ["no message"]
        refusals = [line.removeprefix("refused: ") for line in lines if line.startswith("refused: ")]
        raise ValueError(f"{source} cannot be imported: {(refusals or lines)[-1]}")


def _written(exported: Path, ready: Path, source: str) -> tuple[dict[str, Any], Graph, dict[str, int]]:
    """Write graph, weights and check to `ready`, and compare the vectors. Returns what encoder.json says but the id."""
    description = json.loads((exported / GRAPH).read_text())
    own = {name: np.load(exported / f"{name}.npy") for name in ("single", "together")}
    tensors = {path.stem: np.load(path) for path in exported.glob("t[0-9]*.npy")}
    version, checked = description.pop("tensorflow"), description.pop("texts")
    (ready / GRAPH).write_text(json.dumps(description))
    save_file(tensors, ready / WEIGHTS)
    save_file({"vectors": own["single"].astype(np.float32)}, ready / CHECK)
    try:
        graph = Graph(description, tensors)
        _require_shape(own["single"], len(checked))
        single = np.concatenate([graph.run([text]) for text in checked])
        together = graph.run(checked)
    except ValueError as error:
        raise ValueError(f"{source} cannot be imported: {error}") from None
    worst = max(largest_difference(single, own["single"]), largest_difference(together, own["together"]))
    if not worst <= TOLERANCE:
        raise ValueError(
            f"{source} cannot be imported: without TensorFlow its vectors differ by {worst:.1e}, and {TOLERANCE:.0e} "
            f"is allowed"
        )
    batched = largest_difference(own["together"], own["single"]) <= TOLERANCE
    record = {
        "format": FORMAT,
        "id": "",
        "fingerprint": fingerprint_of(ready),
        "tensorflow": version,
        "largest_difference": worst,
        "texts_at_once": _TEXTS_AT_ONCE if batched else 1,
        "check": checked,
    }
    return record, graph, {"nodes": len(description["nodes"]), "values": sum(array.size for array in tensors.values())}


def _require_shape(vectors: np.ndarray, num_texts: int) -> None:
    expected = (num_texts, EMBEDDING_WIDTH)
    if vectors.shape != expected:
        raise ValueError(f"its vectors of {num_texts} texts have the shape {vectors.shape}, needed is {expected}")


def _id(asked: str | None, fingerprint: str, *, known: bool) -> str:
    """The id asked for, else large/5's if the vectors are its own, else one by the fingerprint."""
    if asked == USE_ENCODER and not known:
        raise ValueError(
            f"--id {USE_ENCODER} is not what this model is: it gives other vectors than the episodes of Open "
            f"X-Embodiment hold; leave out --id"
        )
    return asked or (USE_ENCODER if known else f"{IMPORTED}{fingerprint[:16]}")

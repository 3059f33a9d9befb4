"""A tiny imported encoder made by hand, without TensorFlow: one of seven vectors, by a hash of the text."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from preprocessing.saved_model.graph import Graph
from preprocessing.saved_model.imported_encoder import CHECK, GRAPH, RECORD, WEIGHTS, fingerprint_of

TEXTS = ("open the drawer", "pick up the can")


def constant(name: str, tensor: str, *shape: int) -> dict[str, object]:
    attributes = {"tensor": tensor, "shape": list(shape), "strings": False}
    return {"name": name, "op": "Const", "inputs": [], "attributes": attributes}


NODES = [
    constant("table", "t0", 7, 512),
    constant("axis", "t1"),
    {"name": "bucket", "op": "StringToHashBucketFast", "inputs": ["texts:0"], "attributes": {"num_buckets": 7}},
    {"name": "vector", "op": "GatherV2", "inputs": ["table:0", "bucket:0", "axis:0"], "attributes": {}},
]


def write_encoder(folder: Path, encoder_id: str, seed: int = 0) -> Path:
    """The folder as `rtp import-encoder` leaves it."""
    folder.mkdir(parents=True)
    table = np.random.default_rng(seed).normal(size=(7, 512)).astype(np.float32)
    tensors = {"t0": table / np.linalg.norm(table, axis=1, keepdims=True), "t1": np.array(0, np.int32)}
    description = {"output": "vector:0", "nodes": NODES}
    (folder / GRAPH).write_text(json.dumps(description))
    save_file(tensors, folder / WEIGHTS)
    save_file({"vectors": Graph(description, tensors).run(TEXTS)}, folder / CHECK)
    record = {"format": 1, "id": encoder_id, "fingerprint": fingerprint_of(folder), "texts_at_once": 64, "check": TEXTS}
    (folder / RECORD).write_text(json.dumps(record))
    return folder

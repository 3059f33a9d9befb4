"""Marks of objects beside a store: `masks.parquet`, an episode a row, with the verbs' vectors and `masks.json`, last.

Frames are not touched. The overlay belongs to one manifest of its store: after `rtp store append` it is made
anew. Places are fractions of the frame, from its upper left corner: x to the right, y down.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from preprocessing.store.episode_store import (
    INSTRUCTION_SCHEMA,
    EpisodeStore,
    atomic_write,
    embedding_matrix,
    fixed_lists,
)
from preprocessing.store.file_system import FileSystem, file_system_of
from preprocessing.store.json_files import JsonObject, parsed, taken_apart
from preprocessing.store.lineage import fingerprint
from preprocessing.store.shard_files import with_retries
from rt_models.spec import ObjectMarks

OVERLAY, MARKS, VERBS = "masks.json", "masks.parquet", "mask_instructions.parquet"
_REMEDY = "run rtp mask again"
MARKS_SCHEMA = pa.schema(
    {
        "episode": pa.int64(),
        "verb": pa.string(),
        "x": pa.float32(),
        "y": pa.float32(),
        "second_x": pa.float32(),
        "second_y": pa.float32(),
        "problem": pa.string(),
    }
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Overlay:
    """The marks of the E episodes of a store. `place_E4` float32: x, y of the object and of the second, NaN for none;
    an episode without a place for its object is not trained on. `verb_E` is a row of `vectors_VD`."""

    place_E4: np.ndarray
    verb_E: np.ndarray
    verbs: tuple[str, ...]
    vectors_VD: np.ndarray

    @property
    def marked_E(self) -> np.ndarray:
        """bool: episodes whose object is marked."""
        return ~np.isnan(self.place_E4[:, 0])

    def marks(self, episode: int) -> ObjectMarks | None:
        """Of an episode; None where its object is not marked."""
        if not self.marked_E[episode]:
            return None
        x, y, second_x, second_y = self.place_E4[episode].tolist()
        return ObjectMarks(first=(x, y), second=None if np.isnan(second_x) else (second_x, second_y))


def write_overlay(store: EpisodeStore, marks: pa.Table, verbs: dict[str, np.ndarray], settings: JsonObject) -> None:
    """Publish the marks (`MARKS_SCHEMA`, by episode) and the vectors of the verbs. Whole or not at all."""
    filesystem, root = file_system_of(store.root)
    texts = list(verbs)
    vectors = fixed_lists(np.stack([verbs[text] for text in texts]))
    table = pa.table(
        [
            pa.array(range(len(texts)), pa.int64()),
            pa.array(texts, pa.string()),
            pa.array([store.manifest.encoder] * len(texts), pa.string()),
            vectors,
        ],
        schema=INSTRUCTION_SCHEMA,
    )
    sums = {name: _write(filesystem, root, name, content) for name, content in ((MARKS, marks), (VERBS, table))}
    data = {"manifest": fingerprint(store.root), "settings": settings, "files": sums}
    with atomic_write(filesystem, f"{root}/{OVERLAY}", temporary=root) as file:
        file.write((json.dumps(data, indent=1) + "\n").encode())


def _write(filesystem: FileSystem, root: str, name: str, table: pa.Table) -> str:
    with atomic_write(filesystem, f"{root}/{name}", temporary=root) as file:
        pq.write_table(table, pa.PythonFile(file, mode="w"), compression="zstd")
    return file.sha256


def read_overlay(store: EpisodeStore) -> Overlay:
    """The overlay of a store. Raises ValueError with the remedy if there is none, or none of the store as it is now."""
    data = _description(store)
    if data is None:
        raise ValueError(f"{store.root} has no object masks: make them with rtp mask {store.root} --detector ...")
    if data.get("manifest") != fingerprint(store.root):
        raise ValueError(f"the object masks of {store.root} are of an earlier manifest: {_REMEDY}")
    marks, verbs = (_table(store, name, data) for name in (MARKS, VERBS))
    texts = tuple(verbs["text"].to_pylist())
    number_of = {text: number for number, text in enumerate(texts)}
    if marks["episode"].to_pylist() != list(range(store.num_episodes)):
        raise ValueError(f"{store.root}/{MARKS} does not have the store's episodes: {_REMEDY}")
    columns = [marks[name].to_numpy(zero_copy_only=False) for name in ("x", "y", "second_x", "second_y")]
    return Overlay(
        place_E4=np.stack([np.asarray(column, np.float32) for column in columns], axis=1),
        verb_E=np.array([number_of.get(verb, 0) for verb in marks["verb"].to_pylist()], np.int64),
        verbs=texts,
        vectors_VD=embedding_matrix(verbs),
    )


def _description(store: EpisodeStore) -> JsonObject | None:
    filesystem, root = file_system_of(store.root)
    path = f"{root}/{OVERLAY}"
    if not filesystem.exists(path):
        return None
    return parsed(with_retries(lambda: filesystem.cat_file(path), what=path), path, remedy=_REMEDY)


def _table(store: EpisodeStore, name: str, data: JsonObject) -> pa.Table:
    filesystem, root = file_system_of(store.root)
    path = f"{root}/{name}"
    blob = with_retries(lambda: filesystem.cat_file(path), what=path)
    with taken_apart(path, remedy=_REMEDY):
        if hashlib.sha256(blob).hexdigest() != data["files"][name]:
            raise ValueError(f"it differs from its checksum in {OVERLAY}: {_REMEDY}")
        return pq.read_table(pa.BufferReader(blob))

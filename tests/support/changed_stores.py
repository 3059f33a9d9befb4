"""Small stores to change, and whether a changed one is what a conversion of the same episodes writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from preprocessing.convert import ConvertConfig, convert
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.store_manifest import StoreManifest
from tests.support.tiny_rlds import bridge_episode, bridge_features, write_dataset

LENGTHS = [[3, 5], [4], [2, 6, 3], [4, 4]]
NUMBERED = ("episode", "record")


def source(folder: Path, shards: Sequence[Sequence[tuple[int, int]]]) -> Path:
    """A dataset whose shard i has episodes of these (length, seed)."""
    episodes = [[bridge_episode(np.random.default_rng(seed), length) for length, seed in shard] for shard in shards]
    return write_dataset(folder, "bridge_dataset", bridge_features(), episodes)


def seeded(shards: Sequence[Sequence[int]], first: int = 0) -> list[list[tuple[int, int]]]:
    return [[(n, 100 * (first + s) + e) for e, n in enumerate(shard)] for s, shard in enumerate(shards)]


def converted(folder: Path, shards: Sequence[Sequence[Any]]) -> str:
    config = ConvertConfig(encoder="hash", workers=0)
    return convert(str(source(folder / "source", shards)), str(folder / "stores"), config).store


def rows(store: EpisodeStore, *, without: Sequence[str] = ()) -> pa.Table:
    with store.filesystem.open(store.shards[0].path) as file:
        names = pq.read_schema(file).names
    tables = [store.read_shard(n, names) for n in range(len(store.shards))]
    return pa.concat_tables(tables).combine_chunks().drop_columns(list(without))


def of_content(manifest: StoreManifest) -> dict[str, Any]:
    """A manifest without what only says how it came about."""
    data = {key: value for key, value in asdict(manifest).items() if key not in ("settings", "lineage", "split")}
    own = {"file", "bytes", "sha256", "source", "source_bytes", "source_sha256_of_crcs"}
    data["shards"] = [{k: v for k, v in shard.items() if k not in own} for shard in data["shards"]]
    data["instructions"] = data["instructions"]["rows"]
    return data


def require_equal(changed: str, whole: str, *, by_number: bool = True) -> None:
    """The two stores hold the same episodes, statistics, contract and instructions."""
    one, other = EpisodeStore.open(changed), EpisodeStore.open(whole)
    one.verify()
    assert one.contract == other.contract and one.manifest.contract_id == other.manifest.contract_id
    assert one.instruction_texts == other.instruction_texts
    np.testing.assert_array_equal(one.instruction_ids, other.instruction_ids)
    np.testing.assert_array_equal(one.embeddings, other.embeddings)
    without = () if by_number else NUMBERED
    assert rows(one, without=without).equals(rows(other, without=without))
    if by_number:
        assert of_content(one.manifest) == of_content(other.manifest)

"""The store's files: atomic writing, exact row groups, reading back, and clear refusals."""

from __future__ import annotations

import json
import re
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preprocessing.convert import ConvertConfig, convert
from preprocessing.store.episode_store import (
    ROW_GROUP_ROWS,
    EpisodeStore,
    ShardWriter,
    SourceField,
    StoreLayout,
    atomic_write,
    binaries,
    instruction_id,
)


@pytest.fixture
def store(make_bridge: Callable[..., Path], tmp_path: Path) -> EpisodeStore:
    source = make_bridge([150, 3], [4], [130])
    convert(str(source), str(tmp_path / "out"), ConvertConfig(workers=0))
    return EpisodeStore.open(str(tmp_path / "out"))


def test_rows_are_found_by_arithmetic(store: EpisodeStore) -> None:
    shard = store.shards[0]
    assert (shard.rows, shard.row_group_rows) == (153, ROW_GROUP_ROWS)
    assert shard.episode_lengths.tolist() == [150, 3] and shard.episode_lengths.dtype == np.int32
    columns = ["episode", "step", "action", "image"]
    groups = [store.read_rows(0, group, columns) for group in range(2)]
    assert [group.num_rows for group in groups] == [128, 25]
    assert groups[0].column_names == columns
    rows = pa.concat_tables(groups).to_pydict()
    assert rows["episode"] == [0] * 150 + [1] * 3
    assert rows["step"] == [*range(150), *range(3)]
    assert all(len(action) == 11 for action in rows["action"])


def test_images_are_neither_compressed_nor_indexed(store: EpisodeStore) -> None:
    group = pq.ParquetFile(store.shards[0].path).metadata.row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    assert columns["image"].compression == "UNCOMPRESSED"
    assert columns["action.list.element"].compression == "ZSTD"
    assert not columns["image"].has_dictionary_page and columns["image"].statistics is None


def test_verify_finds_a_flipped_bit_and_a_missing_file(store: EpisodeStore) -> None:
    store.verify()
    path = Path(store.shards[1].path)
    whole = path.read_bytes()
    path.write_bytes(whole[:50] + bytes([whole[50] ^ 1]) + whole[51:])
    with pytest.raises(ValueError, match=r"shard-00001-of-00003.parquet differs from its checksum"):
        store.verify()
    path.unlink()
    with pytest.raises(ValueError, match=r"shard-00001-of-00003.parquet is missing"):
        store.verify()


def test_open_finds_the_only_store_below(store: EpisodeStore, tmp_path: Path) -> None:
    below = EpisodeStore.open(str(tmp_path / "out/bridge_dataset"), split="train")
    assert below.root == store.root and below.contract == store.contract
    with pytest.raises(ValueError, match="no store of split 'val', only train"):
        EpisodeStore.open(str(tmp_path / "out"), split="val")
    odd = tmp_path / "out?1 [a]"
    shutil.copytree(tmp_path / "out", odd)
    (tmp_path / "outX1 a").mkdir()  # what the name would mean as a pattern
    assert EpisodeStore.open(str(odd)).root.startswith(str(odd))
    with pytest.raises(FileNotFoundError, match="does not exist"):
        EpisodeStore.open(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no episode store"):
        EpisodeStore.open(str(tmp_path / "empty"))


def test_several_stores_and_unfinished_ones_are_told(store: EpisodeStore, tmp_path: Path) -> None:
    copy = Path(store.root).parent / "val"
    copy.mkdir()
    (copy / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match="holds 2 stores: give one of") as told:
        EpisodeStore.open(str(tmp_path / "out"))
    assert f" {store.root}, {copy}" in str(told.value)
    with pytest.raises(ValueError, match=r"is no store of robot episodes: its manifest.json has no schema_version"):
        EpisodeStore.open(str(copy))
    (copy / "manifest.json").write_text('{"schema_version": 0}')
    with pytest.raises(ValueError, match=r"is a store of schema 0, this code reads .*: preprocess again"):
        EpisodeStore.open(str(copy))
    (copy / "manifest.json").unlink()
    (copy / ".progress").mkdir()
    with pytest.raises(ValueError, match="unfinished store: run the same command again"):
        EpisodeStore.open(str(copy))


def test_the_store_opens_through_a_url(store: EpisodeStore) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(store.root, "/moved", recursive=True)
    moved = EpisodeStore.open("memory://moved")
    assert moved.contract.id == store.contract.id == store.manifest.contract_id
    moved.verify()
    assert moved.read_rows(2, 1, ["step"])["step"].to_pylist() == [128, 129]
    memory.rm("/moved", recursive=True)


def test_the_layout_of_columns() -> None:
    source = (SourceField(path="action", dtype="float32", shape=(7,)), SourceField(path="open", dtype="bool", shape=()))
    schema = StoreLayout(cameras=("image", "wrist"), action_size=11, proprio_size=0, source=source).schema()
    assert {"image", "image_wrist", "source/action", "source/open"} <= set(schema.names)
    assert "proprio" not in schema.names
    assert schema.field("source/action").type == pa.list_(pa.float32(), 7)
    assert schema.field("source/open").type == pa.bool_()


@pytest.mark.parametrize("values", [[], [b""], [b"a", b"", b"bc" * 300, b"\0"]])
def test_byte_strings_are_the_array_that_arrow_makes_of_them(values: list[bytes]) -> None:
    array = binaries(values)
    array.validate(full=True)
    assert array.equals(pa.array(values, pa.binary()))


def test_a_shard_without_rows_is_a_valid_file(tmp_path: Path) -> None:
    schema = StoreLayout(cameras=("image",), action_size=11, proprio_size=2, source=()).schema()
    with (
        atomic_write(fsspec.filesystem("file"), f"{tmp_path}/a.parquet", temporary=str(tmp_path)) as file,
        ShardWriter(file, schema),
    ):
        pass
    assert pq.read_table(tmp_path / "a.parquet").schema == schema


def test_atomic_write_leaves_nothing_behind_on_failure(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError),
        atomic_write(fsspec.filesystem("file"), f"{tmp_path}/a", temporary=str(tmp_path)) as file,
    ):
        file.write(b"half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with atomic_write(fsspec.filesystem("file"), f"{tmp_path}/a", temporary=str(tmp_path)) as file:
        file.write(b"whole")
    assert (tmp_path / "a").read_bytes() == b"whole"
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) & stat.S_IRUSR


def test_instruction_ids_tell_texts_and_vectors_apart() -> None:
    ids = {instruction_id("a"), instruction_id("b"), instruction_id("a", b"1"), instruction_id("a", b"2")}
    assert len(ids) == 4 and all(-(2**63) <= number < 2**63 for number in ids)


def test_the_manifest_is_plain_json(store: EpisodeStore) -> None:
    manifest = json.loads(Path(store.root, "manifest.json").read_text())
    assert manifest["counts"] == {"episodes_in": 4, "episodes_out": 4, "quarantined": 0, "steps": 287}
    assert manifest["flag_names"] == ["first_zero_action"]
    assert manifest["source_fields"] == {"action": {"dtype": "float32", "shape": [7]}}
    assert len(manifest["proprio"]["names"]) == 7


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m["shards"][0]["episode_lengths"].append(4), "and episodes of"),
        (lambda m: m["shards"][0].update(rows=1), "has 1 rows in groups of"),
        (lambda m: m["shards"][0].update(episode_lengths=[-1, 2]), "and episodes of 1 steps"),
        (lambda m: m.update(row_group_rows=0), "in groups of 0"),
        (lambda m: m["shards"][0].pop("sha256"), "is not as it was written (no 'shards[0].sha256')"),
        (lambda m: m["contract"]["datasets"][0].update(more=1), "is not as it was written"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(
    store: EpisodeStore, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    path = Path(store.root, "manifest.json")
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=re.escape(words)) as refused:
        EpisodeStore.open(store.root)
    assert str(refused.value).startswith(str(path)) and "delete the store and preprocess again" in str(refused.value)

"""A store whose files are not those of its manifest is refused, before it is trained on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from preprocessing.convert import ConvertConfig, convert
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.integrity import require_whole


@pytest.fixture
def store(make_bridge: Callable[..., Path], tmp_path: Path) -> EpisodeStore:
    source = make_bridge([20, 3], [4])
    return EpisodeStore.open(convert(str(source), str(tmp_path / "out"), ConvertConfig(workers=0)).store)


def flip(path: Path) -> None:
    blob = bytearray(path.read_bytes())
    blob[len(blob) // 2] ^= 1
    path.write_bytes(blob)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "differs from its checksum": flip,
    "bytes, its manifest says": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "is missing": Path.unlink,
}


@pytest.mark.parametrize("message", DAMAGES)
@pytest.mark.parametrize("file", ["shard-00001-of-00002.parquet", "instructions.parquet"])
def test_a_damaged_file_is_named(store: EpisodeStore, file: str, message: str) -> None:
    require_whole(store)
    if file == "instructions.parquet" and "bytes" in message:
        message, damage = "differs from its checksum", DAMAGES[message]  # its size is not recorded
    else:
        damage = DAMAGES[message]
    damage(Path(store.root, file))
    with pytest.raises(ValueError, match=file) as refused:
        require_whole(store)
    assert message in str(refused.value)


def test_a_large_store_is_checked_by_sizes_and_rows(store: EpisodeStore) -> None:
    flip(Path(store.shards[0].path))
    require_whole(store, checksum_bytes=0)
    path = Path(store.root, "manifest.json")
    manifest = json.loads(path.read_text())
    manifest["shards"][1]["rows"] += 1
    manifest["shards"][1]["episode_lengths"][0] += 1
    path.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"shard-00001-of-00002.parquet holds 4 rows, its manifest says 5"):
        require_whole(EpisodeStore.open(store.root), checksum_bytes=0)

"""Stores changed where they lie in an object store: the same stores as on a disk, to the byte of what is in them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from pipelines.cli import main
from preprocessing.changes.store_changes import append, delete, log, merge, prune, split
from preprocessing.store.episode_store import EpisodeStore
from tests.support.changed_stores import LENGTHS, converted, of_content, require_equal, rows, seeded
from tests.support.servers import Bucket, s3_bucket


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    with s3_bucket(tmp_path_factory.mktemp("bucket")) as served, pytest.MonkeyPatch.context() as patch:
        for name, value in served.environment.items():
            patch.setenv(name, value)
        fsspec.filesystem("s3").clear_instance_cache()
        yield served
        fsspec.filesystem("s3").clear_instance_cache()


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Stores of all shards, of the first two, and of the others."""
    shards, folder = seeded(LENGTHS), tmp_path_factory.mktemp("stores")
    parts = {"all": shards, "first": shards[:2], "rest": shards[2:]}
    return {name: converted(folder / name, part) for name, part in parts.items()}


def uploaded(bucket: Bucket, store: str, name: str) -> str:
    url = f"{bucket.url}/{name}/bridge_dataset/1.0.0/train"
    fsspec.filesystem("s3").put(f"{store}/", f"{url}/", recursive=True)
    return url


def objects(bucket: Bucket, url: str) -> dict[str, bytes]:
    folder = bucket.folder / url.removeprefix(f"{bucket.url}/")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_appended_and_deleted_in_place_with_a_log_and_pruned(bucket: Bucket, local: dict[str, str]) -> None:
    first, rest = (uploaded(bucket, local[name], f"inplace-{name}") for name in ("first", "rest"))
    before = objects(bucket, first)
    assert append(first, [rest]).written == 0
    require_equal(first, local["all"])
    assert append(first, [rest]).unchanged
    changed = delete(first, episodes=[0, 7])
    assert changed.episodes == 6 and [entry.episodes for entry in log(first)] == [6, 8, 3]
    kept = objects(bucket, first)
    assert all(kept[name] == before[name] for name in before if name.startswith("shard-"))
    gone = prune(first)
    assert gone and not set(gone) & set(objects(bucket, first)) and not any(".progress" in n for n in kept)
    EpisodeStore.open(first).verify()
    assert log(first)[-1].episodes == 3


def test_merged_and_split_inside_the_store_out_of_it_and_into_it(
    bucket: Bucket, local: dict[str, str], tmp_path: Path
) -> None:
    first, rest = (uploaded(bucket, local[name], f"joined-{name}") for name in ("first", "rest"))
    joined = merge(f"{bucket.url}/joined", [first, rest])
    require_equal(joined.store, local["all"])
    assert merge(f"{bucket.url}/joined", [first, rest]).unchanged
    mixed = merge(str(tmp_path / "mixed"), [first, local["rest"]])
    require_equal(mixed.store, local["all"])
    parts = split(joined.store, f"{bucket.url}/parts", {"train": 0.5, "val": 0.5}, seed=1)
    same = split(local["all"], str(tmp_path / "parts"), {"train": 0.5, "val": 0.5}, seed=1)
    for there, here in zip(parts, same, strict=True):
        one, other = EpisodeStore.open(there.store), EpisodeStore.open(here.store)
        one.verify()
        assert rows(one).equals(rows(other)) and of_content(one.manifest) == of_content(other.manifest)


def test_from_one_kind_of_store_to_another(bucket: Bucket, local: dict[str, str]) -> None:
    first = uploaded(bucket, local["first"], "kinds-first")
    memory = fsspec.filesystem("memory")
    memory.put(local["rest"], "/kinds/bridge_dataset/1.0.0/train", recursive=True)
    joined = merge("memory://joined", [first, "memory://kinds/bridge_dataset/1.0.0/train"])
    require_equal(joined.store, local["all"])
    memory.rm("/joined", recursive=True)
    memory.rm("/kinds", recursive=True)


def test_on_the_command_line(bucket: Bucket, local: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    store = uploaded(bucket, local["all"], "commands")
    assert main(["store", "delete", store, "--episodes", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["episodes"] == 7
    for words in (["log", store], ["prune", store], ["card", store]):
        assert main(["store", *words]) == 0
    assert "README.md" in objects(bucket, store)
    assert main(["inspect", store, "--verify"]) == 0

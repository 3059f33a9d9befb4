"""The loader over a store on S3: the batches of the local one, by range reads."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import fsspec
import pytest
import torch
from servers import s3_bucket

from preprocessing.episode_store import EpisodeStore
from preprocessing.loading.loader import Batch, Loader, LoaderConfig, WindowReader
from preprocessing.store_check import require_whole
from rt_models.spec import AffineTransform

SAME = AffineTransform(name="same", scale=(1.0,) * 11, offset=(0.0,) * 11)


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder behind s3://bucket."""
    with s3_bucket(tmp_path) as served:
        for name, value in served.environment.items():
            monkeypatch.setenv(name, value)
        fsspec.filesystem("s3").clear_instance_cache()
        yield served.folder
        fsspec.filesystem("s3").clear_instance_cache()


def batches(url: str, count: int) -> list[Batch]:
    with closing(WindowReader([EpisodeStore.open(url)], [SAME], num_steps=6, config=LoaderConfig())) as reader:
        stream = iter(Loader(reader, seed=0, lanes=6, global_batch=24, micro_batch=12))
        with closing(stream):  # type: ignore[type-var]
            return list(itertools.islice(stream, count))


def test_batches_from_s3_are_those_of_the_local_store(store: str, bucket: Path) -> None:
    shutil.copytree(store, bucket / "store")
    require_whole(EpisodeStore.open("s3://bucket/store"))
    for ours, theirs in zip(batches("s3://bucket/store", 30), batches(store, 30), strict=True):
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    shard = next((bucket / "store").glob("shard-*.parquet"))
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises((ValueError, OSError), match=shard.name):  # by its size, or by its footer where that is cached
        require_whole(EpisodeStore.open("s3://bucket/store"))

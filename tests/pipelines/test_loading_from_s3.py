"""The loader over a store on S3: the batches of the local one, by range reads, also over a wire that breaks."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import fsspec
import pytest
import torch

from preprocessing.loading.loader import Batch, Loader, LoaderConfig, WindowReader
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.integrity import require_whole
from rt_models.spec import AffineTransform
from tests.support.faulty_proxy import Fault, FaultyProxy, Plan, faulty_proxy
from tests.support.servers import s3_bucket

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


# Five reads that fail: after a reset the client asks a second time of its own accord.
FAULTS: tuple[Fault, ...] = ("reset", "reset", "short", "silence", "reset", "reset", "short")


@pytest.fixture
def through(bucket: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Plan], FaultyProxy]]:
    """through(plan) puts a proxy before the bucket that breaks answers as it says."""
    with contextlib.ExitStack() as opened:

        def put(plan: Plan) -> FaultyProxy:
            upstream = os.environ["AWS_ENDPOINT_URL"].removeprefix("http://")
            proxy = opened.enter_context(faulty_proxy(upstream, plan))
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{proxy.address}")
            # The client's own patience is not what is tested: it gives up at once, and early on a silent server.
            client = {"config_kwargs": {"read_timeout": 0.5, "retries": {"max_attempts": 0}}}
            monkeypatch.setitem(fsspec.config.conf, "s3", client)
            monkeypatch.setattr(fsspec.get_filesystem_class("s3"), "retries", 1)
            monkeypatch.setattr("preprocessing.store.file_system._FIRST_WAIT_S", 0.0)
            fsspec.filesystem("s3").clear_instance_cache()
            return proxy

        yield put


def test_reads_that_break_five_times_in_a_row_lose_nothing(
    store: str, bucket: Path, through: Callable[[Plan], FaultyProxy]
) -> None:
    shutil.copytree(store, bucket / "store")
    asked = Counter[tuple[str, str]]()

    def plan(path: str, span: str) -> Fault | None:
        asked[path, span] += 1
        hit = path.endswith(".parquet") and list(asked).index((path, span)) % 3 == 0
        return FAULTS[asked[path, span] - 1] if hit and asked[path, span] <= len(FAULTS) else None

    proxy = through(plan)
    for ours, theirs in zip(batches("s3://bucket/store", 6), batches(store, 6), strict=True):
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert Counter(proxy.faults)["silence"] >= 2 and len(proxy.faults) == len(FAULTS) * Counter(proxy.faults)["silence"]


def test_an_object_that_breaks_every_time_is_named(
    store: str, bucket: Path, through: Callable[[Plan], FaultyProxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(store, bucket / "store")
    proxy = through(lambda path, _: "reset" if "shard-" in path else None)
    monkeypatch.setattr("preprocessing.store.file_system.OUTAGE_S", 1.0)
    with pytest.raises(OSError, match=r"bucket/store/shard-\S+ cannot be reached .*: it was waited for"):
        batches("s3://bucket/store", 1)
    assert len(proxy.faults) >= 6

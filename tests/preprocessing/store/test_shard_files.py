"""Reads that fail now and then are repeated; what fails for good is named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from preprocessing.convert import ConvertConfig, convert
from preprocessing.loading.loader import Loader, LoaderConfig, WindowReader
from preprocessing.rlds import Corrupt, Episode, open_dataset
from preprocessing.store import file_system, shard_files
from preprocessing.store.episode_store import EpisodeStore
from rt_models.spec import AffineTransform

SAME = AffineTransform(name="same", scale=(1.0,) * 11, offset=(0.0,) * 11)


class FlakyFileSystem(MemoryFileSystem):
    """Every `good`-th read of a range succeeds, the others fail in turn by reset, time-out and a byte too few."""

    protocol = "flaky"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    good = 1
    reads = failures = 0

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("flaky://").strip("/")

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        FlakyFileSystem.reads += 1
        if self.reads % self.good == 0:
            return super().cat_file(path, start, end, **kwargs)
        FlakyFileSystem.failures += 1
        if self.reads % 3 == 0:
            raise ConnectionResetError("connection reset by peer")
        if self.reads % 3 == 1 or start is None:
            raise TimeoutError("read timed out")
        return super().cat_file(path, start, end, **kwargs)[:-1]


@pytest.fixture
def flaky(make_bridge: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a store on a file system that fails as `FlakyFileSystem.good` says."""
    fsspec.register_implementation("flaky", FlakyFileSystem, clobber=True)
    source = make_bridge([150, 3], [4], [130])
    local = convert(str(source), str(tmp_path / "out"), ConvertConfig(workers=0)).store
    fsspec.filesystem("flaky").put(local, "/store", recursive=True)
    for module in (shard_files, file_system):
        monkeypatch.setattr(module, "_FIRST_WAIT_S", 0.0)
    monkeypatch.setattr(file_system, "OUTAGE_S", 0.2)
    FlakyFileSystem.reads = FlakyFileSystem.failures = 0
    yield "flaky://store"
    FlakyFileSystem.good = 1
    FlakyFileSystem.store.clear()


def test_a_file_that_breaks_later_is_named(flaky: str) -> None:
    store = EpisodeStore.open(flaky)
    FlakyFileSystem.good = 10**9
    with pytest.raises(OSError, match=r"shard-00002-of-00003.parquet cannot be (read, 6 attempts failed|reached)"):
        store.read_rows(2, 0, ["step"])


def batches(url: str, count: int) -> list[dict[str, torch.Tensor]]:
    reader = WindowReader([EpisodeStore.open(url)], [SAME], num_steps=6, config=LoaderConfig())
    with closing(reader):
        stream = iter(Loader(reader, seed=0, lanes=6, global_batch=24, micro_batch=12))
        with closing(stream):  # type: ignore[type-var]
            return [next(stream) for _ in range(count)]


def test_five_failures_in_a_row_lose_nothing(flaky: str) -> None:
    undisturbed = batches(flaky, 24)
    assert FlakyFileSystem.failures == 0
    FlakyFileSystem.good = shard_files.ATTEMPTS  # five fail, the sixth does not
    disturbed = batches(flaky, 24)
    assert FlakyFileSystem.failures > 20
    for ours, theirs in zip(disturbed, undisturbed, strict=True):
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_what_fails_for_good_is_named(flaky: str) -> None:
    FlakyFileSystem.good = 10**9
    with pytest.raises(OSError, match=r"manifest.json cannot be (read|reached)"):
        batches(flaky, 1)


def test_what_is_not_there_is_not_asked_for_again(tmp_path: Path) -> None:
    asked = []

    def read() -> None:
        asked.append(1)
        raise FileNotFoundError("gone")

    with pytest.raises(FileNotFoundError):
        shard_files.with_retries(read, what="a file")
    assert len(asked) == 1


def test_a_source_is_read_with_the_same_patience(
    make_bridge: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec.register_implementation("flaky", FlakyFileSystem, clobber=True)
    for module in (shard_files, file_system):
        monkeypatch.setattr(module, "_FIRST_WAIT_S", 0.0)
    monkeypatch.setattr(file_system, "OUTAGE_S", 0.2)
    monkeypatch.setattr("preprocessing.rlds._READ_BYTES", 5000)  # less than a record of the first file
    source = str(make_bridge([20], [3, 2]))
    fsspec.filesystem("flaky").put(source, "/source/1.0.0", recursive=True)
    for part in ("train", "train[1:]"):
        FlakyFileSystem.reads = FlakyFileSystem.failures = 0
        FlakyFileSystem.good = 1
        opened = open_dataset("flaky://source/1.0.0")
        expected = [record_of(item) for item in open_dataset(source).episodes(part)]
        FlakyFileSystem.good = shard_files.ATTEMPTS
        assert [record_of(item) for item in opened.episodes(part)] == expected
        assert FlakyFileSystem.failures >= 5
    FlakyFileSystem.good = 10**9
    with pytest.raises(OSError, match=r"tfrecord-00000-of-00002 cannot be (read|reached)"):
        list(opened.episodes("train"))
    FlakyFileSystem.good = 1
    FlakyFileSystem.store.clear()


def record_of(item: Episode | Corrupt) -> tuple[str, int, int, int]:
    assert isinstance(item, Episode)
    return item.shard, item.record, item.offset, item.crc


def test_reading_ahead_gives_the_bytes_of_the_file() -> None:
    memory, rng = fsspec.filesystem("memory"), np.random.default_rng(0)
    blob = rng.bytes(1000)
    memory.pipe_file("/blob", blob)
    for ahead_bytes, tail_bytes in ((0, 0), (1, 0), (7, 30), (0, 30), (100, 2000), (5000, 1)):
        file = shard_files.PatientFile(memory, "/blob", ahead_bytes=ahead_bytes, tail_bytes=tail_bytes)
        for _ in range(200):
            place, size = int(rng.integers(0, 1010)), int(rng.integers(0, 300))
            file.seek(place)
            assert file.read(size) == blob[place : place + size] and file.tell() == min(place + size, max(1000, place))
        file.seek(-5, 2)
        assert file.read() == blob[-5:] and file.read(3) == b""
        file.forget()
        file.seek(-40, 2)
        assert file.read(30) == blob[-40:-10] and file.read() == blob[-10:]
    memory.rm("/blob")

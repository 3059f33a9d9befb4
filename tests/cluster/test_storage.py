"""Checkpoint publishing: killed between any two file operations, the earlier checkpoint is still there and whole."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.background import BackgroundSaver
from cluster.context import LocalContext, WorkerContext
from cluster.manifest import MANIFEST, Manifest
from cluster.storage import CheckpointFolder
from tests.support.ranks import run_ranks

HERE = LocalContext("cpu")
EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")
armed: list[int] = []  # operations left before the kill; empty: no kill


def _kill_when_due(event: str, arguments: tuple[Any, ...]) -> None:
    if armed and event in EVENTS:
        armed[0] -= 1
        if armed[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)


sys.addaudithook(_kill_when_due)


class ObjectStore(LocalFileSystem):
    """Stands for one: to `CheckpointFolder` it is not local, so that nothing is renamed and the manifest comes last."""

    protocol = "objects"

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"auto_mkdir": True, **options})


fsspec.register_implementation("objects", ObjectStore, clobber=True)


def save(root: Path | str, step: int, *, keep_last: int = 2, **more: Any) -> None:
    def write(folder: Path) -> None:
        (folder / "sub").mkdir()
        (folder / "sub" / "weights").write_bytes(bytes([step % 256]) * 1000)
        (folder / "state").write_text(f"state of {step}")

    CheckpointFolder(root).save(step, write, HERE, {"step": step, **more}, keep_last, "loss" if more else None)


def killed_after(operations: int, action: Callable[[], None]) -> bool:
    """Run the action in a forked process that is killed before its n-th file operation; False if it got to its end."""
    child = os.fork()
    if child == 0:
        armed[:] = [operations]
        action()
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the save itself failed"
    return os.WIFSIGNALED(status)


def assert_whole(folder: CheckpointFolder, step: int, scratch: Path) -> None:
    checkpoint = folder.at(step)
    assert checkpoint is not None and checkpoint.metadata["step"] == step
    assert (folder.fetch(checkpoint, scratch) / "state").read_text() == f"state of {step}"


@pytest.mark.parametrize("scheme", ["", "objects://"])
def test_killed_between_any_two_file_operations(scheme: str, tmp_path: Path) -> None:
    operations = 0
    outcomes = set()
    while True:
        place = tmp_path / str(operations)
        folder = CheckpointFolder(f"{scheme}{place}/run")
        save(folder.root, 1)
        save(folder.root, 2)
        died = killed_after(operations, partial(save, folder.root, 3))
        latest = folder.latest()
        assert latest is not None and latest.step in (2, 3)
        assert_whole(folder, latest.step, place / "copies")
        outcomes.add((died, latest.step))
        save(folder.root, 4)  # the next save clears what the dead one left
        assert {path.name for path in (place / "run").iterdir()} == {f"step-{s:08d}" for s in (latest.step, 4)}
        if not died:
            break
        operations += 1
    assert operations > 20 and outcomes == {(True, 2), (True, 3), (False, 3)}


@settings(max_examples=15, deadline=None)
@given(steps=st.lists(st.integers(1, 10**9), min_size=1, max_size=5, unique=True), keep_last=st.integers(1, 3))
def test_newest_and_best_are_kept(tmp_path_factory: pytest.TempPathFactory, steps: list[int], keep_last: int) -> None:
    folder = CheckpointFolder(tmp_path_factory.mktemp("kept"))
    ordered = sorted(steps)
    for step in ordered:
        save(folder.root, step, keep_last=keep_last, loss=steps.index(step))
    best = min(ordered, key=steps.index)
    assert [checkpoint.step for checkpoint in folder.all()] == sorted({best, *ordered[-keep_last:]})
    assert [checkpoint.step for checkpoint in folder.all()][-1] == ordered[-1]


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_damage_is_seen(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = CheckpointFolder(tmp_path_factory.mktemp("damage"))
    save(folder.root, 1)
    save(folder.root, 2)
    newest = folder.latest()
    assert newest is not None
    victim = Path(newest.path) / data.draw(st.sampled_from(["state", "sub/weights", MANIFEST]))
    content = bytearray(victim.read_bytes())
    if data.draw(st.booleans(), label="truncate"):
        victim.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
        latest = folder.latest()
        assert latest is not None and latest.step == 1  # seen at once, by its size
    elif victim.name != MANIFEST:
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        victim.write_bytes(content)
        with pytest.raises(ValueError, match=victim.name):
            folder.fetch(newest, victim.parent)


def test_nothing_to_find(tmp_path: Path) -> None:
    assert CheckpointFolder(tmp_path / "absent").latest() is None
    (tmp_path / "step-00000001").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    assert CheckpointFolder(tmp_path).latest() is None
    save(tmp_path, 5)
    assert (tmp_path / "notes.txt").exists() and not (tmp_path / "step-00000001").exists()


def test_published_step_is_not_overwritten(tmp_path: Path) -> None:
    save(tmp_path, 1)
    with pytest.raises(ValueError, match="published before"):
        save(tmp_path, 1)
    with pytest.raises(ValueError, match="keep_last = 0"):
        save(tmp_path, 2, keep_last=0)


def test_full_disk_is_named_and_harmless(tmp_path: Path) -> None:
    save(tmp_path, 1)

    def write(folder: Path) -> None:
        (folder / "first").write_text("fits")
        with open("/dev/full", "wb", buffering=0) as full:
            full.write(b"x")

    folder = CheckpointFolder(tmp_path)
    with pytest.raises(OSError, match="disk is full"):
        folder.save(2, write, HERE, {}, 1)
    latest = folder.latest()
    assert latest is not None and latest.step == 1
    assert_whole(folder, 1, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]  # the room is given back


def test_object_store(tmp_path: Path) -> None:
    folder = CheckpointFolder(f"objects://{tmp_path}/bucket/run")
    for step in (1, 2, 3):
        save(folder.root, step)
    assert [checkpoint.step for checkpoint in folder.all()] == [2, 3]
    latest = folder.latest()
    assert latest is not None and latest.path == f"objects://{tmp_path}/bucket/run/step-00000003"
    with ThreadPoolExecutor(4) as pool:  # several ranks of a node
        copies = {fetched.result() for fetched in [pool.submit(folder.fetch, latest, tmp_path / "a") for _ in range(4)]}
    assert copies == {tmp_path / "a" / "step-00000003"} and len(list((tmp_path / "a").iterdir())) == 1
    (tmp_path / "bucket/run/step-00000003/state").write_text("state of 9")
    with pytest.raises(ValueError, match="state is not the file that was saved"):
        folder.fetch(latest, tmp_path / "b")
    (tmp_path / "bucket/run/step-00000003" / MANIFEST).unlink()  # as if the upload had been cut off before it
    before = folder.latest()
    assert before is not None and before.step == 2


def test_unreachable_store_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoAnswer(Exception):
        """As object stores' libraries raise: no OSError."""

    def unreachable(*arguments: Any, **options: Any) -> None:
        raise NoAnswer("connection refused")

    monkeypatch.setattr(ObjectStore, "ls", unreachable)
    monkeypatch.setattr("cluster.object_store.OUTAGE_S", 0.3)
    with pytest.raises(ConnectionError, match=r"objects:///.*/run cannot be reached \(connection refused\)"):
        CheckpointFolder(f"objects://{tmp_path}/run").latest()


def test_a_checkpoint_that_somebody_reads_over_nfs_is_left_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """NFS gives a removed file that is open the name .nfs..., and its folder cannot be removed before it is closed."""
    held, remove = {1, 3}, shutil.rmtree

    def rmtree(path: str, *arguments: Any, **options: Any) -> None:
        step = re.fullmatch(r".*/step-(\d+)", str(path))
        if step is None or int(step[1]) not in held:
            return remove(path, *arguments, **options)
        (Path(path) / ".nfs0001").touch()
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(path))

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    folder = CheckpointFolder(tmp_path)
    for step in (1, 2, 3):
        folder.save(step, lambda scratch: None, HERE, {}, 1)
    assert [checkpoint.step for checkpoint in folder.all()] == [3]
    assert caplog.text.count("step-00000001 could not be removed") == 1
    (tmp_path / "step-00000003" / MANIFEST).unlink()  # cut off, and still read by somebody: its step is saved anew
    CheckpointFolder(tmp_path).save(3, lambda scratch: None, HERE, {}, 1)
    assert [checkpoint.step for checkpoint in folder.all()] == [3]
    held.clear()
    folder.save(4, lambda scratch: None, HERE, {}, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000004"]


class CountedStore(ObjectStore):
    protocol = "counted"
    downloads = 0

    def get_file(self, *arguments: Any, **options: Any) -> None:
        CountedStore.downloads += 1
        super().get_file(*arguments, **options)


def resumed_on_two_nodes(context: WorkerContext, root: str, scratch: Path) -> tuple[int, str]:
    """Ranks 0 and 1 on one node, 2 and 3 on another; what this rank downloaded, and what it then reads."""
    fsspec.register_implementation("counted", CountedStore, clobber=True)
    socket.gethostname = lambda: f"node-{context.rank // 2}"
    folder = CheckpointFolder(root)
    checkpoint = folder.latest()
    assert checkpoint is not None
    copy = folder.fetch_on_every_rank(checkpoint, scratch / f"rank-{context.rank}", context)
    if context.rank == 3:  # a machine of the same name as another, which does not see that one's disk
        assert copy == scratch / "rank-2" / copy.name
        elsewhere = folder._copy_of_node(checkpoint, scratch / "nowhere", scratch / "rank-3", context)
        assert (elsewhere / "state").read_text() == "state of 2"
    return CountedStore.downloads, (copy / "state").read_text()


def test_ranks_of_a_node_share_one_copy_from_an_object_store(tmp_path: Path) -> None:
    save(f"objects://{tmp_path}/bucket/run", 2)
    found = run_ranks(resumed_on_two_nodes, 4, tmp_path / "ranks", f"counted://{tmp_path}/bucket/run", tmp_path / "a")
    assert found == [(2, "state of 2"), (0, "state of 2"), (2, "state of 2"), (2, "state of 2")]


def test_a_slow_checkpoint_does_not_look_like_a_hung_worker(tmp_path: Path) -> None:
    beats = []

    class Trainer(LocalContext):
        def beat(self) -> None:
            beats.append(time.monotonic())

    saver = BackgroundSaver(CheckpointFolder(tmp_path), Trainer("cpu"))
    saver.save(1, lambda folder: time.sleep(1.0), {}, 1)
    began = time.monotonic()
    saver.close()
    gaps = [b - a for a, b in pairwise([began, *beats, time.monotonic()])]
    assert len(beats) >= 3 and max(gaps) < 0.6


def test_background_failure_comes_up_at_the_next_call(tmp_path: Path) -> None:
    saver = BackgroundSaver(CheckpointFolder(tmp_path), HERE)

    def broken(folder: Path) -> None:
        raise OSError("the network share is gone")

    saver.save(1, broken, {}, 1)
    with pytest.raises(OSError, match=r"step 1 was not saved: the network share is gone \(rank 0\)"):
        saver.wait()
    saver.save(2, lambda folder: None, {}, 1)
    saver.close()
    latest = CheckpointFolder(tmp_path).latest()
    assert latest is not None and latest.step == 2


@given(step=st.integers(0, 10**12), metadata=st.dictionaries(st.text(), st.integers() | st.text()))
def test_manifest_round_trip(step: int, metadata: dict[str, Any]) -> None:
    manifest = Manifest(step=step, metadata=metadata, files=())
    assert Manifest.from_bytes(manifest.to_bytes()) == manifest


@given(st.binary())
def test_other_bytes_are_no_manifest(data: bytes) -> None:
    with pytest.raises(ValueError):
        Manifest.from_bytes(data)


@pytest.mark.parametrize("name", ["../escape", "/etc/passwd", "a/../../b", ""])
def test_manifest_does_not_reach_outside(name: str) -> None:
    entry = {"name": name, "size": 1, "sha256": "0"}
    text = json.dumps({"format": 1, "step": 1, "metadata": {}, "files": [entry]})
    with pytest.raises(ValueError, match="outside its folder"):
        Manifest.from_bytes(text.encode())

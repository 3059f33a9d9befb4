"""Checkpoint publishing: killed between any two file operations, the earlier checkpoint is still there and whole."""

from __future__ import annotations

import os
import signal
import sys
import threading
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from cluster.context import LocalContext
from cluster.manifest import MANIFEST, Manifest
from cluster.storage import CheckpointFolder

HERE = LocalContext("cpu")
EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")
armed: list[int] = []  # operations left before the kill; empty: no kill


def _kill_when_due(event: str, arguments: tuple[Any, ...]) -> None:
    if armed and event in EVENTS:
        armed[0] -= 1
        if armed[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)


sys.addaudithook(_kill_when_due)


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


def assert_whole(folder: CheckpointFolder, step: int) -> None:
    checkpoint = folder.at(step)
    assert checkpoint is not None and checkpoint.metadata["step"] == step
    folder.verify(checkpoint)
    assert (Path(checkpoint.path) / "state").read_text() == f"state of {step}"


def test_killed_between_any_two_file_operations(tmp_path: Path) -> None:
    operations = 0
    outcomes = set()
    while True:
        folder = CheckpointFolder(tmp_path / str(operations))
        save(folder.root, 1)
        save(folder.root, 2)
        died = killed_after(operations, lambda root=folder.root: save(root, 3))
        latest = folder.latest()
        assert latest is not None and latest.step in (2, 3)
        assert_whole(folder, latest.step)
        outcomes.add((died, latest.step))
        save(folder.root, 4)  # the next save clears what the dead one left
        assert {path.name for path in Path(folder.root).iterdir()} == {f"step-{s:08d}" for s in (latest.step, 4)}
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
            folder.verify(newest)


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


def plainly(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        file.write(b"x")


def as_tensors(path: Path) -> None:
    save_file({"x": torch.ones(1000)}, path)


@pytest.mark.parametrize("fill", [plainly, as_tensors])
def test_full_disk_is_named_and_harmless(fill: Callable[[Path], None], tmp_path: Path) -> None:
    save(tmp_path, 1)

    def write(folder: Path) -> None:
        (folder / "x").symlink_to("/dev/full")
        fill(folder / "x")

    folder = CheckpointFolder(tmp_path)
    with pytest.raises(OSError, match="disk is full"):
        folder.save(2, write, HERE, {}, 1)
    latest = folder.latest()
    assert latest is not None and latest.step == 1
    assert_whole(folder, 1)


def test_object_store(tmp_path: Path) -> None:
    """fsspec's in-memory store stands for one: no rename, a manifest that comes last."""
    folder = CheckpointFolder(f"memory://{uuid.uuid4()}/run")
    for step in (1, 2, 3):
        save(folder.root, step)
    assert [checkpoint.step for checkpoint in folder.all()] == [2, 3]
    latest = folder.latest()
    assert latest is not None and latest.path.startswith("memory://")
    folder.verify(latest)
    copies: list[Path] = []
    fetch = partial(folder.fetch, latest, tmp_path)
    threads = [threading.Thread(target=lambda: copies.append(fetch())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(copies) == {tmp_path / "step-00000003"} and [p.name for p in tmp_path.iterdir()] == ["step-00000003"]
    files, path = fsspec.core.url_to_fs(f"{latest.path}/{MANIFEST}")
    files.rm_file(path)  # as if the upload had been cut off before the manifest
    before = folder.latest()
    assert before is not None and before.step == 2


@given(step=st.integers(0, 10**12), metadata=st.dictionaries(st.text(), st.integers() | st.text()))
def test_manifest_round_trip(step: int, metadata: dict[str, Any]) -> None:
    manifest = Manifest(step=step, metadata=metadata, files=())
    assert Manifest.from_bytes(manifest.to_bytes()) == manifest


@given(st.binary())
def test_other_bytes_are_no_manifest(data: bytes) -> None:
    with pytest.raises(ValueError):
        Manifest.from_bytes(data)

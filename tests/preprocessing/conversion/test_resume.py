"""What an earlier conversion left behind is continued, begun anew or left alone; advice that is printed works."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import shutil
import socket
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import pytest

from cluster.session import RaySession, connect
from pipelines.cli import main
from preprocessing.audit.store_audit import audit, saved
from preprocessing.conversion.resume import claimed
from preprocessing.conversion.run_shards import Claim, _ShardRow
from preprocessing.conversion.shard_conversion import convert_shard
from preprocessing.convert import ConvertConfig, convert
from preprocessing.store import file_system
from preprocessing.store.episode_store import EpisodeStore
from tests.support.file_contents import file_contents

HERE = ConvertConfig(workers=0)
LOCAL = fsspec.filesystem("file")


@pytest.fixture(autouse=True)
def _first_contact(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker changes this for good."""
    monkeypatch.setattr(file_system, "_first_contact_s", file_system.FIRST_CONTACT_S)


@pytest.fixture
def two_sizes(make_bridge: Callable[..., Path]) -> Path:
    """A source of two shards whose frames differ in size."""
    source = make_bridge([3], [2])
    shutil.copy(next(make_bridge([2], size=(8, 8), name="small").glob("*.tfrecord*")), next(source.glob("*-00001-of*")))
    return source


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_size_that_was_asked_for_may_be_given(
    two_sizes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: str
) -> None:
    words = ["preprocess", str(two_sizes), str(tmp_path / "out"), "--workers", workers]
    with connect(RaySession(num_cpus=2, log_to_driver=False)) if workers != "0" else nullcontext():  # one for both
        assert main(words) == 2 and "give --image-size HxW" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
        assert main([*words, "--image-size", "16x24"]) == 0
    convert(str(two_sizes), str(tmp_path / "at once"), ConvertConfig(workers=0, image_size="16x24"))
    assert file_contents(tmp_path / "out") == file_contents(tmp_path / "at once")


def test_a_refusal_leaves_nothing_behind_but_what_was_there(
    two_sizes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for out in ("new/folders/out", "there"):
        (tmp_path / "there").mkdir(exist_ok=True)
        with pytest.raises(ValueError, match="differ in size"):
            convert(str(two_sizes), str(tmp_path / out), HERE)
    assert not (tmp_path / "new").exists() and list((tmp_path / "there").iterdir()) == []

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):  # the shards of it go with a refusal too
        patched.setattr("preprocessing.convert.write_manifest", interrupted)
        convert(str(two_sizes), str(tmp_path / "there"), HERE)
    assert len(list((tmp_path / "there").rglob("shard-*"))) == 2
    with pytest.raises(ValueError, match="differ in size"):
        convert(str(two_sizes), str(tmp_path / "there"), HERE)
    assert list((tmp_path / "there").iterdir()) == []


def test_what_lies_there_without_settings_is_not_continued(
    make_bridge: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As when a task still wrote after its conversion had been refused; and settings alone are no work."""
    source, root = str(make_bridge([3])), tmp_path / "bridge_dataset/1.0.0/train"
    (root / ".progress").mkdir(parents=True)
    (root / ".progress/00000.json").write_text("{}")
    (root / "shard-00000-of-00001.parquet").write_text("of another conversion")
    assert convert(source, str(tmp_path), HERE).shards_converted == 1
    EpisodeStore.open(str(tmp_path)).verify()
    (tmp_path / "begun/bridge_dataset/1.0.0/train/.progress").mkdir(parents=True)
    (tmp_path / "begun/bridge_dataset/1.0.0/train/.progress/settings.json").write_text('{"limit": 7}')
    with caplog.at_level(logging.WARNING):
        convert(source, str(tmp_path / "begun"), HERE)
    assert "is begun anew, its unfinished conversion had another" in caplog.text


def test_a_source_that_was_mended_is_read_again(make_bridge: Callable[..., Path], tmp_path: Path) -> None:
    source = make_bridge([3, 2])
    file = next(source.glob("*.tfrecord*"))
    whole = file.read_bytes()
    file.write_bytes(b"\0" * len(whole))
    with pytest.raises(ValueError, match="not one of 2 episodes can be read"):
        convert(str(source), str(tmp_path / "out"), HERE)
    file.write_bytes(whole)
    assert convert(str(source), str(tmp_path / "out"), HERE).episodes_out == 2


def test_a_node_that_does_not_see_the_conversion_says_so_and_writes_nothing(
    make_bridge: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where OUT is another folder on the node that converts a shard."""
    source, task = str(make_bridge([3])), []

    def elsewhere(convert_one: Callable[[int], Any], missing: list[int], *, claim: Claim, **_: Any) -> None:
        for there in (tmp_path / "node", tmp_path / "other"):
            moved = replace(convert_one.args[0], root=str(there))  # type: ignore[attr-defined]
            row = _ShardRow(partial(convert_shard, moved), replace(claim, root=str(there)))
            task.append(json.loads(row({"index": 0})["result"]))
            assert [path.name for path in there.rglob("*")] == [] or there.name == "other"
        gone = replace(convert_one.args[0].shards[0], path="/nowhere/x.tfrecord")  # type: ignore[attr-defined]
        moved = replace(convert_one.args[0], shards=(gone,))  # type: ignore[attr-defined]
        task.append(json.loads(_ShardRow(partial(convert_shard, moved), claim)({"index": 0})["result"]))
        raise OSError(task[0]["error"])

    other = tmp_path / "other/.progress"
    other.mkdir(parents=True)
    (other / "settings.json").write_text('{"dataset": "another"}')
    monkeypatch.setattr("preprocessing.convert.convert_shards", elsewhere)
    with pytest.raises(OSError, match="every node must see SOURCE and OUT"):
        convert(source, str(tmp_path / "out"), HERE)
    assert all(told["of_the_system"] for told in task)
    assert "does not find the conversion that was begun in" in task[0]["error"] and task[1]["error"].count("other")
    assert "/nowhere/x.tfrecord" in task[2]["error"] and f"on the node {socket.gethostname()}" in task[2]["error"]


def test_workers_are_given_absolute_paths(
    make_bridge: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task of Ray runs in a folder of its own."""
    source = make_bridge([3])
    monkeypatch.chdir(source.parent)
    begun = []

    def in_another_folder(convert_one: Callable[[int], Any], missing: list[int], *, claim: Claim, **_: Any) -> None:
        begun.append(claim.root)
        with monkeypatch.context() as there:
            there.chdir("/")
            for index in missing:
                convert_one(index)

    monkeypatch.setattr("preprocessing.convert.convert_shards", in_another_folder)
    summary = convert(source.name, "out", HERE)
    assert summary.episodes_out == 1 and summary.store == "out/bridge_dataset/1.0.0/train"  # as the user wrote it
    assert begun == [str(source.parent / summary.store)]


def test_a_conversion_killed_before_its_audit_has_it_at_the_next_run(
    make_bridge: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = str(make_bridge([30, 20], [9]))

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("preprocessing.convert._save_audit", killed)
    with pytest.raises(KeyboardInterrupt):
        convert(source, str(tmp_path / "out"), HERE)
    monkeypatch.undo()
    assert convert(source, str(tmp_path / "out"), HERE).shards_converted == 0
    convert(source, str(tmp_path / "whole"), HERE)
    assert file_contents(tmp_path / "out") == file_contents(tmp_path / "whole")
    store = EpisodeStore.open(str(tmp_path / "out"))
    known = saved(store)
    assert known is not None and known == audit(store)  # counted at conversion, or by reading every step


def test_hours_of_work_are_not_thrown_away(
    make_bridge: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out, root = str(make_bridge([3], [2])), tmp_path / "out", tmp_path / "out/bridge_dataset/1.0.0/train"
    other = ConvertConfig(workers=0, image_size="8x8")

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", str(root))

    for end, error in ((interrupted, KeyboardInterrupt), (full, OSError)):
        monkeypatch.setattr("preprocessing.convert.write_manifest", end)
        with pytest.raises(error):
            convert(source, str(out), HERE)
        monkeypatch.undo()
        with pytest.raises(ValueError, match=rf"another image_size .*, delete {root}, or give another OUT"):
            convert(source, str(out), other)
    assert convert(source, str(out), HERE).shards_converted == 0
    with pytest.raises(ValueError, match="holds a finished store made with another image_size"):
        convert(source, str(out), other)
    EpisodeStore.open(str(out)).verify()


def test_a_wrong_address_of_ray_throws_no_work_away(
    make_bridge: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, root = str(make_bridge([3], [2])), tmp_path / "bridge_dataset/1.0.0/train"

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    def wrong_address() -> None:
        raise ValueError("its port is not a number")

    monkeypatch.setattr("preprocessing.convert.write_manifest", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(source, str(tmp_path), HERE)
    monkeypatch.undo()
    (root / ".progress/00001.json").unlink()
    with pytest.raises(OSError, match="port is not a number"):
        convert(source, str(tmp_path), replace(HERE, workers=1), wrong_address)
    assert convert(source, str(tmp_path), HERE).shards_converted == 1


def test_frames_that_were_not_read_through_are_not_passed_off_as_checked(
    make_bridge: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, quick = str(make_bridge([3], [2])), ConvertConfig(workers=0, check_frames=False)

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("preprocessing.convert.write_manifest", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(source, str(tmp_path), quick)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"begun with another check_frames \(false, now null\)"):
        convert(source, str(tmp_path), HERE)
    assert convert(source, str(tmp_path), quick).shards_converted == 0
    with pytest.raises(ValueError, match="holds a finished store made with another check_frames"):
        convert(source, str(tmp_path), HERE)


def test_a_folder_that_cannot_be_written_to_asks_for_another(
    make_bridge: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["preprocess", str(make_bridge([3])), str(tmp_path / "file"), "--workers", "0"]) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path}/file/bridge_dataset/1.0.0/train cannot be made (Not a directory): give another OUT" in said


def test_a_full_disk_names_the_file(
    make_bridge: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    source, shard = str(make_bridge([3])), tmp_path / "out/bridge_dataset/1.0.0/train/shard-00000-of-00001.parquet"
    monkeypatch.setattr("preprocessing.conversion.shard_conversion.ShardWriter.append", full)
    with pytest.raises(OSError, match="No space left") as raised:
        convert(source, str(tmp_path / "out"), HERE)
    assert raised.value.filename == str(shard)
    told = _ShardRow(lambda _: full(), None)({"index": 0})  # type: ignore[func-returns-value, arg-type]
    assert json.loads(told["result"])["of_the_system"]
    monkeypatch.undo()
    assert convert(source, str(tmp_path / "out"), HERE).episodes_out == 1


def test_a_conversion_that_is_at_work_is_not_swept_away(make_bridge: Callable[..., Path], tmp_path: Path) -> None:
    source, root = str(make_bridge([3])), tmp_path / "out/bridge_dataset/1.0.0/train"
    with (
        claimed(LOCAL, str(root), {"image_size": None}),
        pytest.raises(ValueError, match=f"another rtp preprocess is at work in {root}: wait for it, or give another"),
    ):
        convert(source, str(tmp_path / "out"), HERE)
    assert convert(source, str(tmp_path / "out"), HERE).episodes_out == 1


def test_a_filter_that_fails_leaves_the_work_of_those_that_joined_it(tmp_path: Path) -> None:
    root, settings = tmp_path / "out/set/1.0.0/train", {"parent": "a store"}

    def fail() -> None:
        with pytest.raises(ValueError, match="of one alone"), claimed(LOCAL, str(root), settings):
            raise ValueError("of one alone")

    with claimed(LOCAL, str(root), settings):
        marks = root / ".progress/00000-marks.parquet"
        marks.touch()
        fail()
        assert marks.exists()
    fail()
    assert not root.exists()


def test_files_of_the_user_stay_and_so_do_their_folders(
    make_bridge: Callable[..., Path], two_sizes: Path, tmp_path: Path
) -> None:
    root, empty = tmp_path / "out/bridge_dataset/1.0.0/train", tmp_path / "empty/bridge_dataset/1.0.0/train"
    empty.mkdir(parents=True)
    with pytest.raises(ValueError, match="differ in size"):
        convert(str(two_sizes), str(tmp_path / "empty"), HERE)
    assert list(empty.iterdir()) == []
    root.mkdir(parents=True)
    mine = {name: root / name for name in ("shard-00000.tar", "shard-1.parquet", "notes.txt")}
    for name, path in mine.items():
        path.write_text(name)
    with pytest.raises(ValueError, match="differ in size"):
        convert(str(two_sizes), str(tmp_path / "out"), HERE)
    assert {path.name for path in root.iterdir()} == set(mine)
    assert convert(str(make_bridge([3], name="whole")), str(tmp_path / "out"), HERE).episodes_out == 1
    assert all(path.read_text() == name for name, path in mine.items())


@pytest.mark.parametrize("name", ["shard-00000-of-00001.parquet", "instructions.parquet", ".progress/mine.txt"])
def test_a_file_that_would_be_written_over_is_named(
    make_bridge: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    root = tmp_path / "bridge_dataset/1.0.0/train"
    (root / name).parent.mkdir(parents=True)
    (root / name).write_text("of the user")
    with pytest.raises(ValueError, match=f"{root / name} is of no conversion that is known here: move it away, or"):
        convert(str(make_bridge([3])), str(tmp_path), HERE)
    assert [path for path in root.rglob("*") if path.is_file()] == [root / name]
    assert (root / name).read_text() == "of the user" and (root / ".progress").exists() == name.startswith(".")


def test_progress_in_which_another_process_still_writes_fails_nothing(
    make_bridge: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove = type(LOCAL).rm

    def full(*arguments: Any, **settings: Any) -> None:
        if any(tmp_path.rglob("manifest.json")):
            raise OSError(errno.ENOTEMPTY, "Directory not empty", ".progress")
        remove(*arguments, **settings)

    monkeypatch.setattr(type(LOCAL), "rm", full)
    assert convert(str(make_bridge([3])), str(tmp_path), HERE).shards_converted == 1


def test_a_store_that_was_finished_meanwhile_is_left_alone(
    make_bridge: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between a look for the manifest and the claim."""
    source, root = str(make_bridge([3])), tmp_path / "bridge_dataset/1.0.0/train"

    def slow(*arguments: Any) -> Any:
        monkeypatch.undo()
        convert(source, str(tmp_path), HERE)
        return claimed(*arguments)

    monkeypatch.setattr("preprocessing.convert.claimed", slow)
    assert convert(source, str(tmp_path), HERE).shards_converted == 0
    EpisodeStore.open(str(tmp_path)).verify()
    with pytest.raises(FileExistsError, match="was finished by another process"), claimed(LOCAL, str(root), {}):
        pytest.fail("a finished store was claimed")
    assert not (root / ".progress").exists()


def test_where_nothing_can_lock_a_refusal_leaves_others_work_and_is_begun_anew(
    two_sizes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    root, settings = tmp_path / "out/set/1.0.0/train", {"dataset": "set"}
    with claimed(LOCAL, str(root), settings):
        (root / "shard-00000-of-00001.parquet").touch()
        with pytest.raises(ValueError, match="of one alone"), claimed(LOCAL, str(root), settings):
            raise ValueError("of one alone")
        assert (root / "shard-00000-of-00001.parquet").exists()
    with pytest.raises(ValueError, match="differ in size"):
        convert(str(two_sizes), str(tmp_path), HERE)
    convert(str(two_sizes), str(tmp_path), replace(HERE, image_size="16x24"))
    convert(str(two_sizes), str(tmp_path / "at once"), replace(HERE, image_size="16x24"))
    name = "bridge_dataset"
    assert file_contents(tmp_path / name) == file_contents(tmp_path / "at once" / name)


@pytest.mark.parametrize("size", [None, "8x8"])
def test_what_older_code_refused_is_begun_anew(
    make_bridge: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: str | None
) -> None:
    source, progress = str(make_bridge([3], [2])), tmp_path / "bridge_dataset/1.0.0/train/.progress"

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("preprocessing.convert.write_manifest", interrupted)
        convert(source, str(tmp_path), HERE)
    (progress / "ended.json").write_text('{"error": "a damaged source"}')
    assert convert(source, str(tmp_path), replace(HERE, image_size=size)).shards_converted == 2

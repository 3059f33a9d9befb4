"""One command at a time in an output folder, also after the holder of the lock was killed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cluster.folder_lock import LOCK, exclusive_output
from pipelines.cli import main
from tests.support.command_line import environment

HOLD = """
import sys, time
from cluster.folder_lock import exclusive_output
with exclusive_output(sys.argv[1]):
    print(flush=True)
    time.sleep(99)
"""


@pytest.fixture
def held(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


def test_the_second_is_told_who_the_first_is_and_leaves_its_files_alone(held: Path) -> None:
    with exclusive_output(str(held)):
        words = rf"run is in use by process {os.getpid()} on .*another --output"
        with pytest.raises(BlockingIOError, match=words), exclusive_output(str(held)):
            raise AssertionError
        assert (held / LOCK).exists()
    with exclusive_output(str(held)):
        pass
    assert list(held.iterdir()) == []


def test_a_folder_made_for_the_lock_goes_with_it_unless_it_is_used(tmp_path: Path) -> None:
    with exclusive_output(str(tmp_path / "a/b")):
        pass
    assert not (tmp_path / "a/b").exists()
    with exclusive_output(str(tmp_path / "c")):
        (tmp_path / "c/file").touch()
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["file"]


def test_a_killed_holder_holds_nothing(held: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(held)], stdout=subprocess.PIPE, env=environment())
    assert holder.stdout is not None and holder.stdout.readline()
    with pytest.raises(BlockingIOError, match=f"process {holder.pid} on"), exclusive_output(str(held)):
        pass
    threading.Timer(0.3, holder.kill).start()
    began = time.monotonic()
    with exclusive_output(str(held), patience_s=30):
        assert 0.2 < time.monotonic() - began < 20
    holder.wait()


def test_of_many_at_once_one_is_inside(held: Path) -> None:
    inside, most, entered = [0], [0], []

    def enter(number: int) -> None:
        with exclusive_output(str(held), patience_s=30):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.005)
            inside[0] -= 1
        entered.append(number)

    threads = [threading.Thread(target=enter, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(entered) == list(range(6)) and most == [1]


@pytest.mark.parametrize("command", ["train rt1_tiny", "tune rt1_lr_wd"])
def test_a_second_command_on_one_output_is_one_sentence(
    command: str, store: str, held: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(held.parent)
    with exclusive_output(str(held)):
        flags = ["--data", store, "--validation", store, "--output", str(held)]
        assert main([*command.split(), *flags]) == 2
        assert [path.name for path in held.iterdir()] == [LOCK]
    assert "run is in use by process" in capsys.readouterr().err.strip().splitlines()[-1]

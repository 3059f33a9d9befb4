"""Commands that are told to end, by the signals that terminals, launchers and impatient people send: a sentence, an
honest exit code, and no process that lives on.

A terminal's Ctrl-C goes to every process of the foreground group, so commands are started in a group of their own and
the whole group is told.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from cluster.stop_file import STOPPED_EXIT_CODE
from cluster.storage import CheckpointFolder
from pipelines.cli import main
from tests.support.command_line import REPOSITORY, SAMPLE, environment, rtp_command
from tuning.ledger import Ledger

PATIENCE_S = 600  # of a busy machine


@pytest.fixture(autouse=True)
def ready_database(mlflow_database: Path, tmp_path: Path) -> None:
    """Where commands that are started in `tmp_path` look for MLflow's."""
    (tmp_path / "runs").mkdir()
    shutil.copy(mlflow_database, tmp_path / "runs/mlflow.db")


@dataclass(frozen=True, kw_only=True)
class Command:
    """A running command; `said` is what it has written to stderr."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def said(self) -> str:
        return self.log.read_text()

    def press_ctrl_c(self) -> None:
        os.killpg(self.process.pid, signal.SIGINT)

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def ended(self) -> int:
        return self.process.wait(timeout=PATIENCE_S)

    def wait_until(self, condition: Callable[[], object]) -> None:
        ends = time.monotonic() + PATIENCE_S
        while not condition():
            assert self.process.poll() is None and time.monotonic() < ends, self.said
            time.sleep(0.05)


@contextmanager
def started(command: list[str], home: Path, **variables: str) -> Iterator[Command]:
    """In a process group of its own, as a shell starts it."""
    log = home / "said.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=home, env=environment() | variables, stdout=file, stderr=file, start_new_session=True
        )
    running = Command(process=process, log=log)
    family: list[psutil.Process] = []
    try:
        yield running
    finally:
        if process.poll() is None:
            family = running.family()
            process.kill()
            process.wait()
        for member in family:
            if member.is_running():
                member.kill()


def are_gone(family: list[psutil.Process], within_s: float = 90) -> list[str]:
    """The command lines of those that still run after so long."""
    _, alive = psutil.wait_procs(family, timeout=within_s)
    return [" ".join(process.cmdline()) for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def training(store: str, output: Path, *flags: str) -> list[str]:
    steps = ["--loop.steps", "100000", "--loop.checkpoint_every", "2", "--loop.keep_last", "1"]
    return rtp_command("train", "rt1_tiny", "--data", store, "--output", output, *steps, *flags)


RAY = ("--launch", "RayLaunch")


@pytest.mark.parametrize("launch", [(), RAY], ids=["alone", "ray"])
def test_ctrl_c_leaves_a_checkpoint_and_the_command_that_resumes(
    launch: tuple[str, ...], store: str, tmp_path: Path
) -> None:
    folder = CheckpointFolder(tmp_path / "run/checkpoints")
    with started(training(store, tmp_path / "run", *launch), tmp_path) as command:
        command.wait_until(lambda: folder.latest() is not None)
        family = command.family()
        command.press_ctrl_c()
        assert command.ended() == STOPPED_EXIT_CODE, command.said
    latest = folder.latest()
    assert latest is not None and f"Ctrl-C: stopped at step {latest.step} of" in command.said
    assert (
        "to continue: rtp train rt1_tiny" in command.said
        and "--resume" in command.said
        and "Traceback" not in command.said
    )
    assert are_gone(family) == []


def test_a_second_ctrl_c_stops_a_training_at_once(store: str, tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "run/checkpoints")
    with started(training(store, tmp_path / "run", *RAY), tmp_path) as command:
        command.wait_until(lambda: folder.latest() is not None)
        family = command.family()
        workers = [member for member in family if "RayTrainWorker" in " ".join(member.cmdline())]
        for worker in workers:  # a step that takes for ever
            worker.suspend()
        command.press_ctrl_c()
        command.wait_until(lambda: "Ctrl-C again stops at once" in command.said)
        began = time.monotonic()
        command.press_ctrl_c()
        assert workers and command.ended() == 130 and time.monotonic() - began < 30, command.said
    assert "rtp: stopped at once" in command.said and "Traceback" not in command.said
    assert are_gone(family) == []


@pytest.mark.slow
def test_nothing_outlives_a_killed_training(store: str, tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "run/checkpoints")
    with started(training(store, tmp_path / "run", *RAY), tmp_path) as command:
        command.wait_until(lambda: folder.latest() is not None)
        family = command.family()
        command.process.kill()
        command.ended()
    assert family and are_gone(family) == []


def test_ctrl_c_interrupts_a_sweep_that_resume_continues(store: str, tmp_path: Path) -> None:
    sweep = REPOSITORY / "tests/support/tiny_sweep.py"
    flags = ["--data", store, "--validation", store, "--output", tmp_path / "out", "--loop.steps", "100000"]
    with started(rtp_command("tune", sweep, *flags, "--scheduler", "ToTheEnd"), tmp_path) as command:
        folder = CheckpointFolder(tmp_path / "out/trials/0000/checkpoints")
        command.wait_until(lambda: folder.latest() is not None)
        family = command.family()
        command.press_ctrl_c()
        assert command.ended() == 130, command.said
    assert "Ctrl-C again stops at once" in command.said and "--resume" in command.said
    assert "Traceback" not in command.said
    assert Ledger.load(str(tmp_path / "out")).trials[0].state == "interrupted"
    assert are_gone(family) == []


def test_ctrl_c_leaves_a_conversion_that_the_same_command_continues(tmp_path: Path) -> None:
    with started(rtp_command("preprocess", SAMPLE, tmp_path / "out", "--encoder", "hash"), tmp_path) as command:
        command.wait_until(lambda: list(tmp_path.glob("out/*/*/*/*")))
        family = command.family()
        command.press_ctrl_c()
        assert command.ended() == 130, command.said
    assert "rtp: stopped; running the same command again continues" in command.said
    assert "Traceback" not in command.said
    assert are_gone(family) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_command_that_cannot_go_on_later_only_says_that_it_stopped(
    number: signal.Signals, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: list[str]) -> None:
        os.kill(os.getpid(), number)
        time.sleep(10)

    monkeypatch.setattr("pipelines.inspect.main", interrupted)
    assert main(["inspect", "store"]) == code
    assert capsys.readouterr().err == "rtp: stopped\n"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_ignored_signals_stay_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """As under nohup."""

    def ignoring(_: list[str]) -> dict[str, int]:
        os.kill(os.getpid(), signal.SIGHUP)
        return {"exit_code": 0}

    monkeypatch.setattr("pipelines.inspect.main", ignoring)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert main(["inspect", "store"]) == 0
    finally:
        signal.signal(signal.SIGHUP, before)

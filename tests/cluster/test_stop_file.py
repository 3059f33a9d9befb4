from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from cluster.context import WorkerContext
from cluster.stop_file import StopFile, StopRequest, StopWatch, stopping_on_signals
from tests.support.ranks import run_ranks
from tests.support.waiting import wait_for


@pytest.mark.parametrize("output", ["{tmp}/run", "memory://stop/run"])
def test_the_file_carries_a_reason_until_it_is_cleared(output: str, tmp_path: Path) -> None:
    file = StopFile(output.format(tmp=tmp_path))
    file.clear()
    assert file.reason() is None
    file.ask("maintenance")
    assert StopFile(output.format(tmp=tmp_path)).reason() == "maintenance"
    assert file.left() is None  # a reason is no error
    file.clear()
    assert file.reason() is None


def test_an_empty_file_made_by_hand_counts(tmp_path: Path) -> None:
    (tmp_path / "STOP").touch()
    watch = StopWatch(StopFile(str(tmp_path)))
    wait_for(lambda: watch.reason is not None)
    watch.close()


def steps_until_stopped(context: WorkerContext, folder: Path) -> tuple[int, str | None]:
    """Rank 1 is given a folder that is not rank 0's: it must not matter what it sees."""
    request = StopRequest(str(folder / f"rank-{context.rank}"), context)
    for step in range(10_000):
        if context.rank == 0 and step == 3:
            StopFile(str(folder / "rank-0")).ask("maintenance")
        if context.rank == 1 and step == 0:
            StopFile(str(folder / "rank-1")).ask("rank 1 has nothing to say")
        request.ask()
        if request.reason is not None:
            request.close()
            return step, request.reason
        time.sleep(0.01)
    raise AssertionError("never stopped")


def test_ranks_stop_at_the_same_step_for_the_reason_that_rank_0_sees(tmp_path: Path) -> None:
    (first, why), (second, why_too) = run_ranks(steps_until_stopped, 2, tmp_path / "results", tmp_path)
    assert first == second >= 3 and why == why_too == "maintenance"


@pytest.mark.parametrize("error", [ValueError("no such flag"), FloatingPointError("the norm is nan")])
def test_an_error_is_left_for_the_workers_that_come_after(error: Exception, tmp_path: Path) -> None:
    StopFile(str(tmp_path)).leave(error)  # type: ignore[arg-type]
    left = StopFile(str(tmp_path)).left()
    assert type(left) is type(error) and str(left) == str(error)


def test_sigterm_writes_the_file_and_does_not_end_the_process(tmp_path: Path) -> None:
    file, before = StopFile(str(tmp_path)), signal.getsignal(signal.SIGTERM)
    with stopping_on_signals(file):
        os.kill(os.getpid(), signal.SIGTERM)
        wait_for(lambda: file.reason() == "SIGTERM")
    assert signal.getsignal(signal.SIGTERM) is before
    file.clear()
    with stopping_on_signals(file):
        pass
    assert file.reason() is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_whatever_asks_first_is_the_reason_and_a_second_ctrl_c_ends_the_process(
    number: signal.Signals, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file, before = StopFile(str(tmp_path)), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), stopping_on_signals(file):
        os.kill(os.getpid(), number)
        wait_for(lambda: file.reason() is not None)
        os.kill(os.getpid(), signal.SIGTERM)  # launchers say it several times
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)
    assert file.reason() == ("Ctrl-C" if number == signal.SIGINT else number.name)
    assert "stopping with a checkpoint; Ctrl-C again stops at once" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before


def test_a_signal_that_is_ignored_asks_for_nothing(tmp_path: Path) -> None:
    """As SIGHUP under nohup, and SIGINT in the background of a script."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping_on_signals(StopFile(str(tmp_path))):
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.05)
        assert StopFile(str(tmp_path)).reason() is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_outside_the_main_thread_signals_are_left_alone(tmp_path: Path) -> None:
    seen = []

    def run() -> None:
        with stopping_on_signals(StopFile(str(tmp_path))):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]

"""What a training tells while it runs: in a log one plain line each time, on a terminal at most its width."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipelines.terminal.next_step import command_line
from pipelines.training import progress
from pipelines.training.progress import progress_bar
from pipelines.training.run_files import MetricsLog

LINE = {"loss": 2.5, "samples_per_s": 120.0, "frames_per_s": 360.0, "waiting_share": 0.3, "memory_gb": 1.25}
MORE = {"learning_rate": 3e-4, "flops_utilisation": 0.42}


@pytest.mark.parametrize(
    ("waiting", "utilisation", "words"),
    [
        (0.3, {"flops_utilisation": 0.42}, ["42 % of peak FLOPs", "30 % waiting (input-bound)"]),
        (0.01, {}, ["1 % waiting (compute-bound)"]),
    ],
)
def test_a_line_says_how_fast_the_run_is_and_what_holds_it_up(
    waiting: float,
    utilisation: dict[str, float],
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    MetricsLog(str(tmp_path), 0).append(7, LINE | {"waiting_share": waiting} | utilisation)
    with progress_bar(str(tmp_path), 10):
        pass
    printed = " ".join(capsys.readouterr().err.split())
    for word in [*words, "7/10", "loss 2.500", "120 samples/s", "360 frames/s", "1.2 GB"]:
        assert word in printed, printed
    assert ("FLOPs" in printed) == bool(utilisation)


def _halfway(folder: Path) -> None:
    """Two lines of metrics a second apart, with a validation loss between them."""
    log = MetricsLog(str(folder), 0)
    log.append(10, LINE | MORE)
    log.append(10, {"validation_loss": 2.75})
    time.sleep(0.3)
    log.append(100, LINE | MORE | {"loss": 2.0})


def test_a_log_has_one_plain_line_with_what_is_learnt_and_what_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress_bar(str(tmp_path), 200, steps_per_epoch=40):
        _halfway(tmp_path)
    lines = capsys.readouterr().err.splitlines()
    words = ["step 100/200", "loss 2.000", "validation 2.750", "lr 3.0e-04", "epoch 2.5", "0:00 left"]
    assert all(word in lines[-1] for word in words), lines
    assert len(lines) <= 2 and "\x1b" not in "".join(lines)


@pytest.mark.parametrize("width", [40, 80, 120])
def test_on_a_terminal_no_line_is_wider_than_the_window(
    width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = io.StringIO()

    def console(**_: Any) -> Console:
        return Console(file=screen, force_terminal=True, width=width, color_system=None)

    monkeypatch.setattr(progress, "Console", console)
    with progress_bar(str(tmp_path), 200_000, steps_per_epoch=40):
        _halfway(tmp_path)
    shown = [part for part in screen.getvalue().replace("\r", "\n").split("\n") if "\x1b" not in part]
    assert max(map(len, shown)) <= width
    assert all(word in screen.getvalue() for word in ("loss 2.000", "validation 2.750", "lr 3.0e-04", "epoch 2.5"))


def test_a_printed_command_is_quoted_for_the_shell_and_short_where_it_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = command_line("rtp", "evaluate", tmp_path / "runs/my first; run", "--data", "/elsewhere/val")
    assert line == "rtp evaluate 'runs/my first; run' --data /elsewhere/val"

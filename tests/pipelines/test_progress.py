from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.progress import following
from pipelines.run_files import MetricsLog

LINE = {"loss": 2.5, "samples_per_s": 120.0, "frames_per_s": 360.0, "waiting_share": 0.3, "memory_gb": 1.25}


@pytest.mark.parametrize(
    ("waiting", "utilisation", "words"),
    [
        (0.3, {"flops_utilisation": 0.42}, ["42 % of peak FLOPs", "30 % waiting (input-bound)"]),
        (0.01, {}, ["1 % waiting (compute-bound)"]),
    ],
)
def test_the_bar_says_how_fast_the_run_is_and_what_holds_it_up(
    waiting: float,
    utilisation: dict[str, float],
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    MetricsLog(str(tmp_path), 0).append(7, LINE | {"waiting_share": waiting} | utilisation)
    with following(str(tmp_path), 10):
        pass
    printed = " ".join(capsys.readouterr().err.split())
    for word in [*words, "7/10", "loss 2.500", "120 samples/s", "360 frames/s", "1.2 GB"]:
        assert word in printed, printed
    assert ("FLOPs" in printed) == bool(utilisation)

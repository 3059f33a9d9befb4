"""The page holds every trial, and nothing in it is taken for HTML."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.reports.sweep_page import sweep_page
from tests.support.html_tags import read_page
from tests.support.sweeps_for_tests import NUM_STEPS, sweep
from tuning.ledger import Exploit, Ledger, Report, TrialRecord
from tuning.sweep import Objective


def record(number: int, *values: float, **changes) -> TrialRecord:
    reports = tuple(Report(step=3 * i + 3, values={"loss": v, "speed": -v}) for i, v in enumerate(values))
    made = TrialRecord(number=number, point=number, seed=0, parameters={"x": 0.1 * number}, reports=reports, step=9)
    return replace(made, state="finished", **changes)


def test_a_page_of_one_objective(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    exploit = Exploit(step=3, parent=0, checkpoint="c", before={"x": 0.5}, after={"x": 0.25})
    for made in (record(0, 0.9, 0.5), record(1, 0.8, 0.4, lineage=(exploit,)), record(2, 0.7)):
        ledger.trials[made.number] = made
    ledger.trials[2] = replace(ledger.trials[2], state="failed", step=3, reason="ValueError: <b>no</b>")
    page = sweep_page(sweep(), ledger, num_steps=NUM_STEPS)
    assert read_page(page).count["svg"] == 2
    assert "<b>no</b>" not in page and "&lt;b&gt;no&lt;/b&gt;" in page
    assert "point 1: x 0.1; loss 0.4" in page
    assert '<tr class="best"><td>1</td>' in page and '<tr class="failed"><td>2</td>' in page
    assert "21, 78 % of 27 without early stopping" in page and "x 0.25" in page


def test_a_page_of_two_objectives_shows_the_front(tmp_path: Path) -> None:
    goals = (Objective(metric="loss", direction="min"), Objective(metric="speed", direction="max"))
    ledger = Ledger(str(tmp_path))
    for made in (record(0, 0.9), record(1, 0.8)):
        ledger.trials[made.number] = made
    page = sweep_page(sweep(objectives=goals), ledger, num_steps=NUM_STEPS)
    assert "Pareto front" in page and read_page(page).count["svg"] == 4


def test_a_page_of_nothing_yet(tmp_path: Path) -> None:
    page = sweep_page(sweep(), Ledger(str(tmp_path)), num_steps=NUM_STEPS)
    assert read_page(page) and "No point has finished." in page


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), 1e308])
def test_a_diverged_trial_does_not_spoil_the_page(value: float, tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    ledger.trials = {0: record(0, value), 1: record(1, 0.8, 0.5)}
    page = sweep_page(sweep(), ledger, num_steps=NUM_STEPS)
    assert read_page(page).count["circle"] == 2 and "point 1" in page
    drawn = "".join(re.findall(r"<svg.*?</svg>", page))
    assert "nan" not in drawn and "inf" not in drawn

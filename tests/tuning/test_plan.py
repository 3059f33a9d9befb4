"""Plans under kills: whatever the moment, the sweep that is continued ends as the one that was left alone."""

from __future__ import annotations

import tempfile
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.sweeps_for_tests import NUM_STEPS, Toy, clone, population, read_state, sweep
from tuning.ledger import Ledger, TrialRecord
from tuning.plan import Generations, IndependentTrials, Plan
from tuning.search import TpeSearch
from tuning.sweep import Budget, Sweep
from tuning.tuner import TrialTask


class Killed(Exception):
    """The process is gone; what it had in memory, too."""


class Run:
    """Runs a plan's trials in this process, and is killed at the events whose numbers are in `kills`."""

    def __init__(self, of: Sweep, root: str, kills: set[int]) -> None:
        self.sweep, self.root, self.kills, self.event = of, root, kills, 0

    def to_the_end(self) -> Ledger:
        while True:
            ledger = Ledger.load(self.root)
            try:
                self._attempt(ledger)
                return ledger
            except Killed:
                continue

    def _attempt(self, ledger: Ledger) -> None:
        plan: Plan = IndependentTrials(self.sweep, ledger)
        if hasattr(self.sweep.scheduler, "interval_steps"):
            plan = Generations(self.sweep, ledger, num_steps=NUM_STEPS, clone=self._clone)
        while (record := plan.next()) is not None:
            ledger.put(replace(record, state="running"))
            self._train(ledger, record.number)
        assert plan.done

    def _train(self, ledger: Ledger, number: int) -> None:
        record = ledger.trials[number]

        def report(metrics) -> None:
            self._maybe_killed()
            ledger.put(ledger.trials[number].reported(metrics["step"], {"loss": metrics["loss"]}))

        output = ledger.output(number)
        task = TrialTask(number=number, seed=0, parameters=record.parameters, output=output, until=record.until)
        last = Toy()(task, report)
        self._maybe_killed()
        ended = ledger.trials[number].reported(int(last["step"]), {"loss": last["loss"]})
        pauses = record.until is not None and record.until < NUM_STEPS
        ledger.put(replace(ended, state="paused" if pauses else "finished"))

    def _clone(self, source: str, target: str, step: int) -> str:
        self._maybe_killed()
        path = clone(source, target, step)
        self._maybe_killed()
        return path

    def _maybe_killed(self) -> None:
        self.event += 1
        if self.event in self.kills:
            raise Killed


def outcome(ledger: Ledger) -> list[tuple[object, ...]]:
    return [
        (r.number, r.state, r.parameters, r.reports, [(e.step, e.parent, e.after) for e in r.lineage])
        for r in ledger.ordered()
    ]


@settings(max_examples=25, deadline=None)
@given(st.sets(st.integers(1, 60), max_size=6))
def test_a_population_killed_anywhere_ends_the_same(kills: set[int]) -> None:
    with tempfile.TemporaryDirectory() as left_alone, tempfile.TemporaryDirectory() as killed:
        expected = Run(population(), left_alone, set()).to_the_end()
        found = Run(population(), killed, kills).to_the_end()
        assert outcome(found) == outcome(expected)
        for number in found.trials:
            assert read_state(found.output(number)) == read_state(expected.output(number))


def test_a_population_clones_weights_and_goes_on_from_them(tmp_path) -> None:
    ledger = Run(population(), str(tmp_path), set()).to_the_end()
    taken = [(record, exploit) for record in ledger.ordered() for exploit in record.lineage]
    assert {exploit.step for _, exploit in taken} == {3, 6} and len(taken) == 2
    for record, exploit in taken:
        donor = ledger.trials[exploit.parent]
        weight = next(r.values["loss"] for r in donor.reports if r.step == exploit.step)
        following = next(r.values["loss"] for r in record.reports if r.step == exploit.step + 1)
        assert following == pytest.approx(weight * (0.5 + abs(exploit.after["x"] - 0.3)))
        assert exploit.after != exploit.before


@settings(max_examples=15, deadline=None)
@given(st.sets(st.integers(1, 50), max_size=5))
def test_independent_trials_killed_anywhere_end_the_same(kills: set[int]) -> None:
    of = sweep(search=TpeSearch(startup_points=2), seeds=(0, 1), budget=Budget(trials=3))
    with tempfile.TemporaryDirectory() as left_alone, tempfile.TemporaryDirectory() as killed:
        expected = Run(of, left_alone, set()).to_the_end()
        found = Run(of, killed, kills).to_the_end()
        assert outcome(found) == outcome(expected)
        assert [(r.point, r.seed) for r in found.ordered()] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]


def test_failed_members_leave_the_population_and_the_rest_goes_on(tmp_path) -> None:
    ledger = Ledger(str(tmp_path))
    plan = Generations(population(), ledger, num_steps=NUM_STEPS, clone=clone)
    for number in range(4):
        record = plan.next()
        assert record is not None and record.number == number
        ledger.put(replace(record, state="failed" if number == 0 else "running"))
    assert plan.next() is None and not plan.done
    for number in (1, 2, 3):
        Run(population(), str(tmp_path), set())._train(ledger, number)
    following = plan.next()
    assert following is not None and following.number == 1 and following.until == 6


def test_trials_that_ended_are_not_handed_out_again(tmp_path) -> None:
    ledger = Ledger(str(tmp_path))
    for number, state in enumerate(("finished", "stopped", "failed", "interrupted")):
        ledger.put(TrialRecord(number=number, point=number, seed=0, parameters={"x": 0.1 * number}, state=state))
    plan = IndependentTrials(sweep(), ledger)
    first = plan.next()
    assert first is not None and first.number == 3
    ledger.put(replace(first, state="finished"))
    assert plan.next() is None and plan.done

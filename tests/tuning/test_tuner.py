"""Sweeps on the real Ray Tune: kills of the process that runs one, early stops, failures and budgets."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from ray.tune.execution.class_cache import ENV_VARS_TO_PROPAGATE

from cluster.session import RaySession, connect
from tests.support.sweeps_for_tests import NUM_STEPS, Toy, clone, loss, population, sweep
from tests.support.toy_sweep import SWEEPS
from tuning.ledger import Ledger, Report, TrialRecord
from tuning.sweep import Asha, Budget
from tuning.tuner import TrialRun, TrialTask, _keep_keys_to_ourselves, _scheduler, run_sweep

REPOSITORY = Path(__file__).resolve().parents[2]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "RAY_USAGE_STATS_ENABLED": "0"}


@pytest.fixture(scope="module")
def connected() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
        with connect(RaySession(num_cpus=2)):
            yield


def start(root: Path, name: str = "asha") -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.support.toy_sweep", name, str(root)]
    return subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True)


def kill_when(process: subprocess.Popen[str], root: Path, ended: int) -> Ledger:
    """SIGKILL as soon as so many trials have ended and another one is in the middle of its training."""
    deadline = time.monotonic() + 120
    while True:
        ledger = Ledger.load(str(root))
        midway = [r for r in ledger.ordered() if r.state == "interrupted" and 0 < r.step < NUM_STEPS]
        if sum(record.ended for record in ledger.ordered()) >= ended and midway:
            break
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.5)  # its workers notice and go
    return Ledger.load(str(root))


def trained(ledger: Ledger, number: int) -> Counter[int]:
    """How often each step of a trial was trained."""
    path = Path(ledger.output(number), "trained.txt")
    return Counter(int(line) for line in path.read_text().split()) if path.exists() else Counter()


def test_killed_twice_and_resumed_every_trial_is_accounted_for_and_none_is_run_again(tmp_path: Path) -> None:
    first = kill_when(start(tmp_path), tmp_path, ended=1)
    second = kill_when(start(tmp_path), tmp_path, ended=sum(r.ended for r in first.ordered()) + 1)
    last = start(tmp_path)
    assert last.communicate(timeout=120)[0].strip() == "complete"
    ledger = Ledger.load(str(tmp_path))
    assert sorted(ledger.trials) == list(range(6)) and all(record.ended for record in ledger.ordered())
    assert Counter(r.state for r in ledger.ordered())["failed"] == 1
    assert "this one never works" in ledger.trials[2].reason
    for before in (first, second):
        for record in before.ordered():
            if record.ended:
                assert ledger.trials[record.number] == record
    for record in ledger.ordered():
        steps = trained(ledger, record.number)
        assert set(steps) == set(range(1, record.step + 1))
        # A kill costs a trial at most the step that it had not checkpointed; a trial that had ended, nothing.
        kills = [before for before in (first, second) if record.number in before.trials]
        hit = sum(not before.trials[record.number].ended for before in kills)
        assert sum(steps.values()) - len(steps) <= hit
    assert not (tmp_path / ".scratch").exists()


def test_the_best_survives_early_stopping_at_a_fraction_of_the_steps(connected: None, tmp_path: Path) -> None:
    run = TrialRun(function=Toy(), num_steps=NUM_STEPS, clone=clone)
    whole, early = Ledger(str(tmp_path / "whole")), Ledger(str(tmp_path / "early"))
    assert run_sweep(sweep(budget=Budget(trials=8), concurrency=2), whole, run) == "complete"
    asha = sweep(budget=Budget(trials=8), concurrency=2, scheduler=Asha(grace_steps=1, reduction_factor=3))
    assert run_sweep(asha, early, run) == "complete"
    best = {}
    for name, ledger in (("whole", whole), ("early", early)):
        finished = [record for record in ledger.ordered() if record.state == "finished"]
        best[name] = min(finished, key=lambda record: record.last("loss") or 1)
        for record in ledger.ordered():
            assert record.last("loss") == pytest.approx(loss(record.parameters["x"], record.step))
    assert best["whole"].parameters == best["early"].parameters
    steps = {name: sum(r.step for r in ledger.ordered()) for name, ledger in (("whole", whole), ("early", early))}
    assert steps["whole"] == 8 * NUM_STEPS and steps["early"] <= 0.6 * steps["whole"]
    stopped = [record for record in early.ordered() if record.state == "stopped"]
    assert stopped and all(trained(early, record.number) == Counter(range(1, record.step + 1)) for record in stopped)


def test_a_population_on_ray_is_the_population_in_one_process(connected: None, tmp_path: Path) -> None:
    on_two, on_one = Ledger(str(tmp_path / "two")), Ledger(str(tmp_path / "one"))
    run = TrialRun(function=Toy(), num_steps=4, clone=clone)
    for ledger, concurrency in ((on_two, 2), (on_one, 1)):
        of = replace(population(interval_steps=2, trials=2), concurrency=concurrency)
        assert run_sweep(of, ledger, run) == "complete"
    for record in on_two.ordered():
        assert record.state == "finished"
        assert record.reports == on_one.trials[record.number].reports
    assert sum(len(record.lineage) for record in on_two.ordered()) == 1


def test_the_wall_time_ends_a_sweep_that_can_be_continued(connected: None, tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    slow = TrialRun(function=Toy(step_s=0.5), num_steps=NUM_STEPS, clone=clone)
    assert run_sweep(sweep(budget=Budget(trials=2, wall_s=4.0)), ledger, slow) == "budget"
    left = Ledger.load(str(tmp_path))
    assert any(record.state == "interrupted" for record in left.ordered())
    fast = replace(slow, function=Toy())
    assert run_sweep(sweep(budget=Budget(trials=2)), left, fast) == "complete"
    assert [record.step for record in left.ordered()] == [NUM_STEPS, NUM_STEPS]
    steps = [trained(left, number) for number in left.trials]
    assert all(set(counted) == set(range(1, NUM_STEPS + 1)) and counted.total() <= NUM_STEPS + 1 for counted in steps)


def test_gpu_hours_are_charged_to_all_calls_together(connected: None, tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    ledger.put(TrialRecord(number=0, point=0, seed=0, parameters={"x": 0.5}, state="finished", seconds=3600.0))
    run = TrialRun(function=Toy(), num_steps=NUM_STEPS, clone=clone, gpus_charged=2)
    assert run_sweep(sweep(budget=Budget(trials=2, gpu_hours=1.9)), ledger, run) == "budget"
    assert ledger.trials[0].state == "finished" and not any(r.state == "finished" for r in ledger.ordered()[1:])


def test_a_trial_that_never_reports_the_objective_fails_and_says_what_it_did_report(
    connected: None, tmp_path: Path
) -> None:
    ledger = Ledger(str(tmp_path))
    objective = replace(sweep().objectives[0], metric="accuracy")
    run = TrialRun(function=Toy(), num_steps=NUM_STEPS, clone=clone)
    assert run_sweep(sweep(objectives=(objective,), budget=Budget(trials=1)), ledger, run) == "complete"
    assert ledger.trials[0].state == "failed"
    assert "never reported accuracy" in ledger.trials[0].reason and "loss" in ledger.trials[0].reason


def test_a_process_that_is_not_done_with_its_last_trial_in_time_leaves_the_next_one_to_another(
    connected: None, tmp_path: Path
) -> None:
    def impatient(task: TrialTask, report: Callable[[Mapping[str, float]], None]) -> Mapping[str, float]:
        os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = "0"  # as on a host so busy that the default is too short
        return Toy()(task, report)

    ledger = Ledger(str(tmp_path))
    run = TrialRun(function=impatient, num_steps=NUM_STEPS, clone=clone)
    assert run_sweep(sweep(budget=Budget(trials=3, wall_s=60)), ledger, run) == "complete"
    assert [(r.state, r.attempts) for r in ledger.ordered()] == [("finished", 1)] * 3


def test_a_continued_sweep_compares_with_what_earlier_attempts_reported(tmp_path: Path) -> None:
    """Without what was compared before, the third trial would be the first at its rung, and go on."""
    ledger = Ledger(str(tmp_path))
    for number, value in enumerate((0.1, 0.2)):
        reports = (Report(step=1, values={"loss": value}),)
        ledger.put(TrialRecord(number=number, point=number, seed=0, parameters={"x": 0.5}, reports=reports))
    trial = type("Trial", (), {"config": {"task": {"number": 2}}})()
    decisions = []
    for known in (ledger, Ledger(str(tmp_path / "empty"))):
        asha = _scheduler(SWEEPS["asha"], known, NUM_STEPS)
        asha.on_trial_add(None, trial)  # type: ignore[arg-type]
        decisions.append(asha.on_trial_result(None, trial, {"step": 1, "loss": 0.9}))  # type: ignore[arg-type]
    assert decisions == ["STOP", "CONTINUE"]


def test_no_key_of_s3_goes_into_what_ray_shows_of_a_trial() -> None:
    _keep_keys_to_ourselves()
    assert ENV_VARS_TO_PROPAGATE and not [name for name in ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")]

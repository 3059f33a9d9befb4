"""A sweep on Ray Tune: Tune places and supervises the trials; what comes next and what is known is our ledger's.

A trial is any function of (TrialTask, report). `report` hands metrics to the sweep and does not return where the trial
is stopped early. Everything that Tune keeps for itself goes to a scratch folder: a sweep resumes from the ledger.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import FrameType, SimpleNamespace
from typing import Any, Literal, TypeAlias, cast

from ray import tune
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from tuning.ledger import Ledger, TrialRecord
from tuning.plan import Clone, Generations, IndependentTrials, Plan
from tuning.population import Population
from tuning.space import Parameters
from tuning.sweep import Asha, Sweep

QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # not every report holds an objective
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # the old output is silent at verbose=0, the new one is not
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # see _stopped_in_order
}
_PATIENCE = ("TUNE_FUNCTION_THREAD_TIMEOUT_S", "60")
"""How long a process waits for a stopped trial to end before it takes the next one; 2 s pass quickly on a busy host."""
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
TuneConfig: TypeAlias = dict[str, dict[str, Any]]
"""What Ray Tune gives a trial: the fields of a `TrialTask` under "task"."""
TuneResult: TypeAlias = dict[str, Any]
"""A report of a trial, with what Ray Tune adds to it."""
ENDED, FAILURE = "trial_ended", "trial_failure"  # of our own in the reports, beside the training's metrics


@dataclass(frozen=True, kw_only=True)
class TrialTask:
    """What a trial is asked: train `parameters` under `seed` in `output`, continuing what is there, up to `until`."""

    number: int
    seed: int
    parameters: Parameters
    output: str
    until: int | None = None


Report = Callable[[Mapping[str, float]], None]
TrialFunction = Callable[[TrialTask, Report], Mapping[str, float]]
"""Returns the last metrics, with "step", also where an earlier attempt had left nothing to train."""
Outcome = Literal["complete", "budget", "interrupted"]


@dataclass(frozen=True, kw_only=True)
class TrialRun:
    """How a sweep's trials are run.

    num_steps: optimizer steps of a whole training; cpus, gpus: what one trial's own process holds;
    gpus_charged: GPUs that count against the budget while one trial runs; changed: called after every event.
    """

    function: TrialFunction
    num_steps: int
    clone: Clone
    cpus: float = 1
    gpus: float = 0
    gpus_charged: float = 0
    changed: Callable[[], None] = lambda: None


def run_sweep(sweep: Sweep, ledger: Ledger, run: TrialRun) -> Outcome:
    """Run what the ledger does not hold as ended; whether all of it ended, or a budget or Ctrl-C came first.

    Ray must be connected. Trials that fail are recorded, not raised.
    """
    os.environ.update({key: value for key, value in QUIET.items() if key not in os.environ})
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # failures are in the ledger, in one sentence
    _keep_keys_to_ourselves()
    plan, spent = make_plan(sweep, ledger, run), _Spent(sweep, ledger, run)
    with ledger.scratch() as (path, files):
        storage = {"storage_path": path, "storage_filesystem": files}
        with _stopped_in_order():
            _tuner(sweep, ledger, run, plan, stop=spent, **storage).fit()
    if plan.done and all(record.ended for record in ledger.trials.values()):
        return "complete"
    for record in ledger.ordered():
        if record.state == "running":
            ledger.put(replace(record, state="interrupted"))
    return "budget" if spent.stop_all() else "interrupted"


def _keep_keys_to_ourselves() -> None:
    """Tune copies this process's keys of S3 into its trials' runtime environments, which Ray writes into its logs and
    shows on its dashboard. The trials have those of their nodes."""
    from ray.tune.execution.class_cache import ENV_VARS_TO_PROPAGATE

    ENV_VARS_TO_PROPAGATE.difference_update([name for name in ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")])


@contextmanager
def _stopped_in_order() -> Iterator[None]:
    """Inside, Ctrl-C, SIGTERM or SIGHUP let Tune end its trials and return; a second Ctrl-C raises KeyboardInterrupt.

    Tune does so on SIGUSR1. On SIGINT, too, if it is let, but then its handler stays when the sweep is over.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    has_signalled = False

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal has_signalled
        if has_signalled or not callable(signal.getsignal(signal.SIGUSR1)):  # Tune has not begun to listen
            if number == signal.SIGINT or not has_signalled:
                raise KeyboardInterrupt
            return
        has_signalled = True
        print("rtp: stopping the trials; Ctrl-C again stops at once", file=sys.stderr)
        signal.raise_signal(signal.SIGUSR1)

    before = {number: signal.getsignal(number) for number in (*_STOPPING, signal.SIGUSR1)}
    for number in _STOPPING:
        if before[number] is not signal.SIG_IGN:
            signal.signal(number, on_signal)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _tuner(sweep: Sweep, ledger: Ledger, run: TrialRun, plan: Plan, **where: Any) -> tune.Tuner:
    # A byte of memory, since Ray Tune refuses a trial that holds nothing: one whose workers are a Ray Train job.
    suggestions = _Suggestions(plan, ledger, most=sweep.concurrency)
    held = {"cpu": run.cpus, "gpu": run.gpus, "memory": 1}
    return tune.Tuner(
        tune.with_resources(_trainable(run.function), held),
        tune_config=tune.TuneConfig(
            search_alg=suggestions,
            scheduler=_scheduler(sweep, ledger, run.num_steps),
            num_samples=-1,  # until the plan is done
            reuse_actors=run.gpus == 0,  # the next trial in the same process: imports take longer than small trials
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name="trials",
            **where,
            failure_config=tune.FailureConfig(max_failures=sweep.retries),
            callbacks=[_Recorder(sweep, ledger, run), _Reassignment(suggestions)],
            verbose=0,
        ),
    )


def make_plan(sweep: Sweep, ledger: Ledger, run: TrialRun) -> Plan:
    if isinstance(sweep.scheduler, Population):
        return Generations(sweep, ledger, num_steps=run.num_steps, clone=run.clone)
    return IndependentTrials(sweep, ledger)


def _trainable(function: TrialFunction) -> Callable[[TuneConfig], None]:
    """What Tune runs in a process of its own."""

    def trial(config: TuneConfig) -> None:
        os.environ.setdefault(*_PATIENCE)
        try:
            last = function(TrialTask(**config["task"]), lambda metrics: tune.report(dict(metrics)))
        except Exception as error:
            tune.report({FAILURE: f"{type(error).__name__}: {error}"})
            raise
        tune.report({**last, ENDED: True})

    return trial


class _Suggestions(Searcher):
    """The plan, as Tune asks for it; no more than `most` of its trials at a time."""

    def __init__(self, plan: Plan, ledger: Ledger, *, most: int) -> None:
        super().__init__()
        self._plan, self._ledger, self._most = plan, ledger, most
        self._live: dict[str, int] = {}  # numbers of the trials that Tune has, by its own names

    def suggest(self, trial_id: str) -> TuneConfig | str | None:  # type: ignore[override]
        if len(self._live) >= self._most:
            return None
        record = self._plan.next()
        if record is None:
            return self.FINISHED if self._plan.done else None
        self._ledger.put(replace(record, state="running", attempts=record.attempts + 1))
        self._live[trial_id] = record.number
        task = TrialTask(
            number=record.number,
            seed=record.seed,
            parameters=dict(record.parameters),
            output=self._ledger.output(record.number),
            until=record.until,
        )
        return {"task": vars(task)}

    def on_trial_complete(self, trial_id: str, result: TuneResult | None = None, error: bool = False) -> None:
        self._live.pop(trial_id, None)  # how it ended the recorder has written down

    def take_back(self, trial_id: str) -> None:
        """Tune has dropped this trial without a word: it is for another process."""
        number = self._live.pop(trial_id, None)
        record = None if number is None else self._ledger.trials[number]
        if record is not None and record.state == "running":
            self._ledger.put(replace(record, state="interrupted", attempts=record.attempts - 1))

    def save(self, checkpoint_path: str) -> None:
        with open(checkpoint_path, "w") as file:
            file.write("the state of the search is the ledger\n")

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a sweep resumes from its ledger")


class _Recorder(tune.Callback):
    """Writes what happens to trials into the ledger."""

    def __init__(self, sweep: Sweep, ledger: Ledger, run: TrialRun) -> None:
        self._ledger, self._num_steps, self._changed = ledger, run.num_steps, run.changed
        self._objectives = [objective.metric for objective in sweep.objectives]
        self._counted: dict[str, float] = {}  # seconds of an attempt that are in its record

    def __getstate__(self) -> dict[str, object]:
        return {}  # Tune pickles its callbacks and never reads ours back

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: TuneResult, **info: object
    ) -> None:
        before = self._ledger.trials[number_of(trial)]
        objectives = {name: float(result[name]) for name in self._objectives if name in result}
        record = before.reported(int(result.get("step", before.step)), objectives)
        seconds, counted = float(result["time_total_s"]), self._counted.get(trial.trial_id, 0.0)
        record = replace(record, seconds=record.seconds + seconds - (counted if counted <= seconds else 0.0))
        self._counted[trial.trial_id] = seconds
        record = self._judged(record, result)
        if objectives or record.state != before.state:
            self._ledger.put(record)
        else:
            self._ledger.trials[record.number] = record
        self._changed()

    def _judged(self, record: TrialRecord, result: TuneResult) -> TrialRecord:
        """`record` in the state that this report, and the scheduler's decision on it, put it into."""
        if FAILURE in result:
            return replace(record, reason=" ".join(str(result[FAILURE]).split()))
        if ENDED in result:
            missing = [name for name in self._objectives if record.last(name) is None]
            if missing:
                known = ", ".join(sorted(key for key, value in result.items() if isinstance(value, float)))
                return replace(record, state="failed", reason=f"it never reported {missing[0]}, only {known}")
            pauses = record.until is not None and record.until < self._num_steps
            return replace(record, state="paused" if pauses else "finished", reason="")
        if result.get("done"):
            return replace(record, state="stopped", reason=f"not among the best at step {record.step}")
        return record

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: object) -> None:
        self._changed()

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: object) -> None:
        record = self._ledger.trials[number_of(trial)]
        reason = record.reason or "its process died: killed, or out of memory"
        self._ledger.put(replace(record, state="failed", reason=reason))
        self._changed()


class _Reassignment(tune.Callback):
    """Takes back the trials of processes that did not end their last one in time to be used again.

    Tune puts such a trial into the state of an error and tells neither its search nor its callbacks.
    """

    def __init__(self, suggestions: _Suggestions) -> None:
        self._suggestions = suggestions

    def __getstate__(self) -> dict[str, object]:
        return {}  # Tune pickles its callbacks and never reads ours back

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: object) -> None:
        for trial in trials:
            if trial.status == Trial.ERROR:
                self._suggestions.take_back(trial.trial_id)


class _Spent(tune.Stopper):
    """Stops everything when the wall time or the GPU hours are used up."""

    def __init__(self, sweep: Sweep, ledger: Ledger, run: TrialRun) -> None:
        self._budget, self._ledger = sweep.budget, ledger
        self._gpus, self._began = run.gpus_charged, time.monotonic()

    def __call__(self, trial_id: str, result: TuneResult) -> bool:
        return False

    def stop_all(self) -> bool:
        wall_s, gpu_hours = self._budget.wall_s, self._budget.gpu_hours
        if wall_s is not None and time.monotonic() - self._began > wall_s:
            return True
        used = sum(record.seconds for record in self._ledger.trials.values()) * self._gpus / 3600
        return gpu_hours is not None and used > gpu_hours


class _NumberedAsha(ASHAScheduler):
    """Ray's ASHA, with trials known by their number: a continued trial is compared as the one that it was."""

    def replay(self, ledger: Ledger, metric: str) -> None:
        """Learn what earlier attempts have reported."""
        nobody = cast(TuneController, None)  # ASHA does not ask it
        for record in ledger.ordered():
            trial = cast(Trial, SimpleNamespace(config={"task": {"number": record.number}}))
            self.on_trial_add(nobody, trial)
            for report in record.reports:
                if metric in report.values:
                    self.on_trial_result(nobody, trial, {"step": report.step, metric: report.values[metric]})

    def on_trial_add(self, tune_controller: TuneController, trial: Trial) -> None:
        super().on_trial_add(tune_controller, _named(trial))

    def on_trial_result(self, tune_controller: TuneController, trial: Trial, result: TuneResult) -> str:
        if ENDED in result or FAILURE in result:
            return TrialScheduler.CONTINUE
        return super().on_trial_result(tune_controller, _named(trial), result)

    def on_trial_complete(self, tune_controller: TuneController, trial: Trial, result: TuneResult) -> None:
        super().on_trial_complete(tune_controller, _named(trial), result)

    def on_trial_remove(self, tune_controller: TuneController, trial: Trial) -> None:
        super().on_trial_remove(tune_controller, _named(trial))


def _scheduler(sweep: Sweep, ledger: Ledger, num_steps: int) -> TrialScheduler:
    if not isinstance(sweep.scheduler, Asha):
        return FIFOScheduler()
    objective = sweep.objectives[0]
    asha = _NumberedAsha(
        time_attr="step",
        metric=objective.metric,
        mode=objective.direction,
        max_t=max(sweep.scheduler.grace_steps, num_steps - 1),  # at the last step there is nothing left to save
        grace_period=sweep.scheduler.grace_steps,
        reduction_factor=sweep.scheduler.reduction_factor,
        stop_last_trials=False,  # a trial at its last step has yet to write its checkpoint
    )
    asha.replay(ledger, objective.metric)
    return asha


def number_of(trial: Trial) -> int:
    return trial.config["task"]["number"]


def _named(trial: Trial) -> Trial:
    return cast(Trial, SimpleNamespace(trial_id=str(number_of(trial))))

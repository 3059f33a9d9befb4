"""`rtp tune`: a sweep over a recipe's settings on Ray Tune; every trial is a training like that of `rtp train`."""

from __future__ import annotations

import logging
import math
import os
import typing
from dataclasses import dataclass, replace
from typing import Annotated, Any

import tyro
import yaml

from cluster.folder_lock import exclusive_output
from cluster.launch import RayLaunch
from cluster.session import RaySession, connect
from pipelines.catalogue import load_recipe, require_first
from pipelines.config.arguments import UsageError, absolute, parse, take
from pipelines.config.experiment import Experiment
from pipelines.config.serialization import did_you_mean, flatten, members, read_value, to_plain
from pipelines.publishing.training_stores import fingerprint
from pipelines.reports.sweep_page import sweep_page
from pipelines.sweeps.live_table import SweepTable
from pipelines.sweeps.sweep_tracking import close_trials, open_parent, publish
from pipelines.sweeps.trials import SCORES, TrainingTrial, check_sweep, clone_checkpoint, with_parameters
from pipelines.terminal.atomic_files import write_whole
from pipelines.terminal.next_step import print_next
from pipelines.tracking.mlflow_run import tracking_uri
from pipelines.train import class_choices, run_training
from pipelines.training.job import TrainJob
from preprocessing.store.web_store import open_store
from tuning.ledger import Ledger
from tuning.ranking import Point, best
from tuning.search import SearchConfig
from tuning.space import parameters_text
from tuning.sweep import Budget, SchedulerConfig, Sweep, TrialResources, load_sweep, sweep_names
from tuning.tuner import Outcome, TrialRun, run_sweep

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TuneArguments:
    """Flags of `rtp tune SWEEP`; those of the recipe are settings that all trials share."""

    data: tuple[str, ...]
    """Episode stores to train on, local or s3://, gs:// URLs."""
    output: str
    """Folder of the sweep: its record, one folder per trial, report.html and best.yaml."""
    validation: tuple[str, ...] = ()
    """Episode stores whose loss trials report as validation_loss."""
    resume: bool = False
    """Continue the sweep in --output: ended trials stay, the others go on from their checkpoints."""
    retry_failed: bool = False
    """With --resume: continue failed trials, too."""
    accept: tuple[str, ...] = ()
    """Names of the audit's contradictions to train in spite of (rtp inspect --audit lists them)."""
    address: str | None = None
    """Ray cluster to run on; default: RAY_ADDRESS, else this machine."""
    concurrency: int
    """Trials at once."""
    seeds: tuple[int, ...]
    """Each point of the space is trained under each of these; the best has the best median."""
    retries: int
    """How often a trial whose process died is started again."""
    budget: Budget
    search: SearchConfig
    scheduler: SchedulerConfig
    resources: TrialResources
    experiment: Annotated[Experiment, tyro.conf.arg(name="")]


def main(arguments: list[str]) -> dict[str, Any]:
    """Parse the command line and run the sweep."""
    sweep, given = parse_arguments(arguments)
    job = TrainJob(
        experiment=given.experiment,
        stores=tuple(absolute(path) for path in given.data),
        validation=tuple(absolute(path) for path in given.validation),
        output=absolute(given.output),
        tracking_uri=tracking_uri(),
    )
    result = tune(
        sweep,
        job,
        resume=given.resume,
        retry_failed=given.retry_failed,
        address=given.address,
        accepted=given.accept,
    )
    print(_summary(result))
    if result["outcome"] == "interrupted":
        again = () if "--resume" in arguments else ("--resume",)
        print_next("tune", *arguments, *again)
    elif result["best"] is not None:
        validation = ("--validation", *job.validation) if job.validation else ()
        output = ("--output", f"{job.output}-best")
        print_next(
            "train", result["recipe"], "--config", result["best"]["config"], "--data", *job.stores, *validation, *output
        )
    return result


def tune(
    sweep: Sweep,
    job: TrainJob,
    *,
    resume: bool = False,
    retry_failed: bool = False,
    address: str | None = None,
    accepted: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Run `sweep` with `job.experiment` as what all trials share, in `job.output`; what came of it.

    Raises ValueError for what can be known to go wrong before any trial starts.
    """
    check_sweep(sweep, job, accepted)
    with exclusive_output(job.output):
        return _tune(sweep, job, resume=resume, retry_failed=retry_failed, address=address, accepted=accepted)


def _tune(
    sweep: Sweep, job: TrainJob, *, resume: bool, retry_failed: bool, address: str | None, accepted: tuple[str, ...]
) -> dict[str, Any]:
    """The checked sweep, in an output folder that nobody else writes in."""
    ledger = Ledger.load(job.output)
    if resume and ledger.description() is None:
        log.warning("no sweep to resume in %s: starting a new one", job.output)
    parent = _begin(sweep, job, ledger, resume=resume)
    if retry_failed:
        for record in ledger.ordered():
            if record.state == "failed":
                ledger.put(replace(record, state="interrupted", reason=""))
    tags = {"mlflow.parentRunId": parent, "sweep": sweep.name}
    measured = any(objective.metric in SCORES for objective in sweep.objectives)
    trial = TrainingTrial(job=job, run=run_training, scores=measured, accepted=accepted, tags=tags)
    with SweepTable(sweep, ledger, job.experiment) as table, connect(_session(sweep, job.experiment, address)):
        run = _trial_run(sweep, job, trial, table)
        _require_resources(run)
        outcome = run_sweep(sweep, ledger, run)
    close_trials(job, ledger)
    return _finish(sweep, job, ledger, parent, outcome)


def parse_arguments(arguments: list[str]) -> tuple[Sweep, TuneArguments]:
    """SWEEP, then flags laid over the sweep's settings and its recipe's."""
    require_first("tune", arguments)
    name, flags = arguments[0], arguments[1:]
    if not name.endswith(".py") and name not in sweep_names():
        raise UsageError(f"there is no sweep {name!r}{did_you_mean(name, sweep_names())}")
    sweep = load_sweep(name)
    experiment = with_parameters(load_recipe(sweep.recipe), sweep.settings)
    defaults: dict[str, Any] = {part: getattr(sweep, part) for part in _OF_SWEEP}
    _swap_classes(Sweep, defaults, flags)
    parts = {name: getattr(experiment, name) for name in typing.get_type_hints(Experiment)}
    _swap_classes(Experiment, parts, flags)
    default = TuneArguments(data=tyro.MISSING, output=tyro.MISSING, experiment=Experiment(**parts), **defaults)
    choices = class_choices(sweep) | class_choices(default.experiment)
    given = parse(
        TuneArguments,
        flags,
        prog=f"rtp tune {name}",
        default=default,
        description=f"{__doc__}\n\n{_in_words(sweep)}",
        first=("--data", "--output", "--validation", "--resume", "--budget.trials", "--concurrency", "--seeds"),
        choices={flag: choice for flag, choice in choices.items() if flag.count(".") == 0},
    )
    _require_not_varied(sweep, experiment, given.experiment)
    return replace(sweep, **{part: getattr(given, part) for part in _OF_SWEEP}), given


def _in_words(sweep: Sweep) -> str:
    """What is varied, what is best, and how long it goes on."""
    objectives = " and ".join(f"{each.metric} ({each.direction})" for each in sweep.objectives)
    varied = "\n".join(f"- {path} {dimension.words()}" for path, dimension in sweep.space.items())
    how = f"{type(sweep.search).__name__} and {type(sweep.scheduler).__name__}, {sweep.budget.trials} trials"
    return f"{sweep.name} trains {sweep.recipe} and varies\n{varied}\n\nBest is by {objectives}; {how}."


_OF_SWEEP = ("concurrency", "seeds", "retries", "budget", "search", "scheduler", "resources")
_FREE = ("budget", "concurrency", "retries", "resources")  # of a sweep that is resumed


def _swap_classes(kind: type, parts: dict[str, Any], flags: list[str]) -> None:
    """`--scheduler Asha`, taken out of `flags`: another config class, put into `parts`."""
    hints = typing.get_type_hints(kind)
    for name in parts:
        if len(members(hints[name])) > 1 and (chosen := take(flags, f"--{name}")) is not None:
            parts[name] = read_value(hints[name], {"type": chosen}, path=f"--{name}")


def _require_not_varied(sweep: Sweep, before: Experiment, given: Experiment) -> None:
    was, now = flatten(to_plain(before)), flatten(to_plain(given))
    for path in sweep.space:
        if was.get(path) != now.get(path):
            flag = f"--{path.replace('_', '-')}"
            raise UsageError(f"{flag}: sweep {sweep.name} varies it, so it cannot be set")


def _begin(sweep: Sweep, job: TrainJob, ledger: Ledger, *, resume: bool) -> str:
    """The sweep's MLflow run, a new one or that of the sweep that is resumed, which must be this one."""
    now = {"sweep": to_plain(sweep), "experiment": to_plain(job.experiment), "stores": list(job.stores)}
    now["validation"] = list(job.validation)
    now["fingerprints"] = [fingerprint(open_store(path, split="train").root) for path in job.stores]
    now["fingerprints"] += [fingerprint(open_store(path, split="val").root) for path in job.validation]
    before = ledger.description()
    if before is not None and not resume:
        raise ValueError(f"{job.output} already holds a sweep: add --resume to continue it, or give another --output")
    if before is not None:
        _require_same(before, now, job.output)
    run_id = open_parent(job, sweep.name, flatten(now), None if before is None else before["mlflow_run_id"])
    ledger.describe({**now, "mlflow_run_id": run_id})
    return run_id


def _require_same(before: dict[str, Any], now: dict[str, Any], output: str) -> None:
    old, new = flatten(before), flatten({**now, "mlflow_run_id": before["mlflow_run_id"]})
    free = tuple(f"sweep.{name}" for name in _FREE)
    if "fingerprints" in before:  # the same stores may lie elsewhere by now; older sweeps know their paths alone
        _require_same_stores(before, now, output)
        free += ("stores", "validation")
    free += ("fingerprints",)
    changed = [k for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k) and not k.startswith(free)]
    if changed:
        key = changed[0]
        raise ValueError(
            f"--resume continues the sweep in {output}, but {key} was {old.get(key)} and is now {new.get(key)}: "
            f"leave it as it was, or give another --output"
        )


def _require_same_stores(before: dict[str, Any], now: dict[str, Any], output: str) -> None:
    if before["fingerprints"] != now["fingerprints"]:
        was, given = (", ".join([*told["stores"], *told["validation"]]) for told in (before, now))
        raise ValueError(
            f"--resume continues the sweep in {output}, whose stores were {was}: {given} hold something else; "
            f"give those, or another --output"
        )


def _session(sweep: Sweep, experiment: Experiment, address: str | None) -> RaySession:
    """A cluster, or a Ray of our own with room for as many trials as are to run at once."""
    launch = experiment.launch
    if isinstance(launch, RayLaunch):
        address, cpus = address or launch.address, launch.most * launch.cpus_per_worker
    else:
        cpus = sweep.resources.cpus
    num_cpus = max(os.cpu_count() or 1, math.ceil(sweep.concurrency * cpus))
    return RaySession(address=address, num_cpus=num_cpus, log_to_driver=False)


def _trial_run(sweep: Sweep, job: TrainJob, trial: TrainingTrial, table: SweepTable) -> TrialRun:
    """Ray must be connected: how many GPUs there are decides what a trial holds, and is charged for."""
    import ray

    launch, there = job.experiment.launch, ray.cluster_resources().get("GPU", 0)
    cpus, gpus = sweep.resources.cpus, sweep.resources.held_gpus(there)
    charged = gpus
    if isinstance(launch, RayLaunch):  # its workers hold what they need, the process that starts them nothing
        cpus, gpus, charged = 0, 0, float(launch.most if launch.use_gpu else 0)
    return TrialRun(
        function=trial,
        num_steps=job.experiment.loop.steps,
        clone=clone_checkpoint,
        cpus=cpus,
        gpus=gpus,
        gpus_charged=charged,
        changed=table.changed,
    )


def _require_resources(run: TrialRun) -> None:
    """Raise ValueError where no node can ever hold a trial: Ray Tune would wait for ever."""
    import ray

    there = ray.cluster_resources()
    for kind, count in (("CPU", run.cpus), ("GPU", run.gpus)):
        if there.get(kind, 0) < count:
            raise ValueError(f"a trial needs {count:g} {kind}s and Ray has {there.get(kind, 0):g}: lower --resources")


def _finish(sweep: Sweep, job: TrainJob, ledger: Ledger, parent: str, outcome: Outcome) -> dict[str, Any]:
    """Write the report and the best configuration, and end the sweep's MLflow run unless it is to go on."""
    chosen = best(sweep, ledger)
    written = {"report.html": sweep_page(sweep, ledger, num_steps=job.experiment.loop.steps)}
    if chosen is not None:
        experiment = with_parameters(job.experiment, {**chosen.parameters, "loop.seed": sweep.seeds[0]})
        written["best.yaml"] = yaml.safe_dump(to_plain(experiment), sort_keys=False)
    for name, text in written.items():
        write_whole(f"{job.output}/{name}", text)
    publish(job, sweep, parent, written, chosen, outcome)
    records = ledger.ordered()
    return {
        "sweep": sweep.name,
        "recipe": sweep.recipe,
        "outcome": outcome,
        "output": job.output,
        "report": f"{job.output}/report.html",
        "mlflow_run_id": parent,
        "steps": sum(record.step for record in records),
        "states": {state: sum(r.state == state for r in records) for state in dict.fromkeys(r.state for r in records)},
        "trials": [_told(sweep, ledger, number) for number in sorted(ledger.trials)],
        "best": None if chosen is None else _best(sweep, job, ledger, chosen),
        "exit_code": {"complete": 0 if chosen else 1, "budget": 0, "interrupted": 130}[outcome],
    }


def _told(sweep: Sweep, ledger: Ledger, number: int) -> dict[str, Any]:
    record = ledger.trials[number]
    kept = ("number", "point", "seed", "state", "step", "seconds", "attempts", "reason")
    values = {objective.metric: record.last(objective.metric) for objective in sweep.objectives}
    lineage = [{"step": e.step, "parent": e.parent} for e in record.lineage]
    return {
        **{name: getattr(record, name) for name in kept},
        "parameters": dict(record.parameters),
        "objectives": values,
        "lineage": lineage,
        "output": ledger.output(number),
    }


def _best(sweep: Sweep, job: TrainJob, ledger: Ledger, chosen: Point) -> dict[str, Any]:
    assert chosen.medians is not None
    return {
        "point": chosen.number,
        "parameters": dict(chosen.parameters),
        "objectives": {o.metric: value for o, value in zip(sweep.objectives, chosen.medians, strict=True)},
        "trials": [trial.number for trial in chosen.trials],
        "output": ledger.output(chosen.trials[0].number),
        "config": f"{job.output}/best.yaml",
    }


def _summary(result: dict[str, Any]) -> str:
    states = ", ".join(f"{count} {state}" for state, count in result["states"].items())
    lines = [f"sweep {result['sweep']}: {states}; {result['steps']} optimizer steps; {result['report']}"]
    if result["best"] is not None:
        scores = ", ".join(f"{name} {value:.4f}" for name, value in result["best"]["objectives"].items())
        lines.append(f"best: {parameters_text(result['best']['parameters'])}: {scores}")
    elif result["outcome"] == "complete":
        lines.append("no trial has finished: the table says why")
    if result["outcome"] != "complete":
        why = "the budget is used up" if result["outcome"] == "budget" else "stopped"
        larger = ": give a larger one, such as --budget.trials" if result["outcome"] == "budget" else ""
        lines.append(f"{why}{larger}; --resume continues")
    return "\n".join(lines)

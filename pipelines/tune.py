"""`rtp tune`: a sweep over a recipe's settings on Ray Tune; every trial is a training like that of `rtp train`."""

from __future__ import annotations

import logging
import math
import os
import typing
from dataclasses import dataclass, is_dataclass, replace
from typing import Annotated

import tyro
import yaml

from cluster.folder_lock import exclusive_output
from cluster.launch import RayLaunch
from cluster.object_store import open_files
from cluster.session import RaySession, connect
from pipelines.catalogue import load_recipe, require_first
from pipelines.config.arguments import UsageError, absolute, parse, take
from pipelines.config.experiment import Experiment
from pipelines.config.output_paths import output_folder
from pipelines.config.serialization import did_you_mean, flatten, members, read_value, to_plain
from pipelines.reports.sweep_page import sweep_page
from pipelines.sweeps.identity import SweepIdentity
from pipelines.sweeps.live_table import SweepTable
from pipelines.sweeps.result import BestPoint, SweepResult, TrialResult
from pipelines.sweeps.simulated import simulated_score
from pipelines.sweeps.sweep_tracking import close_trials, open_parent, publish
from pipelines.sweeps.trials import SCORES, TrainingTrial, check_sweep, clone_checkpoint, with_parameters
from pipelines.terminal.atomic_files import write_whole
from pipelines.terminal.commands import JsonSummary
from pipelines.terminal.next_step import print_next
from pipelines.tracking.mlflow_run import tracking_uri
from pipelines.train import class_choices, run_training, swap_classes
from pipelines.training.job import TrainJob
from tuning.ledger import Ledger
from tuning.ranking import best
from tuning.search import SearchConfig
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
    env: str | None
    """Simulator and tasks that each trained model acts in, for the objectives success and return, such as
    metaworld:faucet-open,door-lock."""
    env_episodes: int | None
    """Episodes of each of these tasks; 20 by default."""
    budget: Budget
    search: SearchConfig
    scheduler: SchedulerConfig
    resources: TrialResources
    experiment: Annotated[Experiment, tyro.conf.arg(name="")]


def main(arguments: list[str]) -> JsonSummary:
    """Parse the command line and run the sweep."""
    sweep, flags = parse_arguments(arguments)
    job = TrainJob(
        experiment=flags.experiment,
        stores=tuple(absolute(path) for path in flags.data),
        validation=tuple(absolute(path) for path in flags.validation),
        output=output_folder(flags.output),
        tracking_uri=tracking_uri(),
    )
    result = tune(
        sweep,
        job,
        resume=flags.resume,
        retry_failed=flags.retry_failed,
        address=flags.address,
        accepted=flags.accept,
    )
    print(result.text())
    if result.outcome == "interrupted":
        again = () if "--resume" in arguments else ("--resume",)
        print_next("tune", *arguments, *again)
    elif result.best is not None:
        validation = ("--validation", *job.validation) if job.validation else ()
        output = ("--output", f"{job.output}-best")
        print_next("train", result.recipe, "--config", result.best.config, "--data", *job.stores, *validation, *output)
    return result.to_json()


def tune(
    sweep: Sweep,
    job: TrainJob,
    *,
    resume: bool = False,
    retry_failed: bool = False,
    address: str | None = None,
    accepted: tuple[str, ...] = (),
) -> SweepResult:
    """Run `sweep` in `job.output`, with `job.experiment` as what all trials share.

    Raises ValueError for what can be known to go wrong before any trial starts.
    """
    check_sweep(sweep, job, accepted)
    with exclusive_output(job.output):
        return _tune(sweep, job, resume=resume, retry_failed=retry_failed, address=address, accepted=accepted)


def _tune(
    sweep: Sweep, job: TrainJob, *, resume: bool, retry_failed: bool, address: str | None, accepted: tuple[str, ...]
) -> SweepResult:
    """The checked sweep, in an output folder that nobody else writes in."""
    ledger = Ledger.load(job.output, open_files)
    if resume and ledger.description() is None:
        log.warning("no sweep to resume in %s: starting a new one", job.output)
    parent = _begin(sweep, job, ledger, resume=resume)
    if retry_failed:
        for record in ledger.ordered():
            if record.state == "failed":
                ledger.put(replace(record, state="interrupted", reason=""))
    tags = {"mlflow.parentRunId": parent, "sweep": sweep.name}
    measured = any(objective.metric in SCORES for objective in sweep.objectives)
    trial = TrainingTrial(
        job=job, run=run_training, scores=measured, simulated=simulated_score(sweep), accepted=accepted, tags=tags
    )
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
    defaults = {part: getattr(sweep, part) for part in _OF_SWEEP}
    _swap_classes(defaults, flags)
    shared = swap_classes(experiment, flags)
    default = TuneArguments(data=tyro.MISSING, output=tyro.MISSING, experiment=shared, **defaults)
    choices = class_choices(sweep) | class_choices(default.experiment)
    parsed = parse(
        TuneArguments,
        flags,
        prog=f"rtp tune {name}",
        default=default,
        description=f"{__doc__}\n\n{_in_words(sweep)}",
        first=("--data", "--output", "--validation", "--resume", "--budget.trials", "--concurrency", "--seeds"),
        choices={flag: choice for flag, choice in choices.items() if flag.count(".") == 0},
    )
    _require_not_varied(sweep, experiment, parsed.experiment)
    return replace(sweep, **{part: getattr(parsed, part) for part in _OF_SWEEP}), parsed


def _in_words(sweep: Sweep) -> str:
    """What is varied, what is best, and how long it goes on."""
    objectives = " and ".join(f"{each.metric} ({each.direction})" for each in sweep.objectives)
    varied = "\n".join(f"- {path} {dimension.words()}" for path, dimension in sweep.space.items())
    how = f"{type(sweep.search).__name__} and {type(sweep.scheduler).__name__}, {sweep.budget.trials} trials"
    return f"{sweep.name} trains {sweep.recipe} and varies\n{varied}\n\nBest is by {objectives}; {how}."


_OF_SWEEP = ("concurrency", "seeds", "retries", "env", "env_episodes", "budget", "search", "scheduler", "resources")


def _swap_classes(parts: dict[str, object], flags: list[str]) -> None:
    """`--scheduler Asha`, taken out of `flags`: another config class, put into these parts of a sweep."""
    hints = typing.get_type_hints(Sweep)
    for name in parts:
        choices = members(hints[name])
        if len(choices) < 2 or not all(map(is_dataclass, choices)):
            continue
        if (chosen := take(flags, f"--{name}")) is not None:
            parts[name] = read_value(hints[name], {"type": chosen}, path=f"--{name}")


def _require_not_varied(sweep: Sweep, before: Experiment, now: Experiment) -> None:
    old, new = flatten(to_plain(before)), flatten(to_plain(now))
    for path in sweep.space:
        if old.get(path) != new.get(path):
            flag = f"--{path.replace('_', '-')}"
            raise UsageError(f"{flag}: sweep {sweep.name} varies it, so it cannot be set")


def _begin(sweep: Sweep, job: TrainJob, ledger: Ledger, *, resume: bool) -> str:
    """The sweep's MLflow run, a new one or that of the sweep that is resumed, which must be this one."""
    identity, description = SweepIdentity.of(sweep, job), ledger.description()
    run_id = None
    if description is not None:
        if not resume:
            remedy = "add --resume to continue it, or give another --output"
            raise ValueError(f"{job.output} already holds a sweep: {remedy}")
        earlier = SweepIdentity.from_json(description, f"{job.output}/sweep.json")
        identity.require_same(earlier, job.output)
        run_id = earlier.mlflow_run_id
    run_id = open_parent(job, sweep.name, flatten(identity.to_json()), run_id)
    ledger.describe(replace(identity, mlflow_run_id=run_id).to_json())
    return run_id


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
    """Raise ValueError if no node can ever hold a trial: Ray Tune would wait for ever."""
    import ray

    there = ray.cluster_resources()
    for kind, count in (("CPU", run.cpus), ("GPU", run.gpus)):
        if there.get(kind, 0) < count:
            raise ValueError(f"a trial needs {count:g} {kind}s and Ray has {there.get(kind, 0):g}: lower --resources")


def _finish(sweep: Sweep, job: TrainJob, ledger: Ledger, parent: str, outcome: Outcome) -> SweepResult:
    """Write the report and the best configuration, and end the sweep's MLflow run unless it is to go on."""
    chosen = best(sweep, ledger)
    written = {"report.html": sweep_page(sweep, ledger, num_steps=job.experiment.loop.steps)}
    if chosen is not None:
        experiment = with_parameters(job.experiment, {**chosen.parameters, "loop.seed": sweep.seeds[0]})
        written["best.yaml"] = yaml.safe_dump(to_plain(experiment), sort_keys=False)
    for name, text in written.items():
        write_whole(f"{job.output}/{name}", text)
    publish(job, sweep, parent, written, chosen, outcome)
    return SweepResult(
        sweep=sweep.name,
        recipe=sweep.recipe,
        outcome=outcome,
        output=job.output,
        report=f"{job.output}/report.html",
        mlflow_run_id=parent,
        trials=tuple(TrialResult.of(sweep, ledger, number) for number in sorted(ledger.trials)),
        best=None if chosen is None else BestPoint.of(sweep, ledger, chosen, f"{job.output}/best.yaml"),
    )

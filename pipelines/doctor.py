"""`rtp doctor [RECIPE]`: before hours are spent, say what this machine or a cluster has and whether the run will fit.

Changes nothing; exit code 1 if something would let the run fail, with the remedy beside it.
"""

from __future__ import annotations

import importlib.util
import shutil
import socket
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Annotated
from urllib.parse import urlsplit

import tyro

from cluster.node_info import Machine, disk_free, examine, examine_nodes
from cluster.session import cluster_address
from pipelines.capacity.diagnosis import (
    Check,
    cluster_checks,
    machine_checks,
    memory_table,
    run_checks,
    size,
    storage_checks,
    trains_on_gpu,
    worker_room,
)
from pipelines.capacity.estimate import ResourceEstimate, estimate_resources
from pipelines.capacity.fit import (
    KEPT_IN_A_TRIAL,
    SizeEstimate,
    Trial,
    fit_check,
    micro_batch_sizes,
    run_in_process,
    try_sizes,
)
from pipelines.capacity.trial_steps import Measured, measure, of_one_worker
from pipelines.catalogue import recipe_names
from pipelines.config.arguments import UsageError, absolute, parse
from pipelines.config.experiment import Experiment
from pipelines.terminal.commands import JsonSummary
from pipelines.terminal.next_step import command_line, print_next
from pipelines.tracking.local_database import database_of
from pipelines.tracking.mlflow_run import tracking_uri
from pipelines.train import chosen_experiment, class_choices
from pipelines.train_loop import train
from pipelines.training.data import resolved, training_contract
from preprocessing.store.web_store import Store, open_store

EXTRAS = {"use": "tensorflow", "sim": "metaworld", "vlm": "transformers", "jax": "tensorstore"}
MARKS = {"ok": "ok", "note": "note", "fail": "FAIL"}
PATIENCE_S = 5


@dataclass(frozen=True, kw_only=True)
class MachineArguments:
    """Flags of `rtp doctor` without a recipe."""

    output: str = "runs"
    """Folder where runs are to be written, local or s3://, gs:// URL."""
    address: str | None = None
    """Ray cluster to look at, as host:port; RAY_ADDRESS by default, else this machine only."""


@dataclass(frozen=True, kw_only=True)
class RunArguments(MachineArguments):
    """Flags of `rtp doctor RECIPE`: those of rtp train, of which none is required."""

    data: tuple[str, ...] = ()
    """Episode stores to train on."""
    config: str | None = None
    """YAML file laid over the recipe."""
    measure: bool = False
    """Train a few real steps of it on --data in this process, and say how long the whole run would take."""
    fit: bool = False
    """Train a few real steps with larger and larger micro-batches, each in a process of its own, and say which is the
    largest that fits this machine's device, and which is the fastest."""
    experiment: Annotated[Experiment, tyro.conf.arg(name="")]


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """The checks and what they rest on. machine: this one; nodes: of the cluster, if there is one.

    estimate: None without a recipe, or where it cannot be made. measured: with --measure. trials: with --fit.
    """

    checks: tuple[Check, ...]
    machine: Machine
    nodes: tuple[Machine, ...]
    estimate: ResourceEstimate | None
    measured: Measured | None
    trials: tuple[Trial, ...] = ()

    @property
    def has_failed(self) -> bool:
        return any(check.verdict == "fail" for check in self.checks)

    def to_json(self) -> dict[str, object]:
        return {
            "measured": None if self.measured is None else self.measured.to_json(),
            "checks": [asdict(check) for check in self.checks],
            "machine": self.machine.to_json(),
            "nodes": [node.to_json() for node in self.nodes],
            "forecast": None if self.estimate is None else self.estimate.to_json(),
            "trials": [asdict(trial) for trial in self.trials],
            "exit_code": int(self.has_failed),
        }


def main(arguments: list[str]) -> JsonSummary:
    """Examine, judge and print."""
    if arguments and not arguments[0].startswith("-"):
        experiment, flags = chosen_experiment(arguments[0], arguments[1:])
        default = RunArguments(experiment=experiment)
        prog = f"rtp doctor {arguments[0]}"
        settings: MachineArguments = parse(
            RunArguments,
            flags,
            prog=prog,
            default=default,
            description=__doc__ or "",
            first=("--data", "--measure", "--fit", "--output", "--address", "--config"),
            choices=class_choices(experiment),
        )
    else:
        text = f"{__doc__}\nrecipes: {', '.join(recipe_names())}"
        settings = parse(MachineArguments, arguments, prog="rtp doctor", description=text)
    diagnosis = diagnose(settings, arguments)
    for check in diagnosis.checks:
        _print_wrapped(f"{MARKS[check.verdict]:>4}  {check.name:13}  ", check.found)
        if check.remedy:
            _print_wrapped(f"{'':21}-> ", check.remedy)
    if diagnosis.estimate is not None:
        print("\n".join(memory_table(diagnosis.estimate)))
    _print_what_next(settings, arguments, diagnosis.has_failed)
    return diagnosis.to_json()


def _print_wrapped(lead: str, text: str) -> None:
    width = min(100, shutil.get_terminal_size((80, 24)).columns)
    wrap = textwrap.TextWrapper(width, initial_indent=lead, subsequent_indent=" " * len(lead), break_long_words=False)
    wrap.break_on_hyphens = False
    print(wrap.fill(text))


def _print_what_next(settings: MachineArguments, arguments: list[str], has_failed: bool) -> None:
    if has_failed:
        print("next: mend what is marked FAIL, and run the same again")
    elif not isinstance(settings, RunArguments):
        print("next: rtp doctor RECIPE --data STORE")
    elif not settings.data:
        print(f"next: {command_line('rtp', 'doctor', *arguments, '--data', 'STORE', '--measure')}")
    else:
        words = [word for word in arguments if word not in ("--measure", "--no-measure", "--fit", "--no-fit")]
        print_next("train", *words, *(() if "--output" in words else ("--output", f"runs/{arguments[0]}")))


def diagnose(settings: MachineArguments, arguments: Sequence[str] = ()) -> Diagnosis:
    """Examine this machine, the cluster if there is one, and the run if a recipe is given.

    `arguments`: those that `settings` were read from; with `fit` they are given to processes of their own.
    """
    output = absolute(settings.output)
    here = examine(output)
    address = _address(settings)
    checks = [*machine_checks(here), *_extras()]
    nodes: list[Machine] = []
    if address is not None:
        try:
            nodes = examine_nodes(address, output)
            checks += cluster_checks(nodes, here)
        except OSError as error:
            remedy = "start Ray there, or give its address and RAY_AUTH_TOKEN"
            checks.append(Check(name="nodes", found=" ".join(str(error).split()), verdict="fail", remedy=remedy))
    checks += [*storage_checks(output, here, nodes), _tracking()]
    estimate, problem = _estimate(settings, nodes or [here])
    if isinstance(settings, RunArguments) and estimate is not None:
        checks += run_checks(settings.experiment, estimate, nodes or [here], disk_free(output))
    checks += [problem] if problem else []
    measured = None
    if isinstance(settings, RunArguments) and settings.measure:
        measured, check = _measured(settings)
        checks.append(check)
    trials: list[Trial] = []
    if isinstance(settings, RunArguments) and settings.fit and estimate is not None:
        trials, check = _fitted(settings, estimate, here, arguments)
        checks.append(check)
    return Diagnosis(
        checks=tuple(checks),
        machine=here,
        nodes=tuple(nodes),
        estimate=estimate,
        measured=measured,
        trials=tuple(trials),
    )


def _fitted(
    settings: RunArguments, estimate: ResourceEstimate, here: Machine, arguments: Sequence[str]
) -> tuple[list[Trial], Check]:
    """Of this machine: a cluster's other nodes are not tried."""
    if not settings.data:
        raise UsageError("--fit trains on real data: give --data STORE")
    experiment = settings.experiment
    room = worker_room(experiment, estimate, [here])
    if room is None:
        return [], Check(name="fit", found="there is no GPU here to try sizes on", verdict="fail")
    words = [word for word in arguments if word not in ("--fit", "--no-fit", "--measure", "--no-measure")]
    run = run_in_process(words, experiment.launch.sizes[-1])
    of_size = partial(_size_estimate, experiment, [open_store(absolute(path), split="train") for path in settings.data])
    try:
        sizes, first = micro_batch_sizes(experiment), experiment.loop.micro_batch
        trials = try_sizes(sizes, first, room, run, partial(of_size, on_gpu=estimate.on_gpu))
    except ValueError as error:
        return [], Check(name="fit", found=str(error), verdict="fail")
    return trials, fit_check(trials, room, experiment.loop.micro_batch)


def _size_estimate(experiment: Experiment, stores: Sequence[Store], micro_batch: int, *, on_gpu: bool) -> SizeEstimate:
    """Of the run with this micro-batch and of the process that tries it."""
    workers = experiment.launch.sizes[-1]
    resized = replace(experiment.loop, micro_batch=micro_batch, global_batch=micro_batch * workers)
    run = replace(experiment, loop=replace(experiment.loop, micro_batch=micro_batch))
    trial = of_one_worker(replace(experiment, loop=resized), workers)
    of_run, of_trial = (estimate_resources(resolved(each, stores), stores, on_gpu=on_gpu) for each in (run, trial))
    grown_later = round((1 - KEPT_IN_A_TRIAL) * of_trial.kept)
    return SizeEstimate(run=of_run.needed(of_run.stage), trial=of_trial.needed(of_trial.stage) - grown_later)


def _measured(settings: RunArguments) -> tuple[Measured | None, Check]:
    if not settings.data:
        raise UsageError("--measure trains on real data: give --data STORE")
    try:
        paths = [absolute(path) for path in settings.data]
        experiment = resolved(settings.experiment, [open_store(path, split="train") for path in paths])
        print("training a few steps to measure them ...", file=sys.stderr)
        measured = measure(experiment, paths, train)
    except (ValueError, OSError) as error:
        return None, Check(name="measured", found=" ".join(str(error).split()), verdict="fail")
    minutes, seconds = divmod(round(measured.run_s), 60)
    duration = f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {seconds} s"
    text = (
        f"{1 / measured.step_s:.2f} steps/s, {measured.samples_per_s:.1f} samples/s per worker, "
        f"{100 * measured.waiting_share:.0f} % of the time waiting for data; {experiment.loop.steps} steps take about "
        f"{duration}, without validation and checkpoints; at most {size(measured.peak_bytes)} held"
    )
    return measured, Check(name="measured", found=text)


def _address(settings: MachineArguments) -> str | None:
    launch = settings.experiment.launch if isinstance(settings, RunArguments) else None
    return cluster_address(settings.address or getattr(launch, "address", None))


def _estimate(settings: MachineArguments, machines: Sequence[Machine]) -> tuple[ResourceEstimate | None, Check | None]:
    """The estimate, and what hinders it: stores that cannot be read or mixed, a batch that does not divide."""
    if not isinstance(settings, RunArguments):
        return None, None
    try:
        stores = [open_store(absolute(path), split="train") for path in settings.data]
        experiment = resolved(settings.experiment, stores) if stores else settings.experiment
        if stores:
            training_contract(experiment, stores)
        return estimate_resources(experiment, stores, on_gpu=trains_on_gpu(experiment, machines)), None
    except (ValueError, OSError) as error:
        return None, Check(name="run", found=" ".join(str(error).split()), verdict="fail")


def _extras() -> Iterator[Check]:
    missing = [extra for extra, module in EXTRAS.items() if importlib.util.find_spec(module) is None]
    if missing:
        listed = ",".join(missing)
        remedy = f"where you need them: pip install 'rt-pipelines[{listed}]'"
        yield Check(name="extras", found=f"not installed: {listed}", verdict="note", remedy=remedy)


def _tracking() -> Check:
    """Whether MLflow can be reached."""
    uri = tracking_uri()
    where = urlsplit(uri)
    problem = ""
    if where.scheme in ("http", "https") and where.hostname:
        try:
            port = where.port or (443 if where.scheme == "https" else 80)
            socket.create_connection((where.hostname, port), timeout=PATIENCE_S).close()
        except OSError as error:
            problem = f"{uri} does not answer: {error}"
    elif (database := database_of(uri)) is not None:
        problem = examine(str(database.parent)).storage
    remedy = "start the server, or set MLFLOW_TRACKING_URI to one that answers" if problem else ""
    return Check(name="MLflow", found=problem or uri, verdict="fail" if problem else "ok", remedy=remedy)

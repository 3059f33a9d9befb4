"""`rtp train`: check the job before any worker starts, then run the loop in this process or on Ray workers.

Exit codes: 0 trained to the end (or ended early by loop.patience), 2 a mistake in the command line, 75 stopped by
Ctrl-C, SIGTERM, SIGHUP or a file STOP in the output folder with a checkpoint that --resume goes on from, 130 stopped at
once by a second Ctrl-C, 1 anything else.
"""

from __future__ import annotations

import logging
import sys
import typing
from collections.abc import Collection, Sequence
from dataclasses import dataclass, is_dataclass, replace
from typing import TYPE_CHECKING, Annotated, TypeVar

import tyro

from cluster.context import LocalContext
from cluster.folder_lock import exclusive_output
from cluster.launch import launch
from cluster.stop_file import STOPPED_EXIT_CODE, StopFile, error_of, stopping_on_signals
from cluster.storage import CheckpointFolder
from pipelines.capacity.estimate import num_samples
from pipelines.catalogue import load_recipe, recipe_summary, require_first
from pipelines.config.arguments import UsageError, absolute, parse, take
from pipelines.config.experiment import Experiment, InProcess
from pipelines.config.output_paths import output_folder
from pipelines.config.serialization import from_plain, members, read_yaml
from pipelines.terminal.commands import JsonSummary
from pipelines.terminal.next_step import command_line, print_next_evaluation
from pipelines.tracking.mlflow_run import tracking_uri
from pipelines.train_loop import train
from pipelines.train_worker import train_worker
from pipelines.training.checkpoint_metadata import CheckpointMetadata
from pipelines.training.checks import check_job, require_fresh_or_resumed
from pipelines.training.dimension_shares import share_lines, shares_of
from pipelines.training.initial_weights import located
from pipelines.training.job import PreparedJob, TrainJob
from pipelines.training.preparation import prepared
from pipelines.training.progress import packed, progress_bar
from pipelines.training.remote_reader import reader_actors
from pipelines.training.result import Ending, TrainingResult
from pipelines.training.run_files import METRICS, read_metrics
from pipelines.training.run_logger import finish_run, open_run, write_config
from pipelines.training.speed import verdict
from preprocessing.store.web_store import open_store

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from ray.train import UserCallback

log = logging.getLogger(__name__)

Config = TypeVar("Config", bound="DataclassInstance")


def run_training(
    job: TrainJob,
    *,
    accepted: Collection[str] = (),
    context: LocalContext | None = None,
    callbacks: Sequence[UserCallback] = (),
    patience_s: float = 0.0,
) -> TrainingResult:
    """Run `job` to its end, or until it is asked to stop, by Ctrl-C or otherwise (cluster/stop_file.py).

    accepted: contradictions found by the audit (preprocessing/audit/store_audit.py) to train in spite of. context: an
    InProcess run reports its metrics to it. callbacks: Ray Train's, for a RayLaunch. patience_s: how long to wait for
    another process to leave the output folder. Raises ValueError for settings or stores that cannot work.
    """
    job.experiment.require_sizes()
    stores = [open_store(path, split="train") for path in job.stores]
    prepared_job = prepared(job, stores)
    check_job(prepared_job, stores, accepted)
    loop = prepared_job.experiment.loop
    steps_per_epoch = sum(map(num_samples, stores)) / loop.global_batch
    shares = shares_of(prepared_job, stores)
    with (
        exclusive_output(job.output, patience_s=patience_s),
        progress_bar(job.output, loop.steps, steps_per_epoch=steps_per_epoch),
    ):
        result = _run(prepared_job, context or LocalContext(), callbacks)
    return replace(result, dimension_shares=shares or None)


def _run(job: PreparedJob, context: LocalContext, callbacks: Sequence[UserCallback]) -> TrainingResult:
    """Run the checked job, in an output folder that nobody else writes in."""
    if require_fresh_or_resumed(job) is None and job.resume:  # once more: another process may have trained meanwhile
        log.warning("nothing to resume in %s: starting from step 0", job.output)
    run = open_run(job)
    stop = StopFile(job.output)
    stop.clear()
    try:
        write_config(job)
        ending = _run_loop(replace(job, run_id=run.run_id), stop, context, callbacks)
    except BaseException as error:
        finish_run(run, job.output, failure=f"{type(error).__name__}: {error}")
        raise
    finally:
        stop.clear()
    finish_run(run, job.output, failure=ending.stopped)
    return _result(job, ending)


def _run_loop(job: TrainJob, stop: StopFile, context: LocalContext, callbacks: Sequence[UserCallback]) -> Ending:
    """Run the loop in this process or on Ray workers."""
    settings = job.experiment.launch
    if isinstance(settings, InProcess):
        with stopping_on_signals(stop):
            return Ending.of(train(context, job))
    actors = reader_actors(job.experiment.loader)
    with settings.connected(actors), stopping_on_signals(stop):
        returned = launch(train_worker, {"job": job}, settings, actors=actors, callbacks=callbacks)
    error = error_of(returned) or stop.left()
    if error is not None:
        raise error
    return Ending.of(returned)


def _result(job: PreparedJob, ending: Ending) -> TrainingResult:
    """Where the run stands: its newest metrics, its newest checkpoint and, if one was measured, its best."""
    metrics: dict[str, float] = {}
    for line in read_metrics(f"{job.output}/{METRICS}"):  # also of runs with nothing left to train
        metrics |= {key: value for key, value in line.items() if key not in ("step", "time")}
    result = TrainingResult(
        output=job.output,
        contract=job.contract.id,
        metrics=metrics,
        stopped=ending.stopped,
        ended_early=ending.ended_early,
    )
    checkpoints = CheckpointFolder(f"{job.output}/checkpoints").all()
    if not checkpoints:
        return result
    newest = checkpoints[-1]
    skipped_steps = CheckpointMetadata.of(newest).loop_state.skipped
    result = replace(result, steps=newest.step, checkpoint=newest.path, skipped_steps=skipped_steps)
    measured = [(best, each) for each in checkpoints if (best := CheckpointMetadata.of(each).best) is not None]
    if measured:
        _, best = min(measured, key=lambda pair: pair[0])
        result = replace(result, best_step=best.step, best_checkpoint=best.path)
    return result


@dataclass(frozen=True, kw_only=True)
class TrainArguments:
    """Flags of `rtp train RECIPE`."""

    data: tuple[str, ...]
    """Episode stores to train on: the folders that rtp preprocess wrote, local or s3://, gs:// URLs."""
    output: str
    """Folder of the run: checkpoints, metrics, resolved configuration."""
    validation: tuple[str, ...] = ()
    """Episode stores whose loss is reported as validation_loss."""
    resume: bool = False
    """Continue from the newest checkpoint in --output."""
    init: str | None = None
    """Start from the weights of a run, checkpoint, exported folder or models:/NAME@ALIAS instead of fresh ones; or
    imagenet:FILE, for an RT-1's EfficientNet alone: a state dict of torchvision's or timm's efficientnet_b3."""
    accept: tuple[str, ...] = ()
    """Names of the audit's contradictions to train in spite of (rtp inspect --audit lists them)."""
    config: str | None = None
    """YAML file laid over the recipe, read strictly into the same settings."""
    experiment: Annotated[Experiment, tyro.conf.arg(name="")]


def main(arguments: list[str]) -> JsonSummary:
    """Parse the command line and run."""
    flags = parse_arguments(arguments)
    job = TrainJob(
        experiment=flags.experiment,
        stores=tuple(absolute(path) for path in flags.data),
        validation=tuple(absolute(path) for path in flags.validation),
        output=output_folder(flags.output),
        tracking_uri=tracking_uri(),
        resume=flags.resume,
        init=None if flags.init is None else located(flags.init),
    )
    result = run_training(job, accepted=flags.accept)
    print(f"trained {flags.experiment.name} to step {result.steps}, in {job.output}")
    print("\n".join(f"  {line}" for line in packed(_closing_words(result), 76)))
    if result.dimension_shares:
        print("samples of each dimension, by dataset:")
        print("\n".join(f"  {line}" for line in share_lines(result.dimension_shares)))
    if result.stopped is not None:
        resuming = arguments if "--resume" in arguments else [*arguments, "--resume"]
        print(f"rtp: {result.stopped}; to continue: {command_line('rtp', 'train', *resuming)}", file=sys.stderr)
        return result.to_json() | {"exit_code": STOPPED_EXIT_CODE}
    print_next_evaluation(job.output, trained_on=job.stores, held_out=job.validation)
    return result.to_json()


def _closing_words(result: TrainingResult) -> list[str]:
    """What the user should know of the whole run."""
    metrics = result.metrics
    words = [f"loss {metrics.get('loss', float('nan')):.4f}"]
    if "validation_loss" in metrics:
        words.append(f"validation loss {metrics['validation_loss']:.4f}")
    if result.best_step is not None:
        words.append(f"best at step {result.best_step}")
    if result.ended_early is not None:
        words.append("ended early, nothing better was measured")
    if result.skipped_steps:
        words.append(f"{result.skipped_steps} updates skipped")
    if "image_padding_share" in metrics:
        words.append(f"{100 * metrics['image_padding_share']:.1f} % of images padding")
    if "waiting_share" in metrics:
        words.append(f"{verdict(metrics['waiting_share'])}, {100 * metrics['waiting_share']:.0f} % waiting for data")
    return words


def parse_arguments(arguments: list[str]) -> TrainArguments:
    """RECIPE, then the YAML file of --config, then flags: each overrides the one before."""
    require_first("train", arguments)
    experiment, flags = chosen_experiment(arguments[0], arguments[1:])
    return parse(
        TrainArguments,
        flags,
        prog=f"rtp train {arguments[0]}",
        default=TrainArguments(data=tyro.MISSING, output=tyro.MISSING, experiment=experiment),
        description=f"{recipe_summary(arguments[0])}\n\n{__doc__}",
        first=_FIRST_FLAGS,
        choices=class_choices(experiment),
    )


_FIRST_FLAGS = (
    *("--data", "--output", "--validation", "--resume", "--init", "--config"),
    *("--loop.steps", "--loop.global-batch", "--loop.micro-batch", "--optimizer.lr"),
)


def class_choices(config: object, prefix: str = "") -> dict[str, tuple[list[str], str]]:
    """The settings below `config` that are config classes: --flag -> (names of the classes, the present one)."""
    settings: dict[str, tuple[list[str], str]] = {}
    for name, hint in typing.get_type_hints(type(config)).items():
        value = getattr(config, name)
        choices = [getattr(choice, "__name__", "") for choice in members(hint) if is_dataclass(choice)]
        if len(choices) > 1:
            settings[f"--{prefix}{name}"] = (choices, type(value).__name__)
        if is_dataclass(value):
            settings |= class_choices(value, f"{prefix}{name}.")
    return settings


def chosen_experiment(recipe: str, flags: list[str]) -> tuple[Experiment, list[str]]:
    """The recipe with the file of --config and the config classes that flags choose; the flags that are left."""
    experiment = load_recipe(recipe)
    rest = list(flags)
    config = take(rest, "--config")
    if config is not None:
        experiment = _overlay(experiment, config)
        rest += ["--config", config]
    return swap_classes(experiment, rest), rest


def _overlay(experiment: Experiment, path: str) -> Experiment:
    data = read_yaml(path)
    try:
        return from_plain(Experiment, {} if data is None else data, base=experiment)
    except ValueError as error:
        raise UsageError(f"--config {path}: {error}") from error


def swap_classes(config: Config, flags: list[str], prefix: str = "--") -> Config:
    """Swap the classes that flags such as `--engine TorchEngineConfig` choose, and take these flags out of `flags`."""
    for name, hint in typing.get_type_hints(type(config)).items():
        choices = members(hint)
        flag = f"{prefix}{name}"
        if len(choices) > 1 and any(map(is_dataclass, choices)) and (chosen := take(flags, flag)) is not None:
            config = from_plain(type(config), {name: {"type": chosen}}, base=config, path=prefix.strip("-."))
        value = getattr(config, name)
        if is_dataclass(value) and not isinstance(value, type) and any(word.startswith(f"{flag}.") for word in flags):
            swapped = swap_classes(value, flags, f"{flag}.")
            config = config if swapped is value else replace(config, **{name: swapped})
    return config

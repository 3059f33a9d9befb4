"""`rtp train`: check what can be checked before any worker starts, then run the loop where it was asked for.

Exit codes: 0 trained to the end (or ended early by loop.patience), 2 a mistake in what was asked for, 75 stopped by
Ctrl-C, SIGTERM, SIGHUP or a file STOP in the output folder with a checkpoint that --resume goes on from, 130 stopped at
once by a second Ctrl-C, 1 anything else.
"""

from __future__ import annotations

import logging
import sys
import typing
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, is_dataclass, replace
from typing import Annotated, Any

import tyro

from cluster.context import LocalContext
from cluster.folder_lock import exclusive_output
from cluster.launch import launch
from cluster.stop_file import STOPPED_EXIT_CODE, StopFile, stopping_on_signals
from cluster.storage import CheckpointFolder
from pipelines.capacity.estimate import num_samples
from pipelines.catalogue import load_recipe, recipe_summary, require_first
from pipelines.config.arguments import UsageError, absolute, parse, take
from pipelines.config.experiment import Experiment, InProcess
from pipelines.config.serialization import from_plain, members, read_yaml
from pipelines.terminal.next_step import command_line, print_next_evaluation
from pipelines.tracking.mlflow_run import tracking_uri
from pipelines.train_loop import train
from pipelines.train_worker import train_worker
from pipelines.training.checkpoint_metadata import CheckpointMetadata
from pipelines.training.checks import check_job, require_fresh_or_resumed
from pipelines.training.co_fine_tuning import Store
from pipelines.training.initial_weights import located
from pipelines.training.job import PreparedJob, TrainJob
from pipelines.training.preparation import prepared
from pipelines.training.progress import packed, progress_bar
from pipelines.training.run_files import METRICS, read_metrics
from pipelines.training.run_logger import finish_run, open_run, write_config
from pipelines.training.speed import verdict
from preprocessing.store.web_store import open_store

log = logging.getLogger(__name__)


def run_training(
    job: TrainJob,
    *,
    accepted: Collection[str] = (),
    context: LocalContext | None = None,
    callbacks: Sequence[Any] = (),
    patience_s: float = 0.0,
) -> dict[str, Any]:
    """Run `job` and return its last metrics with where the checkpoint lies. Raises ValueError for what cannot work.

    `accepted` names verdicts of the audit (preprocessing/audit/store_audit.py) to train in spite of. A run that was
    asked to stop, by Ctrl-C or otherwise (cluster/stop_file.py), returns with "stopped", the reason. `context` is what
    an InProcess run reports its metrics to, `callbacks` (Ray Train's) what a RayLaunch does. `patience_s`: how long to
    wait for another process to leave the output folder.
    """
    job.experiment.require_sizes()
    stores = [open_store(path, split="train") for path in job.stores]
    prepared_job = prepared(job, stores)
    check_job(prepared_job, stores, accepted)
    with exclusive_output(job.output, patience_s=patience_s), _followed(prepared_job, stores):
        return _run(prepared_job, context or LocalContext(), callbacks)


def _followed(job: TrainJob, stores: Sequence[Store]) -> AbstractContextManager[None]:
    loop = job.experiment.loop
    return progress_bar(job.output, loop.steps, steps_per_epoch=sum(map(num_samples, stores)) / loop.global_batch)


def _run(job: PreparedJob, context: LocalContext, callbacks: Sequence[Any]) -> dict[str, Any]:
    """The checked job, in an output folder that nobody else writes in."""
    if require_fresh_or_resumed(job) is None and job.resume:  # once more: another process may have trained meanwhile
        log.warning("nothing to resume in %s: starting from step 0", job.output)
    run = open_run(job)
    stop = StopFile(job.output)
    stop.clear()
    try:
        write_config(job)
        ended = _run_where_asked(replace(job, run_id=run.run_id), stop, context, callbacks)
    except BaseException as error:
        finish_run(run, job.output, failure=f"{type(error).__name__}: {error}")
        raise
    finally:
        stop.clear()
    finish_run(run, job.output, failure=ended.get("stopped"))
    result = {**ended, **_last_metrics(job.output), "output": job.output, "contract": job.contract.id}
    return {**result, **_reached(job.output)}


def _run_where_asked(job: TrainJob, stop: StopFile, context: LocalContext, callbacks: Sequence[Any]) -> dict[str, Any]:
    where = job.experiment.launch
    if isinstance(where, InProcess):
        with stopping_on_signals(stop):
            return train(context, job)
    with where.connected(), stopping_on_signals(stop):
        ended = launch(train_worker, {"job": job}, where, callbacks=callbacks)
    error = stop.left()
    if error is not None:
        raise error
    return ended


def _last_metrics(output: str) -> dict[str, Any]:
    """The newest value of every metric, also where nothing was left to train."""
    merged: dict[str, Any] = {}
    for line in read_metrics(f"{output}/{METRICS}"):
        merged |= line
    return {key: value for key, value in merged.items() if key not in ("step", "time")}


def _reached(output: str) -> dict[str, Any]:
    """Where the run stands: its newest checkpoint and, where one was measured, its best."""
    complete = CheckpointFolder(f"{output}/checkpoints").all()
    if not complete:
        return {"steps": 0}
    newest = complete[-1]
    skipped = CheckpointMetadata.of(newest).loop_state.skipped
    reached = {"steps": newest.step, "checkpoint": newest.path, "skipped_steps": skipped}
    measured = [(best, each) for each in complete if (best := CheckpointMetadata.of(each).best) is not None]
    if measured:
        _, best = min(measured, key=lambda pair: pair[0])
        reached |= {"best_step": best.step, "best_checkpoint": best.path}
    return reached


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


def main(arguments: list[str]) -> dict[str, Any]:
    """Parse the command line and run."""
    given = parse_arguments(arguments)
    job = TrainJob(
        experiment=given.experiment,
        stores=tuple(absolute(path) for path in given.data),
        validation=tuple(absolute(path) for path in given.validation),
        output=absolute(given.output),
        tracking_uri=tracking_uri(),
        resume=given.resume,
        init=None if given.init is None else located(given.init),
    )
    result = run_training(job, accepted=given.accept)
    print(f"trained {given.experiment.name} to step {result['steps']}, in {job.output}")
    print("\n".join(f"  {line}" for line in packed(_summary(result), 76)))
    if "stopped" in result:
        print(f"rtp: {result['stopped']}; to continue: {_resuming(arguments)}", file=sys.stderr)
        return result | {"exit_code": STOPPED_EXIT_CODE}
    print_next_evaluation(job.output, trained_on=job.stores, held_out=job.validation)
    return result


def _resuming(arguments: list[str]) -> str:
    """The command that goes on with what these arguments began."""
    return command_line("rtp", "train", *arguments, *(() if "--resume" in arguments else ("--resume",)))


def _summary(result: dict[str, Any]) -> list[str]:
    """What the user should know of the whole run."""
    said = [f"loss {result.get('loss', float('nan')):.4f}"]
    if "validation_loss" in result:
        said.append(f"validation loss {result['validation_loss']:.4f}")
    if "best_step" in result:
        said.append(f"best at step {result['best_step']}")
    if "ended_early" in result:
        said.append("ended early, nothing better was measured")
    if result.get("skipped_steps"):
        said.append(f"{result['skipped_steps']} updates skipped")
    if "image_padding_share" in result:
        said.append(f"{100 * result['image_padding_share']:.1f} % of images padding")
    if "waiting_share" in result:
        said.append(f"{verdict(result['waiting_share'])}, {100 * result['waiting_share']:.0f} % waiting for data")
    return said


def parse_arguments(arguments: list[str]) -> TrainArguments:
    """RECIPE, then --config's overlay, then flags: each is laid over the one before."""
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


def class_choices(config: Any, prefix: str = "") -> dict[str, tuple[list[str], str]]:
    """The settings below `config` that are config classes: --flag -> (names of the classes, the present one)."""
    found: dict[str, tuple[list[str], str]] = {}
    for name, hint in typing.get_type_hints(type(config)).items():
        value = getattr(config, name)
        choices = [getattr(choice, "__name__", "") for choice in members(hint) if is_dataclass(choice)]
        if len(choices) > 1:
            found[f"--{prefix}{name}"] = (choices, type(value).__name__)
        if is_dataclass(value):
            found |= class_choices(value, f"{prefix}{name}.")
    return found


def chosen_experiment(recipe: str, flags: list[str]) -> tuple[Experiment, list[str]]:
    """The recipe under --config's overlay, with the config classes that flags choose, and the flags that are left."""
    experiment, rest = load_recipe(recipe), list(flags)
    config = take(rest, "--config")
    if config is not None:
        experiment = _overlay(experiment, config)
        rest += ["--config", config]
    return _swap_classes(experiment, rest), rest


def _overlay(experiment: Experiment, path: str) -> Experiment:
    data = read_yaml(path)
    try:
        return from_plain(Experiment, {} if data is None else data, base=experiment)
    except ValueError as error:
        raise UsageError(f"--config {path}: {error}") from error


def _swap_classes(config: Any, flags: list[str], prefix: str = "--") -> Any:
    """`--engine TorchEngineConfig`, `--model.tuning LoRA`, taken out of `flags`: another class for such a setting."""
    for name, hint in typing.get_type_hints(type(config)).items():
        choices, flag = members(hint), f"{prefix}{name}"
        if len(choices) > 1 and any(map(is_dataclass, choices)) and (chosen := take(flags, flag)) is not None:
            config = from_plain(type(config), {name: {"type": chosen}}, base=config, path=prefix.strip("-."))
        value: Any = getattr(config, name)
        if is_dataclass(value) and any(word.startswith(f"{flag}.") for word in flags):
            swapped = _swap_classes(value, flags, f"{flag}.")
            config = config if swapped is value else replace(config, **{name: swapped})
    return config

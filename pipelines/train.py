"""`rtp train`: check what can be checked before any worker starts, then run the loop where it was asked for."""

from __future__ import annotations

import logging
import typing
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
import yaml

from cluster.context import LocalContext, WorkerContext
from cluster.launch import launch
from cluster.storage import CheckpointFolder
from pipelines.arguments import UsageError, parse
from pipelines.catalogue import load_recipe, recipe_names
from pipelines.experiment import Experiment, InProcess
from pipelines.progress import following
from pipelines.serialization import from_plain, members, to_plain
from pipelines.tracking import tracking_uri
from pipelines.train_loop import TrainJob, read_metrics, require_same_run, train
from pipelines.training_data import training_contract
from preprocessing.audit import audit, blocking, saved
from preprocessing.episode_store import EpisodeStore
from rt_models.spec import Contract

log = logging.getLogger(__name__)


def run_training(job: TrainJob, *, accepted: Collection[str] = ()) -> dict[str, Any]:
    """Run `job` and return its last metrics with where the checkpoint lies. Raises ValueError for what cannot work.

    `accepted` names verdicts of the audit (preprocessing/audit.py) to train in spite of.
    """
    where = job.experiment.launch
    job.experiment.accumulation(where.most)
    stores = [EpisodeStore.open(path, split="train") for path in job.stores]
    contract = training_contract(job.experiment, stores)
    require_sound(stores, accepted)
    for path in job.validation:
        contract.require_readable(EpisodeStore.open(path, split="val").contract, where=path)
    _require_fresh_or_resumed(job, contract)
    _write_config(job)
    with following(job.output, job.experiment.loop.steps):
        if isinstance(where, InProcess):
            metrics = train(LocalContext(), job)
        else:
            metrics = launch(train_worker, {"job": job}, where)
    return {
        **metrics,
        **_last_metrics(job.output),
        "output": job.output,
        "steps": job.experiment.loop.steps,
        "contract": contract.id,
    }


def require_sound(stores: Sequence[EpisodeStore], accepted: Collection[str]) -> None:
    """Raise ValueError where the audit finds that a store's data contradict what its spec declares."""
    for store in stores:
        found = saved(store) or audit(store)
        refused = blocking(found.verdicts, accepted=accepted)
        if refused:
            raise ValueError(
                f"{store.root} contradicts what is declared of it: {'; '.join(refused)}. Mend the dataset spec and "
                f"preprocess again, or train in spite of it with --accept {refused[0].partition(':')[0]}"
            )


def train_worker(context: WorkerContext, config: dict[str, Any]) -> dict[str, float]:
    """What every Ray worker runs."""
    return train(context, config["job"])


def _last_metrics(output: str) -> dict[str, Any]:
    """The newest value of every metric, also where nothing was left to train."""
    merged: dict[str, Any] = {}
    for line in read_metrics(Path(output) / "metrics.jsonl"):
        merged |= line
    return {key: value for key, value in merged.items() if key not in ("step", "time")}


def _require_fresh_or_resumed(job: TrainJob, contract: Contract) -> None:
    found = CheckpointFolder(f"{job.output}/checkpoints").latest()
    if found is not None and not job.resume:
        raise ValueError(
            f"{job.output} already holds a run at step {found.step}: add --resume to continue it, "
            f"or give another --output"
        )
    if found is not None:
        require_same_run(found, contract, job.experiment)
    elif job.resume:
        log.warning("nothing to resume in %s: starting from step 0", job.output)


def _write_config(job: TrainJob) -> None:
    """The resolved experiment beside the checkpoints, in the form that --config reads."""
    if "://" not in job.output:
        Path(job.output).mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(to_plain(job.experiment), sort_keys=False)
        Path(job.output, "experiment.yaml").write_text(text)


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
    )
    result = run_training(job, accepted=given.accept)
    loss = result.get("loss", float("nan"))
    print(f"trained {given.experiment.name} to step {result['steps']}: loss {loss:.4f}; {job.output}")
    return result


def parse_arguments(arguments: list[str]) -> TrainArguments:
    """RECIPE, then --config's overlay, then flags: each is laid over the one before."""
    if not arguments or arguments[0].startswith("-"):
        if "--help" in arguments or "-h" in arguments:
            names = ", ".join(recipe_names())
            print(f"usage: rtp train RECIPE --data STORE ... --output DIR [OPTIONS]\n\nrecipes: {names}")
            print("rtp train RECIPE --help lists the options, with the recipe's values as defaults")
            raise SystemExit(0)
        raise UsageError(f"rtp train: name a recipe first, one of {', '.join(recipe_names())}")
    experiment, flags = load_recipe(arguments[0]), arguments[1:]
    if "--config" in flags[:-1]:
        experiment = _overlay(experiment, flags[flags.index("--config") + 1])
    experiment, flags = _swap_classes(experiment, flags)
    default = TrainArguments(data=tyro.MISSING, output=tyro.MISSING, experiment=experiment)
    return parse(TrainArguments, flags, prog=f"rtp train {arguments[0]}", default=default, description=__doc__ or "")


def absolute(path: str) -> str:
    """A local path made absolute, since workers run in other folders; URLs are left alone."""
    return path if "://" in path else str(Path(path).absolute())


def _overlay(experiment: Experiment, path: str) -> Experiment:
    try:
        data = yaml.safe_load(Path(path).read_text())
    except yaml.YAMLError as error:
        raise UsageError(f"--config {path} is not YAML: {error}") from error
    return from_plain(Experiment, data or {}, base=experiment)


def _swap_classes(experiment: Experiment, flags: list[str]) -> tuple[Experiment, list[str]]:
    """`--engine TorchEngineConfig`: another config class for a setting that has several; its own flags follow."""
    hints = typing.get_type_hints(Experiment)
    rest = list(flags)
    for name, hint in hints.items():
        if len(members(hint)) > 1 and f"--{name}" in rest[:-1]:
            at = rest.index(f"--{name}")
            experiment = from_plain(Experiment, {name: {"type": rest[at + 1]}}, base=experiment)
            del rest[at : at + 2]
    return experiment, rest

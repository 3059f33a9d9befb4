"""A training's task, and the task with all that its stores decide: the one value that each worker gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pipelines.config.experiment import Experiment
from pipelines.publishing.training_stores import StoreReference
from rt_models.spec import Contract


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """The task of `train`. `stores` and `validation` are folders of episode stores, local or remote.

    `init`: the weights that a new run starts from: a trained model (pipelines/publishing/trained_model.py), or
    imagenet:FILE (pipelines/training.imagenet_start.py).
    `run_id`: the MLflow run that the metrics go to; None: `train` opens one, and ends it.
    `until`: a step to pause at, with a checkpoint; the schedule is that of the whole run. `tags`: of the MLflow run.
    """

    experiment: Experiment
    stores: tuple[str, ...]
    output: str
    tracking_uri: str
    validation: tuple[str, ...] = ()
    resume: bool = False
    init: str | None = None
    run_id: str | None = None
    until: int | None = None
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PreparedJob(TrainJob):
    """A job whose stores have been read once (training/preparation.py), so that no worker resolves anything again.

    `experiment` is resolved. `contract`: what the trained model's inputs and actions mean. `references`: the stores as
    they were found, in the order of `stores`. `plans`: fingerprint of RT-2's plans, "" without any.
    """

    contract: Contract
    references: tuple[StoreReference, ...]
    plans: str

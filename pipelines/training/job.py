"""What a training is asked to do: the one value that the driver hands to every worker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pipelines.config.experiment import Experiment


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """What `train` is asked to do. `stores` and `validation` are folders of episode stores, local or remote.

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

"""One run, completely: an Experiment is what a recipe returns, the command line overrides and a checkpoint carries."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from cluster.engine import DeepSpeedEngineConfig, TorchEngineConfig
from cluster.launch import RayLaunch
from pipelines.optimizer import AdamConfig, AdamWConfig
from pipelines.schedule import ConstantSchedule, CosineSchedule
from preprocessing.loading.loader import LoaderConfig
from rt_models.rt1 import RT1Config
from rt_models.spec import Bounds, Identity, Quantiles


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How long, how much at once, and what is written when."""

    steps: int = 1000
    """Optimizer steps of the whole run."""
    global_batch: int = 64
    """Windows per optimizer step, over all workers."""
    micro_batch: int = 32
    """Windows per forward pass of one worker."""
    segment_windows: int = 1
    """Neighbouring windows drawn together: they share frames and one crop, and each frame is encoded once."""
    lanes: int = 48
    """Lanes of the sample order; the number of workers must divide it."""
    seed: int = 0
    log_every: int = 10
    """Steps between lines of metrics."""
    checkpoint_every: int = 500
    """Steps between checkpoints; the last step always writes one."""
    keep_last: int = 3
    """Checkpoints kept."""
    evaluate_every: int = 0
    """Steps between losses on the validation stores; 0 for only at the end."""
    evaluate_windows: int = 512
    """Windows of the validation stores that a validation loss is taken over."""

    def __post_init__(self) -> None:
        positive = ("steps", "global_batch", "micro_batch", "segment_windows", "lanes", "log_every", "checkpoint_every")
        for name in (*positive, "keep_last"):
            if getattr(self, name) < 1:
                raise ValueError(f"loop.{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """MLflow: where MLFLOW_TRACKING_URI says, else a SQLite file under ./runs."""

    experiment: str = "rt-pipelines"
    """MLflow experiment that runs are filed under."""


@dataclass(frozen=True, kw_only=True)
class InProcess:
    """One worker, this very process, without Ray."""

    most: ClassVar[int] = 1


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """The resolved configuration of a training run."""

    name: str
    model: RT1Config
    scaling: Identity | Bounds | Quantiles = field(default_factory=Identity)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    optimizer: AdamConfig | AdamWConfig = field(default_factory=AdamConfig)
    schedule: ConstantSchedule | CosineSchedule = field(default_factory=ConstantSchedule)
    engine: TorchEngineConfig | DeepSpeedEngineConfig = field(default_factory=TorchEngineConfig)
    launch: RayLaunch | InProcess = field(default_factory=InProcess)
    loop: LoopConfig = field(default_factory=LoopConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def accumulation(self, world_size: int) -> int:
        """Micro-batches per optimizer step of one worker. Raises ValueError with the whole equation."""
        loop = self.loop
        accumulation, rest = divmod(loop.global_batch, loop.micro_batch * world_size)
        if rest or not accumulation:
            raise ValueError(
                f"loop.global_batch {loop.global_batch} = loop.micro_batch {loop.micro_batch} x accumulation "
                f"x {world_size} workers has no whole solution: choose a multiple of {loop.micro_batch * world_size}"
            )
        return accumulation

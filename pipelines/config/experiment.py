"""One run, completely: an Experiment is what a recipe returns, the command line overrides and a checkpoint carries."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from cluster.engine import DeepSpeedEngineConfig, TorchEngineConfig
from cluster.launch import RayLaunch
from pipelines.config.optimizer import AdamConfig, AdamWConfig
from pipelines.config.schedule import ConstantSchedule, CosineSchedule
from pipelines.families.models import ModelConfig
from pipelines.training.co_fine_tuning import CoFineTuningConfig
from preprocessing.loading.loader import LoaderConfig
from preprocessing.mixture import MixtureConfig
from rt_models.spec import RT1X, Bounds, Identity, Quantiles


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
    """Seed of the initial weights, the sample order and dropout."""
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
    best_by: str = "validation_loss"
    """Metric whose lowest checkpoint is kept beside the newest, of those at whose step it was measured."""
    patience: int = 0
    """Measurements of `best_by` without a new lowest one after which training ends early; 0 for never."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """A gradient that is not finite stops the run, or its update is skipped, counted and reported."""
    max_skips: int = 10
    """Skipped updates in a row after which the run stops all the same."""
    fixed_shapes: Literal["auto", "on", "off"] = "auto"
    """Whether batches are padded to a few shapes that are known before the run, in training and in validation, so that
    a GPU meets no new ones. Loss and gradient do not see the padding. "auto": on GPUs, and not on CPUs."""
    log_samples: bool = False
    """Each worker writes down what it trains on, step by step, to samples/ in the output folder."""

    def __post_init__(self) -> None:
        positive = ("steps", "global_batch", "micro_batch", "segment_windows", "lanes", "log_every", "checkpoint_every")
        for name in (*positive, "keep_last", "evaluate_windows"):
            if getattr(self, name) < 1:
                raise ValueError(f"loop.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("seed", "evaluate_every", "patience", "max_skips"):
            if getattr(self, name) < 0:
                raise ValueError(f"loop.{name} must be at least 0, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """MLflow: where MLFLOW_TRACKING_URI says, else a SQLite file under ./runs."""

    experiment: str = "rt-pipelines"
    """MLflow experiment that runs are filed under."""
    wandb_project: str | None = None
    """Weights & Biases project to log to as well."""


@dataclass(frozen=True, kw_only=True)
class InProcess:
    """One worker, this very process, without Ray."""

    most: ClassVar[int] = 1
    sizes: ClassVar[range] = range(1, 2)


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """The resolved configuration of a training run."""

    name: str
    """Name of the run in MLflow."""
    model: ModelConfig
    scaling: Identity | Bounds | Quantiles | RT1X = field(default_factory=Identity)
    freeze: tuple[str, ...] = ()
    """Beginnings of the names of parameters that are not trained, such as tokenizer. for RT-1's image half (and
    other_tokenizers. where cameras have separate ones); BatchNorm's running averages stand still there too."""
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    mixture: MixtureConfig = field(default_factory=MixtureConfig)
    co_fine_tuning: CoFineTuningConfig | None = None
    """How RT-2 mixes robot steps with web examples; None for models of robot steps alone."""
    optimizer: AdamConfig | AdamWConfig = field(default_factory=AdamConfig)
    schedule: ConstantSchedule | CosineSchedule = field(default_factory=ConstantSchedule)
    engine: TorchEngineConfig | DeepSpeedEngineConfig = field(default_factory=TorchEngineConfig)
    launch: RayLaunch | InProcess = field(default_factory=InProcess)
    loop: LoopConfig = field(default_factory=LoopConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise ValueError("name is empty: leave it out, or name the run as MLflow is to show it")

    def require_sizes(self) -> None:
        """Raise ValueError unless batch and lanes divide evenly among every number of workers the run may have."""
        loop = self.loop
        if self.loader.where == "remote" and isinstance(self.launch, InProcess):
            raise ValueError("loader.where remote reads on other nodes of a Ray cluster: train with --launch RayLaunch")
        if loop.micro_batch % loop.segment_windows:
            raise ValueError(
                f"loop.micro_batch {loop.micro_batch} is not a whole number of segments of loop.segment_windows "
                f"{loop.segment_windows}: choose a multiple"
            )
        for size in self.launch.sizes:
            self.accumulation(size)
            if self.loop.lanes % size:
                raise ValueError(
                    f"loop.lanes {self.loop.lanes} = {size} workers x lanes of each has no whole solution: choose "
                    f"numbers of workers that divide {self.loop.lanes}, or another loop.lanes"
                )

    def learning_rate(self, step: int) -> float:
        """Of the update that ends step `step`; the first is step 1."""
        return self.optimizer.lr * self.schedule.factor(step - 1, self.loop.steps)

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

"""A sweep, completely: what is varied in which recipe, what is best, who is stopped early, what may be spent."""

from __future__ import annotations

import importlib
import importlib.util
import math
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tuning.sweeps
from tuning.population import Population
from tuning.search import GridSearch, SearchConfig, TpeSearch
from tuning.space import Dimension, Parameters, grid_size


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A metric that the training reports."""

    metric: str
    """Name of the metric, as the training reports it."""
    direction: Literal["min", "max"]
    """Which way is better."""

    def __post_init__(self) -> None:
        if self.direction not in ("min", "max"):  # a sweep's own file is read by no type checker
            raise ValueError(f"objective {self.metric}: direction must be min or max, got {self.direction!r}")


@dataclass(frozen=True, kw_only=True)
class ToTheEnd:
    """No early stopping: every trial runs all its steps."""


@dataclass(frozen=True, kw_only=True)
class Asha:
    """Asynchronous successive halving (Li et al., 2020, arXiv 1810.05934), as implemented in Ray Tune.

    At `grace_steps` optimizer steps, and at its multiples by powers of `reduction_factor`, a trial goes on only if it
    is among the best 1 / reduction_factor of those that were reported there so far.
    """

    grace_steps: int = 10
    """Optimizer steps before a trial may be stopped; a loss must be reported there (loop.evaluate_every)."""
    reduction_factor: int = 3
    """The best 1 / reduction_factor go on; compared at grace_steps times every power of it."""

    def __post_init__(self) -> None:
        if self.grace_steps < 1 or self.reduction_factor < 2:
            raise ValueError(
                f"Asha needs grace_steps >= 1 and reduction_factor >= 2, "
                f"got {self.grace_steps} and {self.reduction_factor}"
            )


SchedulerConfig = ToTheEnd | Asha | Population


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a sweep may spend.

    At a limit of time, trials stop where they are; a larger budget with --resume continues them.
    """

    trials: int
    """Points of the space; each is trained under every seed."""
    wall_s: float | None = None
    """Seconds that one call of the command may take."""
    gpu_hours: float | None = None
    """GPU hours of all trials and all calls together."""

    def __post_init__(self) -> None:
        limits = [limit for limit in (self.wall_s, self.gpu_hours) if limit is not None]
        if self.trials < 1 or not all(limit > 0 for limit in limits):
            given = ", ".join(f"{name} {value}" for name, value in vars(self).items() if value is not None)
            raise ValueError(f"budget: trials must be at least 1 and limits above 0, got {given}")


@dataclass(frozen=True, kw_only=True)
class TrialResources:
    """What a trial in one process reserves; a trial that is a Ray Train job reserves what its launch says."""

    cpus: float = 1
    """CPU cores."""
    gpus: float | None = None
    """GPUs; a fraction shares one, 0 trains on the CPU. By default one where there are any, else none."""

    def __post_init__(self) -> None:
        if not (0 <= self.cpus < math.inf and 0 <= (self.gpus or 0) < math.inf):
            raise ValueError(f"a trial cannot hold {self.cpus} CPUs and {self.gpus} GPUs")

    def held_gpus(self, there: float) -> float:
        """GPUs that a trial holds where there are so many."""
        return float(there >= 1) if self.gpus is None else self.gpus


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A sweep, completely. `search` chooses the next point, `scheduler` which trials are stopped early."""

    name: str
    """Name of the sweep in MLflow."""
    recipe: str
    """The recipe that every trial trains."""
    space: Mapping[str, Dimension]
    """Dotted paths of the experiment's settings, and what each ranges over."""
    objectives: tuple[Objective, ...]
    """What is best; early stopping takes the first."""
    budget: Budget
    settings: Parameters = field(default_factory=dict)
    """Values by dotted path that are laid over the recipe first."""
    search: SearchConfig = field(default_factory=TpeSearch)
    scheduler: SchedulerConfig = field(default_factory=ToTheEnd)
    resources: TrialResources = field(default_factory=TrialResources)
    concurrency: int = 1
    """Trials that run at once."""
    seeds: tuple[int, ...] = (0,)
    """Each point of the space is trained under each of these; the best has the best median."""
    retries: int = 0
    """How often a trial whose process died is started again, from its own checkpoint."""
    env: str | None = None
    """Simulator and tasks that each trained model acts in, for the objectives success and return, such as
    metaworld:faucet-open,door-lock."""
    env_episodes: int | None = None
    """Episodes of each of these tasks; 20 by default."""

    def __post_init__(self) -> None:
        if not self.space or not self.objectives:
            raise ValueError(f"sweep {self.name} needs at least one setting to vary and one objective")
        if self.concurrency < 1:
            raise ValueError(f"concurrency must be at least 1 trial, got {self.concurrency}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            given = " ".join(map(str, self.seeds)) or "none"
            raise ValueError(f"seeds must be one or more different numbers of at least 0, got {given}")
        if self.retries < 0:
            raise ValueError(f"retries must be 0 or more, got {self.retries}")
        twice = sorted(set(self.space) & set(self.settings))
        if twice:
            raise ValueError(f"sweep {self.name} both varies and sets {', '.join(twice)}")
        if len(self.objectives) > 1 and not isinstance(self.scheduler, ToTheEnd):
            raise ValueError(
                f"sweep {self.name} has {len(self.objectives)} objectives, and {type(self.scheduler).__name__} "
                f"compares trials by one: use ToTheEnd, or keep one objective"
            )
        if isinstance(self.search, GridSearch):
            grid_size(self.space)  # raises for a range of real numbers
        if isinstance(self.scheduler, Population):
            self._require_population()

    @property
    def directions(self) -> list[str]:
        return [objective.direction for objective in self.objectives]

    @property
    def num_trials(self) -> int:
        """Trials in all: points times seeds; a grid ends where it is complete."""
        points = self.budget.trials
        if isinstance(self.search, GridSearch):
            points = min(points, grid_size(self.space))
        return points * len(self.seeds)

    def _require_population(self) -> None:
        if self.budget.trials < 2 or len(self.seeds) > 1:
            raise ValueError(
                f"sweep {self.name} trains a population: it needs at least 2 trials and one seed, "
                f"got {self.budget.trials} and {len(self.seeds)}"
            )


def sweep_names() -> list[str]:
    """The sweeps that are shipped, by file name."""
    return sorted(module.name for module in pkgutil.iter_modules(tuning.sweeps.__path__))


def load_sweep(name: str) -> Sweep:
    """The sweep of a name in `sweep_names()`, or of a Python file of your own that has a function sweep().

    Raises ModuleNotFoundError for another name and ValueError for a file that does not define a sweep.
    """
    if name.endswith(".py"):
        path = Path(name)
        if not path.is_file():
            raise FileNotFoundError(f"there is no sweep file {name}")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except SyntaxError as error:
            raise ValueError(f"{name} is not Python: {error}") from error
        except ImportError as error:
            raise ImportError(f"{name} cannot be loaded: {error}") from error
    else:
        module = importlib.import_module(f"tuning.sweeps.{name}")
    make: Callable[[], Sweep] | None = getattr(module, "sweep", None)
    sweep = make() if callable(make) else None
    if not isinstance(sweep, Sweep):
        raise ValueError(f"{name} has no function sweep() that returns a tuning.sweep.Sweep")
    return sweep

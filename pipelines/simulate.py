"""`rtp simulate OUT`: Meta-World's scripted experts -> an RLDS dataset in TFDS layout.

With --tasks dmc:point_mass-easy a controller with a known formula acts in dm_control instead, and what is written has
V-D4RL's layout: OUT/point_mass_easy/expert/84px.

The simulator and its experts run at 80 Hz, where an action in [-1, 1] moves the commanded hand position by 0.01 m times
the action (`SawyerXYZEnv.set_xyz_action`, metaworld 3.1). Recorded is every k-th observation; the action of step t is
what was commanded between the observations t and t + 1: the sum of the k displacements, the mean of the k gripper
commands. Every episode has a simulator and a seed of its own, so that it does not depend on those before it.

An episode ends on the simulator's success signal: one step of `terminate_episode` with the hand held still, then the
last step with reward 1. Episodes in which an expert fails are counted and replaced by the next seed's.

Goal markers are not drawn: tasks whose goal is a free point in space (reach, push, pick-place) record well, but no
policy can tell from the picture where to go.
"""

from __future__ import annotations

import functools
import itertools
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.progress import track

from pipelines.config.arguments import parse, require_local
from pipelines.config.output_paths import output_folder
from pipelines.terminal.commands import JsonSummary
from pipelines.terminal.next_step import print_next
from preprocessing.simulation.dmc_environment import dmc_config
from preprocessing.simulation.dmc_recording import Demonstrations, record_dataset
from preprocessing.simulation.metaworld_environment import HORIZON
from preprocessing.simulation.metaworld_rlds import dataset_features, rlds_episode
from preprocessing.simulation.metaworld_rollout import MOUNTED_VIEWS, SIMULATOR_HZ, VIEWS, Camera
from preprocessing.simulation.parallel_rollouts import PendingRollout, StartRollout, rollouts
from preprocessing.simulation.task_sets import named_tasks
from preprocessing.store.images import ImageSize
from preprocessing.tfds.writer import RldsWriter, SplitPlan
from rt_models.spec import SimulatedSource

VERSION = "1.0.0"
SAMPLE_TASKS = (
    "faucet-open-v3",
    "faucet-close-v3",
    "drawer-open-v3",
    "drawer-close-v3",
    "button-press-v3",
    "assembly-v3",
)
CAMERAS = ("image", "wrist")
_VAL_SEEDS = 1_000_000
_MOST_EPISODES, _LAST_SEED = 500_000, 400_000  # no seed reaches those of evaluations, FIRST_EVALUATION_SEED and up
_DMC = "dmc:"
_FAILURES_ALLOWED = 20  # of one task in one split


@dataclass(frozen=True, kw_only=True)
class SimulateConfig:
    """What is recorded, and how."""

    tasks: tuple[str, ...] = SAMPLE_TASKS
    """Meta-World tasks, such as faucet-open-v3, or the sets mt6, mt10_visible (ten tasks whose goal is in the picture)
    and mt50, which are all; or tasks of dm_control: dmc:point_mass-easy."""
    episodes: int = 12
    """Episodes of each task in the split train."""
    val_episodes: int = 4
    """Episodes of each task in the split val, under other seeds; 0 leaves the split out."""
    seed: int = 0
    """Seed of the first train episode; the next episodes take the next seeds, the same ones for every task. Those of
    val begin a million later."""
    control_hz: int = 10
    """Recorded steps per second; must divide the simulator's 80."""
    image_size: str | None = None
    """Height x width of frames in pixels; default: 96x96. Of dm_control 84x84, or 64x64 for V-D4RL's other layout."""
    cameras: tuple[str, ...] = ("image",)
    """Cameras to record: image, and wrist, which moves with the hand (Meta-World's gripperPOV). The pictures of image
    do not depend on it."""
    wrist_size: str = "64x64"
    """Height x width in pixels of the wrist camera's frames."""
    decisions: int | None = None
    """Decisions of an episode of dm_control, each held for two control steps; default: a whole episode, 500."""
    view: Literal["side", "front", "top"] = "side"
    """Where the camera stands."""
    jpeg_quality: int = 85
    """1 to 100; chroma is not subsampled."""
    noise: float = 0.0
    """Standard deviation of the noise on the expert's motion, in the simulator's action units of -1 to 1, drawn once a
    recorded step. What is recorded is the expert's own command: a policy learns to come back."""
    workers: int = 0
    """Processes that simulate; 0 simulates in this one. The dataset does not depend on it."""
    episodes_per_shard: int = 18
    """Episodes in a TFRecord file at most."""
    name: str = "metaworld_sample"
    """Name of the dataset, and of its folder."""

    def __post_init__(self) -> None:
        self.camera()
        ImageSize.parse(self.wrist_size, flag="--wrist-size")
        if "image" not in self.roles() or not set(self.roles()) <= {*CAMERAS}:
            raise ValueError(f"--cameras must be image or image wrist, got {' '.join(self.cameras) or 'none'}")
        if not self.name.isidentifier():
            raise ValueError(f"--name must be letters, digits and underscores, as TFDS wants it, got {self.name!r}")
        if self.control_hz < 1 or SIMULATOR_HZ % self.control_hz:
            raise ValueError(f"--control-hz must divide the simulator's {SIMULATOR_HZ} Hz, got {self.control_hz}")
        lows = {"episodes": 1, "val_episodes": 0, "seed": 0, "episodes_per_shard": 1, "jpeg_quality": 1, "workers": 0}
        highs = {"episodes": _MOST_EPISODES, "val_episodes": _MOST_EPISODES, "seed": _LAST_SEED, "jpeg_quality": 100}
        if not 0 <= self.noise <= 1:
            raise ValueError(f"--noise must be from 0 to 1, got {self.noise}")
        for name, low in lows.items():
            value, high = getattr(self, name), highs.get(name, sys.maxsize)
            if not low <= value <= high:
                raise ValueError(f"--{name.replace('_', '-')} must be from {low} to {high}, got {value}")
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"--tasks needs one or more different tasks, got {' '.join(self.tasks) or 'none'}")
        if self.in_dm_control:
            self._require_metaworlds_unset()
            return
        if self.decisions is not None:
            raise ValueError("--decisions belongs to dm_control: leave it out for Meta-World's tasks")
        self.metaworld_tasks()

    @property
    def in_dm_control(self) -> bool:
        return any(task.startswith(_DMC) for task in self.tasks)

    def _require_metaworlds_unset(self) -> None:
        """Raise ValueError for what V-D4RL's layout or dm_control has no place for."""
        others = [task for task in self.tasks if not task.startswith(_DMC)]
        if others:
            raise ValueError(f"--tasks takes tasks of one simulator: {others[0]} is Meta-World's")
        default = {each.name: each.default for each in fields(self)}
        metaworlds = ("val_episodes", "control_hz", "cameras", "wrist_size", "view", "jpeg_quality")
        for name in (*metaworlds, "episodes_per_shard", "name"):
            if getattr(self, name) != default[name]:
                raise ValueError(f"--{name.replace('_', '-')} belongs to Meta-World: leave it out for dmc: tasks")

    def metaworld_tasks(self) -> tuple[str, ...]:
        """Raises ValueError for an unknown one, or one that is named twice."""
        return named_tasks(self.tasks)

    def camera(self) -> Camera:
        """Raises ValueError for an `image_size` that is none."""
        height, width = ImageSize.parse(self.image_size or ("84x84" if self.in_dm_control else "96x96"))
        return Camera(view=VIEWS[self.view], height=height, width=width, jpeg_quality=self.jpeg_quality)

    def simulated(self) -> SimulatedSource:
        """What a policy that acts later must be shown likewise."""
        camera = self.camera()
        return SimulatedSource(
            simulator="metaworld",
            view=self.view,
            height=camera.height,
            width=camera.width,
            jpeg_quality=self.jpeg_quality,
            control_hz=self.control_hz,
            max_steps=HORIZON // (SIMULATOR_HZ // self.control_hz),
        )

    def roles(self) -> tuple[str, ...]:
        """The cameras, also of `image,wrist` in one word."""
        return tuple(dict.fromkeys(role for word in self.cameras for role in word.split(",")))

    def further_cameras(self) -> dict[str, Camera]:
        """By role the cameras beside the main one."""
        height, width = ImageSize.parse(self.wrist_size, flag="--wrist-size")
        wrist = Camera(view=MOUNTED_VIEWS["wrist"], height=height, width=width, jpeg_quality=self.jpeg_quality)
        return {"wrist": wrist} if "wrist" in self.roles() else {}


@dataclass(frozen=True, kw_only=True)
class SimulateArguments:
    """Flags of `rtp simulate`."""

    out: tyro.conf.Positional[str]
    """Local folder that NAME/1.0.0 is written below."""
    config: Annotated[SimulateConfig, tyro.conf.arg(name="")]


@dataclass(frozen=True, kw_only=True)
class SimulationResult:
    """The dataset's folder; episodes, steps and, by task, the experts' failures of each split; size and duration."""

    dataset: str
    episodes: Mapping[str, int]
    steps: Mapping[str, int]
    failed_experts: Mapping[str, Mapping[str, int]]
    bytes: int
    seconds: float


def main(arguments: list[str]) -> JsonSummary:
    """Run the command line and print the result."""
    flags = parse(SimulateArguments, arguments, prog="rtp simulate", description=__doc__ or "")
    output_folder(require_local(flags.out, "OUT"), "OUT")
    out = Path(flags.out)
    if flags.config.in_dm_control:
        return simulate_dmc(out, flags.config)
    result = simulate(out, flags.config)
    num_failed = sum(sum(by_task.values()) for by_task in result.failed_experts.values())
    print(
        f"{result.dataset}\n"
        f"episodes {result.episodes}, steps {result.steps}, {result.bytes / 1e6:.1f} MB "
        f"in {result.seconds} s; experts failed under {num_failed} further seeds"
    )
    print_next("preprocess", result.dataset, "stores", "--split", "train")
    return asdict(result)


def simulate_dmc(out: Path, config: SimulateConfig) -> JsonSummary:
    """Record each task's folder in V-D4RL's layout, and print the next command."""
    camera, datasets = config.camera(), {}
    wanted = [_demonstrations(config, task.removeprefix(_DMC), camera) for task in config.tasks]
    for demonstrations in wanted:
        recorded = record_dataset(out, demonstrations, workers=config.workers)
        about, console = f"simulate {demonstrations.environment.task}", Console(stderr=True)
        returns = list(track(recorded, about, total=config.episodes, console=console))
        folder = str(out / demonstrations.folder)
        datasets[folder] = {"episodes": len(returns), "mean_return": sum(returns) / len(returns)}
        print(f"{folder}\nepisodes {len(returns)}, mean return {datasets[folder]['mean_return']:.1f}")
        print_next("preprocess", folder, "stores")
    return {"datasets": datasets}


def _demonstrations(config: SimulateConfig, task: str, camera: Camera) -> Demonstrations:
    environment = dmc_config(task, height=camera.height, width=camera.width)
    if (camera.height, camera.width) not in ((84, 84), (64, 64)):
        raise ValueError(f"--image-size of V-D4RL's layouts is 84x84 or 64x64, got {config.image_size}")
    return Demonstrations(
        environment=environment,
        episodes=config.episodes,
        first_seed=config.seed,
        decisions=environment.max_steps if config.decisions is None else config.decisions,
        noise=config.noise,
    )


def simulate(out: Path, config: SimulateConfig) -> SimulationResult:
    """Record the dataset `out`/name/1.0.0. Raises FileExistsError if it exists."""
    began, camera = time.monotonic(), config.camera()
    splits = [_Split(config=config, name="train", episodes=config.episodes, first_seed=config.seed)]
    if config.val_episodes:
        first_seed = config.seed + _VAL_SEEDS
        splits.append(_Split(config=config, name="val", episodes=config.val_episodes, first_seed=first_seed))
    writer = RldsWriter(
        name=config.name,
        version=VERSION,
        features=dataset_features(
            height=camera.height,
            width=camera.width,
            further_sizes={role: (each.height, each.width) for role, each in config.further_cameras().items()},
        ),
        description=f"Scripted experts of Meta-World, recorded at {config.control_hz} Hz by `rtp simulate`.",
        citation="Yu et al., Meta-World: A Benchmark and Evaluation for Multi-Task and Meta Reinforcement Learning",
        license="MIT (c) 2019 Meta-World Team: scenes, experts and simulator",
        metadata={"simulation": asdict(config.simulated())},
    )
    folder = writer.write(out, {split.name: split.plan() for split in splits})
    return SimulationResult(
        dataset=str(folder),
        episodes={split.name: split.total for split in splits},
        steps={split.name: split.steps for split in splits},
        failed_experts={split.name: split.failed for split in splits},
        bytes=sum(path.stat().st_size for path in folder.iterdir()),
        seconds=round(time.monotonic() - began, 1),
    )


@dataclass(kw_only=True)
class _Split:
    """The episodes of one split, made while they are written; counts what it made and what it threw away."""

    config: SimulateConfig
    name: str
    episodes: int
    first_seed: int
    steps: int = 0
    failed: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return self.episodes * len(self.config.metaworld_tasks())

    def plan(self) -> SplitPlan:
        num_shards = -(-self.total // self.config.episodes_per_shard)
        return SplitPlan(episodes=self._episodes(), num_episodes=self.total, num_shards=num_shards)

    def _episodes(self) -> Iterator[dict[str, object]]:
        """One episode of each task in turn, so that every shard holds all tasks."""
        with rollouts(self.config.workers) as start:
            tasks = [self._successes(task, start) for task in self.config.metaworld_tasks()]
            turns = (next(task) for _ in range(self.episodes) for task in tasks)
            yield from track(turns, f"simulate {self.name}", total=self.total, console=Console(stderr=True))

    def _successes(self, task: str, start: StartRollout) -> Iterator[dict[str, object]]:
        """Episodes in the order of their seeds; some are simulated ahead, never more than are wanted."""
        config = self.config
        expert = functools.partial(
            start,
            task,
            control_hz=config.control_hz,
            camera=config.camera(),
            further_cameras=config.further_cameras(),
            noise=config.noise,
        )
        started = ((seed, expert(seed=seed)) for seed in itertools.count(self.first_seed))
        ahead, wanted = 1 + config.workers // len(config.metaworld_tasks()), self.episodes
        running = deque[tuple[int, PendingRollout]](itertools.islice(started, min(ahead, wanted)))
        while wanted:
            seed, pending = running.popleft()
            recording = pending()
            wanted -= recording is not None
            # Before the other tasks have their turn: the processes are busy in the meantime.
            running.extend(itertools.islice(started, min(ahead, wanted) - len(running)))
            if recording is not None:
                self.steps += len(recording.state_TS)
                yield rlds_episode(recording, task=task, seed=seed, control_hz=config.control_hz)
                continue
            self.failed[task] = self.failed.get(task, 0) + 1
            if self.failed[task] > _FAILURES_ALLOWED:
                raise ValueError(f"the expert of {task} failed under {self.failed[task]} seeds: leave this task out")

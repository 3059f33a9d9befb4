"""`rtp simulate OUT`: Meta-World's scripted experts -> an RLDS dataset in TFDS layout.

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
import os
import pickle
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from rich.console import Console
from rich.progress import track

from pipelines.arguments import parse
from pipelines.metaworld_rlds import INSTRUCTIONS, Recording, dataset_features, rlds_episode
from pipelines.next_step import print_next
from pipelines.serialization import did_you_mean
from preprocessing.images import encode_jpeg
from preprocessing.rlds_writer import RldsWriter, SplitPlan

SIMULATOR_HZ = 80
VERSION = "1.0.0"
SAMPLE_TASKS = (
    "faucet-open-v3",
    "faucet-close-v3",
    "drawer-open-v3",
    "drawer-close-v3",
    "button-press-v3",
    "assembly-v3",
)
# Same scene and same first picture under the same seed: only the instruction tells the two tasks apart.
SCENE_OF = {"faucet-close-v3": "faucet-open-v3"}

_VAL_SEEDS = 1_000_000
_FAILURES_ALLOWED = 20  # of one task in one split
_OPEN_M = 0.1  # between the fingers of an open gripper


@dataclass(frozen=True, kw_only=True)
class View:
    """A free camera: the point it looks at, and from where. Azimuth 90 looks away from the robot, along y."""

    look_at_m: tuple[float, float, float]
    distance_m: float
    azimuth_deg: float
    elevation_deg: float


VIEWS = {
    "side": View(look_at_m=(0.0, 0.62, 0.12), distance_m=1.0, azimuth_deg=145.0, elevation_deg=-35.0),
    "front": View(look_at_m=(0.0, 0.65, 0.12), distance_m=1.1, azimuth_deg=215.0, elevation_deg=-35.0),
    "top": View(look_at_m=(0.0, 0.6, 0.1), distance_m=1.1, azimuth_deg=270.0, elevation_deg=-65.0),
}


@dataclass(frozen=True, kw_only=True)
class SimulateConfig:
    """What is recorded, and how."""

    tasks: tuple[str, ...] = SAMPLE_TASKS
    """Meta-World tasks, such as faucet-open-v3."""
    episodes: int = 12
    """Episodes of each task in the split train."""
    val_episodes: int = 4
    """Episodes of each task in the split val, under other seeds; 0 leaves the split out."""
    seed: int = 0
    """Seed of the first train episode; the next episodes take the next seeds, the same ones for every task. Those of
    val begin a million later."""
    control_hz: int = 10
    """Recorded steps per second; must divide the simulator's 80."""
    image_size: str = "96x96"
    """Height x width of frames in pixels."""
    view: Literal["side", "front", "top"] = "side"
    """Where the camera stands."""
    jpeg_quality: int = 85
    """1 to 100; chroma is not subsampled."""
    episodes_per_shard: int = 18
    """Episodes in a TFRecord file at most."""
    name: str = "metaworld_sample"
    """Name of the dataset, and of its folder."""

    def __post_init__(self) -> None:
        self.camera()
        if not self.name.isidentifier():
            raise ValueError(f"--name must be letters, digits and underscores, as TFDS wants it, got {self.name!r}")
        if self.control_hz < 1 or SIMULATOR_HZ % self.control_hz:
            raise ValueError(f"--control-hz must divide the simulator's {SIMULATOR_HZ} Hz, got {self.control_hz}")
        lows = {"episodes": 1, "val_episodes": 0, "seed": 0, "episodes_per_shard": 1, "jpeg_quality": 1}
        highs = {"episodes": _VAL_SEEDS // 2, "seed": _VAL_SEEDS, "jpeg_quality": 100}
        for name, low in lows.items():
            value, high = getattr(self, name), highs.get(name, sys.maxsize)
            if not low <= value <= high:
                raise ValueError(f"--{name.replace('_', '-')} must be from {low} to {high}, got {value}")
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"--tasks needs one or more different tasks, got {' '.join(self.tasks) or 'none'}")
        for task in self.tasks:
            if task not in INSTRUCTIONS:
                raise ValueError(f"Meta-World has no task {task!r}{did_you_mean(task, list(INSTRUCTIONS))}")

    def camera(self) -> Camera:
        """Raises ValueError for an `image_size` that is none."""
        sides = self.image_size.lower().split("x")
        if len(sides) != 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
            raise ValueError(f"--image-size must be HEIGHTxWIDTH in pixels such as 96x96, got {self.image_size!r}")
        height, width = map(int, sides)
        return Camera(view=VIEWS[self.view], height=height, width=width, jpeg_quality=self.jpeg_quality)


@dataclass(frozen=True, kw_only=True)
class SimulateArguments:
    """Flags of `rtp simulate`."""

    out: tyro.conf.Positional[Path]
    """Local folder that NAME/1.0.0 is written below."""
    config: Annotated[SimulateConfig, tyro.conf.arg(name="")]


def main(arguments: list[str]) -> dict[str, Any]:
    """Run the command line and print the account."""
    given = parse(SimulateArguments, arguments, prog="rtp simulate", description=__doc__ or "")
    summary = simulate(given.out, given.config)
    failed = sum(sum(counts.values()) for counts in summary["failed_experts"].values())
    print(
        f"{summary['dataset']}\n"
        f"episodes {summary['episodes']}, steps {summary['steps']}, {summary['bytes'] / 1e6:.1f} MB "
        f"in {summary['seconds']} s; experts failed under {failed} further seeds"
    )
    print_next("preprocess", summary["dataset"], "stores", "--split", "train")
    return summary


def simulate(out: Path, config: SimulateConfig) -> dict[str, Any]:
    """Record the dataset `out`/name/1.0.0 and return the closing account. Raises FileExistsError where it exists."""
    began, camera = time.monotonic(), config.camera()
    splits = [_Split(config=config, name="train", episodes=config.episodes, first_seed=config.seed)]
    if config.val_episodes:
        first_seed = config.seed + _VAL_SEEDS
        splits.append(_Split(config=config, name="val", episodes=config.val_episodes, first_seed=first_seed))
    writer = RldsWriter(
        name=config.name,
        version=VERSION,
        features=dataset_features(height=camera.height, width=camera.width),
        description=f"Scripted experts of Meta-World, recorded at {config.control_hz} Hz by `rtp simulate`.",
        citation="Yu et al., Meta-World: A Benchmark and Evaluation for Multi-Task and Meta Reinforcement Learning",
        license="MIT (c) 2019 Meta-World Team: scenes, experts and simulator",
    )
    folder = writer.write(out, {split.name: split.plan() for split in splits})
    return {
        "dataset": str(folder),
        "episodes": {split.name: split.total for split in splits},
        "steps": {split.name: split.steps for split in splits},
        "failed_experts": {split.name: split.failed for split in splits},
        "bytes": sum(path.stat().st_size for path in folder.iterdir()),
        "seconds": round(time.monotonic() - began, 1),
    }


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
        return self.episodes * len(self.config.tasks)

    def plan(self) -> SplitPlan:
        num_shards = -(-self.total // self.config.episodes_per_shard)
        return SplitPlan(episodes=self._episodes(), num_episodes=self.total, num_shards=num_shards)

    def _episodes(self) -> Iterator[dict[str, Any]]:
        """One episode of each task in turn, so that every shard holds all tasks."""
        tasks = [self._successes(task) for task in self.config.tasks]
        turns = (next(task) for _ in range(self.episodes) for task in tasks)
        console = Console(stderr=True)
        for episode in track(turns, f"simulate {self.name}", total=self.total, console=console):
            self.steps += len(episode["steps"])
            yield episode

    def _successes(self, task: str) -> Iterator[dict[str, Any]]:
        hz, camera = self.config.control_hz, self.config.camera()
        for seed in itertools.count(self.first_seed):
            recording = roll_out(task, seed=seed, control_hz=hz, camera=camera)
            if recording is not None:
                yield rlds_episode(recording, task=task, seed=seed, control_hz=hz)
                continue
            self.failed[task] = self.failed.get(task, 0) + 1
            if self.failed[task] > _FAILURES_ALLOWED:
                raise ValueError(f"the expert of {task} failed under {self.failed[task]} seeds: leave this task out")


# --- One episode ---


def roll_out(task: str, *, seed: int, control_hz: int, camera: Camera | None = None) -> Recording | None:
    """Let the expert of `task` act until it succeeds; None where it has not at the end of the task's horizon.

    The expert sees the state at every simulator step, not only the recorded ones. Without a camera there are no frames.
    """
    with closing(_Tape(task, seed, camera)) as tape:
        num_steps = SIMULATOR_HZ // control_hz
        while not tape.success:
            if tape.env.curr_path_length + 2 * num_steps > tape.env.max_path_length:
                return None
            tape.act(tape.expert.get_action, num_steps)
        still = np.array([0.0, 0.0, 0.0, tape.gripper_command])
        tape.act(lambda _: still, num_steps)
        return Recording(
            frames_T=tape.frames_T,
            state_TS=np.array(tape.state_TS, np.float32),
            action_TA=np.array([*tape.action_TA, np.zeros(4)]),
            metres_per_action=num_steps * tape.env.action_scale,
        )


class _Tape:
    """One simulator, and what is observed and done in it."""

    def __init__(self, task: str, seed: int, camera: Camera | None) -> None:
        self.env, self.expert, self._observation = _make(task, seed)
        self._eye = camera.build(self.env.model) if camera else None
        self.frames_T: list[bytes] = []
        self.state_TS: list[np.ndarray] = []
        self.action_TA: list[np.ndarray] = []
        self.success, self.gripper_command = False, 0.0
        self._observe()

    def act(self, choose: Callable[[np.ndarray], np.ndarray], num_steps: int) -> None:
        """One recorded step: `num_steps` of the simulator, then an observation."""
        actions = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # experts ask for more than the simulator's limits, which clips
            for _ in range(num_steps):
                actions.append(np.clip(choose(self._observation), -1.0, 1.0))
                self._observation, _, _, _, info = self.env.step(actions[-1])
                self.success = self.success or info["success"] > 0
        self.gripper_command = float(actions[-1][3])
        self.action_TA.append(np.stack(actions).astype(np.float64).mean(axis=0))
        self._observe()

    def _observe(self) -> None:
        data = self.env.data
        fingers_m = float(np.linalg.norm(data.body("rightclaw").xpos - data.body("leftclaw").xpos))
        self.state_TS.append(np.array([*data.body("hand").xpos, min(fingers_m / _OPEN_M, 1.0)]))
        if self._eye:
            self.frames_T.append(self._eye.jpeg(data))

    def close(self) -> None:
        if self._eye:
            self._eye.close()
        self.env.close()


def _make(task: str, seed: int) -> tuple[Any, Any, np.ndarray]:
    """A simulator whose scene is drawn from `seed`, the task's expert, which sees the goal, and its observation."""
    mujoco = load_simulator()
    from metaworld import Task, env_dict
    from metaworld.policies import ENV_POLICY_MAP

    simulators: Any = env_dict.ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE
    env = simulators[f"{task}-goal-observable"](seed=seed)
    if task in SCENE_OF:
        drawn = simulators[f"{SCENE_OF[task]}-goal-observable"](seed=seed).obj_init_pos
        kind = env_dict.ALL_V3_ENVIRONMENTS[task]
        start = {"env_cls": kind, "rand_vec": drawn, "partially_observable": False}
        env.set_task(Task(env_name=task, data=pickle.dumps(start)))
    observation, _ = env.reset()
    mujoco.mj_forward(env.model, env.data)  # some tasks move a body last and would draw it where it was
    return env, ENV_POLICY_MAP[task](), observation


def load_simulator() -> Any:
    """Meta-World's MuJoCo, set to draw without a screen. Raises ImportError with the remedy where it does not load."""
    os.environ["MUJOCO_GL"] = gl_backend() or "disable"  # MuJoCo reads it once, when it is imported
    try:
        import metaworld  # noqa: F401
        import mujoco
    except ImportError as error:
        raise ImportError(
            f"simulation needs Meta-World, which does not load here ({error}): pip install 'rt-pipelines[sim]'"
        ) from error
    return mujoco


# --- Pictures ---


@dataclass(frozen=True, kw_only=True)
class Camera:
    """What takes the pictures; sizes in pixels."""

    view: View
    height: int
    width: int
    jpeg_quality: int

    def build(self, model: Any) -> _Eye:
        """A renderer for one simulator. Raises OSError where nothing can draw."""
        if gl_backend() is None:
            raise OSError(
                "no OpenGL draws without a screen here (MUJOCO_GL, else egl and osmesa, were tried): "
                "install libosmesa6, or libegl1 with a GPU driver"
            )
        return _Eye(model, self)


class _Eye:
    """One simulator's off-screen renderer."""

    def __init__(self, model: Any, camera: Camera) -> None:
        mujoco = load_simulator()
        model.vis.global_.offheight, model.vis.global_.offwidth = camera.height, camera.width
        self._quality = camera.jpeg_quality
        self._renderer = mujoco.Renderer(model, camera.height, camera.width)
        # Without shadows a frame takes a quarter of the time in software, and fewer bytes.
        self._renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        self._options = mujoco.MjvOption()
        self._options.sitegroup[:] = 0  # sites mark goals, which only the expert may see
        self._camera = mujoco.MjvCamera()
        self._camera.lookat[:] = camera.view.look_at_m
        self._camera.distance = camera.view.distance_m
        self._camera.azimuth, self._camera.elevation = camera.view.azimuth_deg, camera.view.elevation_deg

    def jpeg(self, data: Any) -> bytes:
        """The present state as an upright RGB picture."""
        self._renderer.update_scene(data, self._camera, self._options)
        return encode_jpeg(self._renderer.render(), quality=self._quality)

    def close(self) -> None:
        self._renderer.close()


@functools.cache
def gl_backend() -> str | None:
    """What draws without a screen here: MUJOCO_GL where it is set, else egl, else osmesa; None where it fails.

    Each is tried in a process of its own, because a failed attempt leaves PyOpenGL bound to its platform.
    """
    given = os.environ.get("MUJOCO_GL")
    for backend in [given] if given else ["egl", "osmesa"]:
        command = [sys.executable, "-c", "import mujoco; mujoco.GLContext(8, 8).make_current()"]
        tried = subprocess.run(command, env={**os.environ, "MUJOCO_GL": backend}, capture_output=True, check=False)
        if tried.returncode == 0:
            return backend
    return None

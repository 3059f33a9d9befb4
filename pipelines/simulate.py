"""`rtp simulate OUT`: Meta-World's scripted experts -> an RLDS dataset in TFDS layout.

The simulator and its experts run at 80 Hz, where an action in [-1, 1] moves the commanded hand position by 0.01 m times
the action (`SawyerXYZEnv.set_xyz_action`, metaworld 3.1). Recorded is every k-th observation; the action of step t is
what was commanded between the observations t and t + 1: the sum of the k displacements, the mean of the k gripper
commands. Each episode is an own simulator with an own seed, so that it does not depend on those before it, and tasks that
share a scene start from the same picture under the same seed.

An episode ends on the simulator's success signal: one step of `terminate_episode`, with the hand at rest, then the last
step with reward 1. Episodes in which an expert fails are counted and replaced by the next seed's.

Not for tasks whose goal is a free point in space (reach, push, pick-place): their marker is not drawn.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import simplejpeg
import tyro
from rich.console import Console
from rich.progress import track
from tensorflow_datasets.core import features as tfds_features

from pipelines.arguments import parse
from pipelines.serialization import did_you_mean
from preprocessing.rlds_writer import RldsWriter, SplitPlan

SIMULATOR_HZ = 80
VERSION = "1.0.0"
SAMPLE_TASKS = ("faucet-open-v3", "faucet-close-v3", "drawer-open-v3", "drawer-close-v3")
_VAL_SEED_OFFSET = 1_000_000
_FAILURES_ALLOWED = 20

INSTRUCTIONS = {
    "assembly-v3": "put the ring on the peg",
    "basketball-v3": "put the ball into the hoop",
    "bin-picking-v3": "move the block to the other bin",
    "box-close-v3": "put the lid on the box",
    "button-press-topdown-v3": "press the button from above",
    "button-press-topdown-wall-v3": "press the button behind the wall from above",
    "button-press-v3": "press the button",
    "button-press-wall-v3": "press the button behind the wall",
    "coffee-button-v3": "press the button of the coffee machine",
    "coffee-pull-v3": "pull the mug away from the coffee machine",
    "coffee-push-v3": "push the mug under the coffee machine",
    "dial-turn-v3": "turn the dial",
    "disassemble-v3": "take the ring off the peg",
    "door-close-v3": "close the door",
    "door-lock-v3": "lock the door",
    "door-open-v3": "open the door",
    "door-unlock-v3": "unlock the door",
    "drawer-close-v3": "close the drawer",
    "drawer-open-v3": "open the drawer",
    "faucet-close-v3": "turn the faucet off",
    "faucet-open-v3": "turn the faucet on",
    "hammer-v3": "hammer the nail in",
    "hand-insert-v3": "put the hand into the hole",
    "handle-press-side-v3": "press the handle down from the side",
    "handle-press-v3": "press the handle down",
    "handle-pull-side-v3": "pull the handle up from the side",
    "handle-pull-v3": "pull the handle up",
    "lever-pull-v3": "pull the lever up",
    "peg-insert-side-v3": "put the peg into the hole",
    "peg-unplug-side-v3": "pull the peg out",
    "pick-out-of-hole-v3": "lift the puck out of the hole",
    "pick-place-v3": "pick up the puck and bring it to the goal",
    "pick-place-wall-v3": "pick up the puck and bring it over the wall",
    "plate-slide-back-side-v3": "pull the plate out of the cabinet sideways",
    "plate-slide-back-v3": "pull the plate out of the cabinet",
    "plate-slide-side-v3": "slide the plate into the cabinet sideways",
    "plate-slide-v3": "slide the plate into the cabinet",
    "push-back-v3": "pull the puck back",
    "push-v3": "push the puck to the goal",
    "push-wall-v3": "push the puck around the wall",
    "reach-v3": "reach the goal",
    "reach-wall-v3": "reach the goal behind the wall",
    "shelf-place-v3": "put the block on the shelf",
    "soccer-v3": "push the ball into the goal",
    "stick-pull-v3": "pull the thermos with the stick",
    "stick-push-v3": "push the thermos with the stick",
    "sweep-into-v3": "sweep the block into the hole",
    "sweep-v3": "sweep the block off the table",
    "window-close-v3": "close the window",
    "window-open-v3": "open the window",
}


@dataclass(frozen=True, kw_only=True)
class View:
    """A free camera: a point on the table it looks at, and from where. Azimuth 90 looks away from the robot."""

    look_at_m: tuple[float, float, float]
    distance_m: float
    azimuth_deg: float
    elevation_deg: float


VIEWS = {
    "side": View(look_at_m=(0.0, 0.62, 0.12), distance_m=1.0, azimuth_deg=145.0, elevation_deg=-35.0),
    "front": View(look_at_m=(0.0, 0.65, 0.12), distance_m=1.1, azimuth_deg=215.0, elevation_deg=-35.0),
    "top": View(look_at_m=(0.0, 0.65, 0.0), distance_m=1.2, azimuth_deg=90.0, elevation_deg=-89.0),
}


@dataclass(frozen=True, kw_only=True)
class SimulateConfig:
    """What is recorded, and how."""

    tasks: tuple[str, ...] = SAMPLE_TASKS
    """Meta-World tasks, such as faucet-open-v3."""
    episodes: int = 12
    """Episodes of each task in the split train."""
    val_episodes: int = 4
    """Episodes of each task in the split val; its seeds are not among those of train."""
    seed: int = 0
    """Seed of the first train episode; the next episodes take the next seeds, the same ones for every task."""
    control_hz: int = 10
    """Recorded steps per second; must divide the simulator's 80."""
    image_size: str = "96x96"
    """Height x width of frames in pixels."""
    view: Literal["side", "front", "top"] = "side"
    """Where the camera stands."""
    jpeg_quality: int = 90
    """1 to 100, without chroma subsampling."""
    episodes_per_shard: int = 12
    """Episodes in a TFRecord file at most."""
    name: str = "metaworld_sample"
    """Name of the dataset, and of its folder."""

    def __post_init__(self) -> None:
        self.frame_size()
        if self.control_hz < 1 or SIMULATOR_HZ % self.control_hz:
            raise ValueError(f"--control-hz must divide the simulator's {SIMULATOR_HZ} Hz, got {self.control_hz}")
        if not 0 <= self.seed < _VAL_SEED_OFFSET:
            raise ValueError(f"--seed must be at least 0 and below {_VAL_SEED_OFFSET}, got {self.seed}")
        for flag, least in (("episodes", 1), ("val_episodes", 0), ("episodes_per_shard", 1), ("jpeg_quality", 1)):
            if getattr(self, flag) < least:
                raise ValueError(f"--{flag.replace('_', '-')} must be at least {least}, got {getattr(self, flag)}")
        for task in self.tasks:
            if task not in INSTRUCTIONS:
                raise ValueError(f"Meta-World has no task {task!r}{did_you_mean(task, list(INSTRUCTIONS))}")
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"--tasks needs one or more different tasks, got {self.tasks}")

    def frame_size(self) -> tuple[int, int]:
        """(height, width) in pixels. Raises ValueError for text that is no size."""
        sides = self.image_size.lower().split("x")
        if len(sides) != 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
            raise ValueError(f"--image-size must be HEIGHTxWIDTH in pixels such as 96x96, got {self.image_size!r}")
        return int(sides[0]), int(sides[1])


def simulate(out: Path, config: SimulateConfig) -> dict[str, Any]:
    """Record the dataset below `out` and return the closing account."""
    began = time.monotonic()
    camera = Camera(size=config.frame_size(), view=VIEWS[config.view], jpeg_quality=config.jpeg_quality)
    require_rendering()
    train = Recorder(config=config, camera=camera, episodes=config.episodes, first_seed=config.seed)
    val = Recorder(
        config=config, camera=camera, episodes=config.val_episodes, first_seed=config.seed + _VAL_SEED_OFFSET
    )
    recorders = {"train": train, "val": val} if config.val_episodes else {"train": train}
    writer = RldsWriter(
        name=config.name,
        version=VERSION,
        features=dataset_features(config),
        description=_description(config),
        license="MIT (pictures and motions come from Meta-World, (c) 2019 Meta-World Team)",
    )
    folder = writer.write(out, {split: recorder.plan(split) for split, recorder in recorders.items()})
    return {
        "dataset": str(folder),
        "episodes": {split: len(config.tasks) * recorder.episodes for split, recorder in recorders.items()},
        "steps": {split: recorder.steps for split, recorder in recorders.items()},
        "failed_experts": {split: recorder.failed for split, recorder in recorders.items()},
        "bytes": sum(path.stat().st_size for path in folder.iterdir()),
        "seconds": round(time.monotonic() - began, 1),
    }


# --- One episode ---


@dataclass(frozen=True, kw_only=True)
class Recording:
    """One success: T observations; the action at the last one is zero, at the one before it the end is declared.

    `state_TS` is hand x, y, z in metres and the opening of the gripper, 0 closed to 1 open. `action_TA` is the mean over
    a step of the simulator's own action, x, y, z and gripper in [-1, 1].
    """

    frames_T: list[bytes]
    state_TS: np.ndarray
    action_TA: np.ndarray
    metres_per_action: float


def roll_out(task: str, *, seed: int, control_hz: int, camera: Camera | None) -> Recording | None:
    """Let the expert of `task` act until it succeeds; None where it has not after the task's horizon.

    The expert sees the simulator's state at every simulator step. Without a camera there are no frames.
    """
    env, expert = _make(task, seed)
    eye = camera.build(env) if camera else None
    hold = SIMULATOR_HZ // control_hz
    frames_T, state_TS, action_TA, success = [], [], [], False

    def observe(observation: np.ndarray) -> None:
        state_TS.append(observation[:4])
        if eye:
            frames_T.append(eye.jpeg())

    def step(choose: Any) -> None:
        """Act for one recorded step."""
        nonlocal observation, success
        actions_KA = []
        for _ in range(hold):
            actions_KA.append(np.clip(choose(observation), -1, 1))
            observation, _, _, _, info = env.step(actions_KA[-1])
            success = success or info["success"] > 0
        action_TA.append(np.mean(actions_KA, axis=0))

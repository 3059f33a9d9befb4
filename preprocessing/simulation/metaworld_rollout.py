"""Meta-World's scripted experts at work: one episode recorded, with what its camera saw.

The simulator and its experts run at 80 Hz, where an action in [-1, 1] moves the commanded hand position by 0.01 m times
the action (`SawyerXYZEnv.set_xyz_action`, metaworld 3.1). Recorded is every k-th observation; the action of step t is
what was commanded between the observations t and t + 1: the sum of the k displacements, the mean of the k gripper
commands.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np

from preprocessing.simulation.gl_backend import choose_gl_backend, require_gl_backend
from preprocessing.simulation.metaworld_rlds import Recording
from preprocessing.store.images import encode_jpeg

SIMULATOR_HZ = 80
# Same scene and same first picture under the same seed: only the instruction tells the two tasks apart.
SCENE_OF = {"faucet-close-v3": "faucet-open-v3"}
_FIELD_OF_VIEW_DEG = 45.0  # from top to bottom, of MuJoCo's free camera
_OPEN_M = 0.1  # between the fingers of an open gripper


@dataclass(frozen=True, kw_only=True)
class View:
    """A free camera: the point it looks at, and from where. Azimuth 90 looks away from the robot, along y."""

    look_at_m: tuple[float, float, float]
    distance_m: float
    azimuth_deg: float
    elevation_deg: float

    def place_of(self, point_m: np.ndarray, *, height: int, width: int) -> tuple[float, float]:
        """Fractions (x, y) of a picture of this size at which a point of the scene lies, at the border where it is out
        of view."""
        azimuth, elevation = np.deg2rad(self.azimuth_deg), np.deg2rad(self.elevation_deg)
        level = np.cos(elevation)
        forward = np.array([level * np.cos(azimuth), level * np.sin(azimuth), np.sin(elevation)])
        right = np.cross(forward, (0, 0, 1)) / level
        seen_m = np.asarray(point_m) - (np.array(self.look_at_m) - self.distance_m * forward)
        focal = height / 2 / np.tan(np.deg2rad(_FIELD_OF_VIEW_DEG) / 2)
        across, down, depth = seen_m @ right, -seen_m @ np.cross(right, forward), seen_m @ forward
        x, y = (0.5 + focal * side / depth / length for side, length in ((across, width), (down, height)))
        return float(np.clip(x, 0, 1)), float(np.clip(y, 0, 1))


@dataclass(frozen=True, kw_only=True)
class MountedView:
    """A camera that the scene itself has, by its name there."""

    name: str


MOUNTED_VIEWS = {"wrist": MountedView(name="gripperPOV")}  # moves with the hand and looks between its fingers
VIEWS = {
    "side": View(look_at_m=(0.0, 0.62, 0.12), distance_m=1.0, azimuth_deg=145.0, elevation_deg=-35.0),
    "front": View(look_at_m=(0.0, 0.65, 0.12), distance_m=1.1, azimuth_deg=215.0, elevation_deg=-35.0),
    "top": View(look_at_m=(0.0, 0.6, 0.1), distance_m=1.1, azimuth_deg=270.0, elevation_deg=-65.0),
}


def roll_out(
    task: str,
    *,
    seed: int,
    control_hz: int,
    camera: Camera | None = None,
    further_cameras: Mapping[str, Camera] | None = None,
    noise: float = 0.0,
) -> Recording | None:
    """Let the expert of `task` act until it succeeds; None if it has not at the end of the task's horizon.

    The expert sees the state at every simulator step, not only the recorded ones. Without a camera there are no frames.
    `further_cameras`, by role, see the same steps as `camera`, whose pictures do not change for it.
    `noise` is the standard deviation of what is added to the motion of each recorded step, in the simulator's action
    units; recorded is what the expert commanded, so that a policy learns to come back (DART, arXiv 1703.09327).
    """
    random = np.random.default_rng([seed, *task.encode()])
    with closing(Rollout(task, seed, camera, further_cameras)) as rollout:
        num_steps = SIMULATOR_HZ // control_hz
        while not rollout.success:
            if rollout.env.curr_path_length + 2 * num_steps > rollout.env.max_path_length:
                return None
            pushed = np.append(random.normal(scale=noise, size=3), 0.0) if noise else None
            rollout.act(rollout.expert.get_action, num_steps, pushed)
        still = np.array([0.0, 0.0, 0.0, rollout.gripper_command])
        rollout.act(lambda _: still, num_steps)
        return Recording(
            frames_T=rollout.frames_T,
            further_frames=rollout.further_frames,
            state_TS=np.array(rollout.state_TS, np.float32),
            action_TA=np.array([*rollout.action_TA, np.zeros(4)]),
            metres_per_action=num_steps * rollout.env.action_scale,
        )


class Rollout:
    """One simulator, and what is observed and done in it."""

    def __init__(
        self, task: str, seed: int, camera: Camera | None, further_cameras: Mapping[str, Camera] | None = None
    ) -> None:
        self.env, self.expert, self._observation = _make(task, seed)
        self._camera = camera
        self._renderer = camera.build(self.env.model) if camera else None
        further = further_cameras or {}
        self._further = {role: each.build(self.env.model) for role, each in further.items()}
        self.frames_T: list[bytes] = []
        self.further_frames: dict[str, list[bytes]] = {role: [] for role in further}
        self.state_TS: list[np.ndarray] = []
        self.action_TA: list[np.ndarray] = []
        self.success = False
        self.gripper_command = 0.0
        self._observe()

    def act(self, choose: Callable[[np.ndarray], np.ndarray], num_steps: int, pushed: np.ndarray | None = None) -> None:
        """One recorded step: `num_steps` of the simulator, then an observation. `pushed` is added to what is done, and
        not to what is recorded."""
        actions = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # experts ask for more than the simulator's limits, which clips
            for _ in range(num_steps):
                actions.append(np.clip(choose(self._observation), -1.0, 1.0))
                done = actions[-1] if pushed is None else np.clip(actions[-1] + pushed, -1.0, 1.0)
                self._observation, _, _, _, info = self.env.step(done)
                self.success = self.success or info["success"] > 0
        self.gripper_command = float(actions[-1][3])
        self.action_TA.append(np.stack(actions).astype(np.float64).mean(axis=0))
        self._observe()

    def _observe(self) -> None:
        data = self.env.data
        fingers_m = float(np.linalg.norm(data.body("rightclaw").xpos - data.body("leftclaw").xpos))
        self.state_TS.append(np.array([*data.body("hand").xpos, min(fingers_m / _OPEN_M, 1.0)]))
        if self._renderer:
            self.frames_T.append(self._renderer.jpeg(data))
        for role, renderer in self._further.items():
            self.further_frames[role].append(renderer.jpeg(data))

    def object_place(self) -> tuple[float, float] | None:
        """Where the task's object is in the camera's picture (`View.place_of`); None without a free camera."""
        camera = self._camera
        if camera is None or not isinstance(camera.view, View):
            return None
        return camera.view.place_of(self.env._get_pos_objects()[:3], height=camera.height, width=camera.width)

    def close(self) -> None:
        for renderer in (self._renderer, *self._further.values()):
            if renderer:
                renderer.close()
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
    """Meta-World's MuJoCo, set to draw without a screen. Raises ImportError with the remedy if it does not load."""
    choose_gl_backend()
    try:
        import metaworld  # noqa: F401
        import mujoco
    except ImportError as error:
        raise ImportError(
            f"simulation needs Meta-World, which does not load here ({error}): pip install 'rt-pipelines[sim]'"
        ) from error
    return mujoco


@dataclass(frozen=True, kw_only=True)
class Camera:
    """What takes the pictures; sizes in pixels."""

    view: View | MountedView
    height: int
    width: int
    jpeg_quality: int

    def build(self, model: Any) -> Renderer:
        """A renderer for one simulator. Raises OSError if nothing can draw."""
        require_gl_backend()
        return Renderer(model, self)


class Renderer:
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
        if isinstance(camera.view, MountedView):
            self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
            self._camera.fixedcamid = model.camera(camera.view.name).id
            return
        self._camera.lookat[:] = camera.view.look_at_m
        self._camera.distance = camera.view.distance_m
        self._camera.azimuth, self._camera.elevation = camera.view.azimuth_deg, camera.view.elevation_deg

    def jpeg(self, data: Any) -> bytes:
        """The present state as an upright RGB picture."""
        self._renderer.update_scene(data, self._camera, self._options)
        return encode_jpeg(self._renderer.render(), quality=self._quality)

    def close(self) -> None:
        self._renderer.close()

"""From `metaworld:faucet-open,door-lock` or `dmc:walker-walk` to environments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from preprocessing.simulation.dmc_environment import dmc_config
from preprocessing.simulation.environment import EnvironmentConfig
from preprocessing.simulation.metaworld_environment import MetaWorldConfig
from preprocessing.simulation.metaworld_rlds import INSTRUCTIONS
from preprocessing.simulation.metaworld_rollout import SCENE_OF, Camera
from preprocessing.simulation.task_sets import named_tasks

SIMULATORS = ("metaworld", "dmc")


def choose_environments(
    env: str, *, camera: Camera, control_hz: float, further_cameras: Mapping[str, Camera] | None = None
) -> Sequence[EnvironmentConfig]:
    """The environments of SIMULATOR:TASK,TASK, a task of Meta-World's being also a set of them such as all. Raises
    ValueError for an unknown one, and for cameras that the simulator lacks.

    dm_control's have a camera and a picture format of their own: of `camera` they take the size. `further_cameras`, by
    role, are beside it.
    """
    simulator, _, tasks = env.partition(":")
    if simulator not in SIMULATORS:
        raise ValueError(f"there is no simulator {simulator!r}: --env takes {' or '.join(SIMULATORS)}:TASK,TASK")
    given = [name.strip() for name in tasks.split(",")]
    if len(set(given)) < len(given):
        raise ValueError(f"--env {env} names a task twice")
    further = further_cameras or {}
    if simulator == "dmc" and further:
        raise ValueError(
            f"the policy reads camera {next(iter(further))}, and dm_control's tasks have one camera, image"
        )
    if simulator == "dmc":
        size = {"height": camera.height, "width": camera.width}
        return [dmc_config(name, **size, control_hz=control_hz) for name in given]
    if control_hz != int(control_hz):
        raise ValueError(f"Meta-World acts at a whole number of steps per second, the policy at {control_hz}")
    rate_hz = int(control_hz)
    return [
        MetaWorldConfig(task=task, camera=camera, control_hz=rate_hz, further_cameras=further)
        for task in named_tasks(given)
    ]


def other_instructions(tasks: list[str]) -> dict[str, str]:
    """By task the instruction of another one: of the task in the same scene if it is among them, else of the next.

    Raises ValueError for a single task.
    """
    if len(tasks) < 2:
        raise ValueError("swapped instructions need two tasks or more: name them in --env")
    partner = {**SCENE_OF, **{second: first for first, second in SCENE_OF.items()}}
    after = dict(zip(tasks, [*tasks[1:], tasks[0]], strict=True))
    return {task: INSTRUCTIONS[partner[task] if partner.get(task) in tasks else after[task]] for task in tasks}

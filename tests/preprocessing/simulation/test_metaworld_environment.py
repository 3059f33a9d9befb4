"""Meta-World moved by actions as a policy answers them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing

import numpy as np
import pytest

from preprocessing.openx.metaworld_sample import SPEC as METAWORLD
from preprocessing.simulation.environment import Observation, state_of
from preprocessing.simulation.gl_backend import gl_backend
from preprocessing.simulation.metaworld_environment import MetaWorldConfig, MetaWorldEnvironment
from preprocessing.simulation.metaworld_rollout import MOUNTED_VIEWS, VIEWS, Camera, roll_out
from preprocessing.store.images import decode_image, image_size

CAMERA = Camera(view=VIEWS["side"], height=32, width=40, jpeg_quality=85)
STILL = {
    "world_vector_x": 0.0,
    "world_vector_y": 0.0,
    "world_vector_z": 0.0,
    "gripper_closedness_action": -1.0,
    "rotation_delta_x": 0.7,
}


@pytest.fixture(scope="module")
def environment() -> Iterator[MetaWorldEnvironment]:
    if gl_backend() is None:
        pytest.skip("no OpenGL draws without a screen here")
    environment = MetaWorldConfig(task="button-press-v3", camera=CAMERA, control_hz=10).build()
    yield environment
    environment.close()


@pytest.mark.parametrize("view", VIEWS)
def test_the_place_of_a_point_is_where_the_camera_shows_it(environment: MetaWorldEnvironment, view: str) -> None:
    environment.reset(3)
    assert environment._rollout is not None
    env = environment._rollout.env
    bodies, point_m = env.model.geom_bodyid, env._get_pos_objects()[:3]
    button = np.flatnonzero(bodies == env.model.body("button").id)
    camera = Camera(view=VIEWS[view], height=96, width=128, jpeg_quality=95)
    with closing(camera.build(env.model)) as renderer:
        pictures = []
        for colour in ((1.0, 0.0, 0.0, 1.0), (0.0, 1.0, 0.0, 1.0)):
            env.model.geom_rgba[button] = colour
            env.model.geom_matid[button] = -1
            pictures.append(decode_image(renderer.jpeg(env.data)).astype(int))
    rows, columns = np.nonzero(np.abs(pictures[0] - pictures[1]).max(axis=-1) > 60)
    x, y = VIEWS[view].place_of(point_m, height=96, width=128)
    assert abs(x * 128 - columns.mean()) < 8 and abs(y * 96 - rows.mean()) < 8, (
        x * 128,
        columns.mean(),
        y * 96,
        rows.mean(),
    )


def as_answered(action_4: np.ndarray, metres_per_action: float) -> Mapping[str, float]:
    """A recorded action in the units of the dataset."""
    x, y, z = action_4[:3] * metres_per_action
    names = ("world_vector_x", "world_vector_y", "world_vector_z", "gripper_closedness_action")
    return dict(zip(names, (x, y, z, action_4[3]), strict=True))


def test_the_experts_recorded_actions_solve_the_task_they_were_recorded_in(environment: MetaWorldEnvironment) -> None:
    recording = roll_out("button-press-v3", seed=5, control_hz=10, camera=CAMERA)
    assert recording is not None
    first = environment.reset(5)
    assert first.frame == recording.frames_T[0] and not first.success
    np.testing.assert_array_equal(first.state_S, recording.state_TS[0])
    seen, steps = first, 0
    for action in recording.action_TA:
        seen = environment.step(as_answered(action, recording.metres_per_action))
        steps += 1
        if seen.is_over:
            break
    assert seen.success
    assert environment.expert_episode(5).steps == len(recording.action_TA) - 2
    assert abs(steps - (len(recording.action_TA) - 2)) <= 2


def test_who_holds_still_runs_into_the_step_limit(environment: MetaWorldEnvironment) -> None:
    seen, steps = environment.reset(1), 0
    while not seen.is_over:
        seen = environment.step(STILL)
        steps += 1
    assert steps == 62 and not seen.success


def test_a_displacement_is_in_metres(environment: MetaWorldEnvironment) -> None:
    before = environment.reset(1).state_S
    seen: Observation | None = None
    for _ in range(4):
        seen = environment.step({**STILL, "world_vector_x": 0.02})
    assert seen is not None
    moved = seen.state_S - before
    assert 0.05 < moved[0] < 0.09 and abs(moved[1]) < 0.02  # the hand follows its command with some delay


def test_another_camera_sees_the_same_episode_and_the_state_has_names(environment: MetaWorldEnvironment) -> None:
    wrist = Camera(view=MOUNTED_VIEWS["wrist"], height=64, width=64, jpeg_quality=85)
    config = MetaWorldConfig(task="button-press-v3", camera=CAMERA, control_hz=10, further_cameras={"wrist": wrist})
    with closing(config.build()) as other:
        alone, both = ([env.reset(5), env.step({**STILL, "world_vector_x": 0.02})] for env in (environment, other))
    assert [seen.frame for seen in both] == [seen.frame for seen in alone]
    assert {image_size(seen.further_frames["wrist"]) for seen in both} == {(64, 64)} and not alone[0].further_frames
    assert both[0].further_frames != both[1].further_frames
    assert state_of(both[0]) == dict(zip(METAWORLD.proprio_names, both[0].state_S.tolist(), strict=True))
    assert config.without_camera().further_cameras == {}


def test_the_same_seed_is_the_same_episode_whatever_came_before(environment: MetaWorldEnvironment) -> None:
    alone = environment.reset(7)
    environment.reset(8)
    environment.step(STILL)
    again = environment.reset(7)
    assert again.frame == alone.frame


def test_without_a_camera_the_episode_is_the_same(environment: MetaWorldEnvironment) -> None:
    blind = MetaWorldConfig(task="button-press-v3", camera=CAMERA, control_hz=10).without_camera().build()
    states = []
    for each in (environment, blind):
        states.append(
            [each.reset(7).state_S] + [each.step({**STILL, "world_vector_x": 0.02}).state_S for _ in range(5)]
        )
    np.testing.assert_array_equal(*states)
    assert blind.reset(7).frame == b""
    blind.close()


def test_an_action_of_another_robot_is_refused(environment: MetaWorldEnvironment) -> None:
    environment.reset(1)
    with pytest.raises(ValueError, match="the action has no gripper_closedness_action"):
        environment.step({name: value for name, value in STILL.items() if not name.startswith("gripper")})


def test_a_control_rate_that_the_simulator_cannot_keep_is_refused() -> None:
    with pytest.raises(ValueError, match="80 Hz must be a multiple of the control rate 3"):
        MetaWorldConfig(task="button-press-v3", camera=CAMERA, control_hz=3)

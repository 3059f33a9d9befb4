"""dm_control moved by actions as a policy answers them, and what a controller records in V-D4RL's layouts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from preprocessing.episode_source import open_source
from preprocessing.rlds import Episode
from preprocessing.simulation.choice import choose_environments
from preprocessing.simulation.dmc_environment import DmcConfig, DmcEnvironment, dmc_config, load_suite, to_the_target
from preprocessing.simulation.dmc_recording import Demonstrations, record, record_dataset
from preprocessing.simulation.environment import state_of
from preprocessing.simulation.gl_backend import gl_backend
from preprocessing.simulation.metaworld_rollout import VIEWS, Camera
from preprocessing.store.images import decode_image

pytest.importorskip("dm_control", reason="dm_control is not installed: pip install 'rt-pipelines[sim]'")


@pytest.fixture(scope="module")
def config() -> DmcConfig:
    if gl_backend() is None:
        pytest.skip("no OpenGL draws without a screen here")
    return dmc_config("point_mass-easy", height=64, width=64)


@pytest.fixture
def environment(config: DmcConfig) -> Iterator[DmcEnvironment]:
    environment = config.build()
    yield environment
    environment.close()


@pytest.mark.parametrize(
    "task, actuators, hz", [("walker-walk", 6, 20), ("cheetah-run", 6, 50), ("humanoid-walk", 21, 20)]
)
def test_the_tasks_of_vd4rl_have_its_sizes(task: str, actuators: int, hz: float) -> None:
    camera = Camera(view=VIEWS["side"], height=84, width=84, jpeg_quality=85)
    (chosen,) = choose_environments(f"dmc:{task}", camera=camera, control_hz=hz)
    assert isinstance(chosen, DmcConfig)
    assert (len(chosen.moved_by), chosen.action_repeat, chosen.max_steps) == (actuators, 2, 500)
    assert (chosen.instruction, chosen.measure, chosen.has_expert) == (task.replace("-", " "), "return", False)


def test_the_picture_is_dm_controls_own(environment: DmcEnvironment) -> None:
    seen = environment.reset(3)
    drawn = environment.simulator.physics.render(64, 64, camera_id=0)
    np.testing.assert_array_equal(decode_image(seen.frame), drawn)


def test_an_action_is_held_for_two_steps_whose_rewards_are_added(config: DmcConfig) -> None:
    environment = config.without_camera().build()
    environment.reset(5)
    simulator = load_suite().load("point_mass", "easy", task_kwargs={"random": 5})
    simulator.reset()
    for _ in range(90):
        action_A = to_the_target(environment.simulator.physics)
        seen = environment.step({"actuator_0": action_A[0], "actuator_1": action_A[1], "other": 9.0})
        rewards = [simulator.step(action_A).reward for _ in range(2)]
        assert seen.reward == pytest.approx(sum(rewards)) and not seen.is_over
        np.testing.assert_allclose(seen.state_S[:2], simulator.physics.position(), rtol=1e-6)
    assert seen.reward > 1  # half of it would be less


def test_an_episode_is_of_500_decisions_and_of_its_seed_alone(config: DmcConfig) -> None:
    environment = config.without_camera().build()
    starts = [environment.reset(seed).state_S for seed in (7, 8, 7)]
    np.testing.assert_array_equal(starts[0], starts[2])
    assert (starts[0] != starts[1]).any()
    steps = 0
    while not environment.seen.last():
        seen = environment.step({"actuator_0": 0.0, "actuator_1": 0.0})
        steps += 1
    assert steps == 500 and seen.is_over and not seen.success
    with pytest.raises(ValueError, match="an episode begins with reset"):
        environment.act(np.zeros(2))


def test_the_controller_is_the_upper_bound(config: DmcConfig) -> None:
    expert = config.build().expert_episode(1)
    assert expert.steps == 500 and 900 < expert.total_reward < 1000
    with pytest.raises(ValueError, match="no expert for walker-walk"):
        replace(config, task="walker-walk").build().expert_episode(1)


@pytest.mark.parametrize(
    "task, hz, words",
    [
        ("walker-wak", 20, "no task 'walker-wak': give DOMAIN-TASK, such as walker-walk"),
        ("walker_walk", 20, "such as walker-walk"),
        ("walker-walk", 30, "40 control steps a second, which is no whole multiple of the policy's 30"),
        ("walker-walk", 90, "no whole multiple"),
    ],
)
def test_what_cannot_be_simulated_is_named(task: str, hz: float, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        dmc_config(task, height=8, width=8, control_hz=hz)


def test_an_action_of_another_robot_is_refused(environment: DmcEnvironment) -> None:
    environment.reset(1)
    with pytest.raises(ValueError, match="moves by actuator_0, actuator_1: the action has no actuator_1"):
        environment.step({"actuator_0": 0.0})


# --- demonstrations ---


@pytest.mark.parametrize("side", [84, 64])
def test_what_is_recorded_is_read_back_as_it_was_done(config: DmcConfig, side: int, tmp_path: Path) -> None:
    """Every frame has the action that the controller chose at it: acted again, it leads to the next frame."""
    acted = replace(config, height=side, width=side)
    demonstrations = Demonstrations(environment=acted, episodes=2, first_seed=11, decisions=5)
    returns = list(record_dataset(tmp_path, demonstrations))
    source = open_source(str(tmp_path / "point_mass_easy/expert" / f"{side}px"))
    assert (source.name, source.control_hz) == ("vd4rl_point_mass_easy_expert", 25)
    has_state = side == 64  # the HDF5 layout of V-D4RL keeps none
    assert source.own_spec is not None and source.own_spec.proprio_names == (acted.state_names if has_state else ())
    episodes = [item for shard in source.shards("train") for item in source.read_shard(shard)]
    environment = acted.build()
    for seed, total, episode in zip((11, 12), returns, episodes, strict=True):
        assert isinstance(episode, Episode)
        frames = np.asarray(episode.steps["observation/image"])
        seen = environment.reset(seed)
        for step, action_A in enumerate(np.asarray(episode.steps["action"])):
            np.testing.assert_array_equal(decode_image(seen.frame), frames[step])
            for name in ("position", "velocity") if has_state else ():
                felt = np.ravel(episode.steps[f"observation/{name}"][step])
                assert [state_of(seen)[f"{name}/{name}_{place}"] for place in range(len(felt))] == felt.tolist()
            np.testing.assert_allclose(action_A, to_the_target(environment.simulator.physics), rtol=1e-6)
            seen = environment.step({"actuator_0": action_A[0], "actuator_1": action_A[1]})
        assert np.sum(episode.steps["reward"]) == pytest.approx(total)
    environment.close()
    with pytest.raises(FileExistsError, match="84px exists" if side == 84 else "64px exists"):
        next(record_dataset(tmp_path, demonstrations))


def test_with_noise_the_recorded_action_is_the_controllers(config: DmcConfig) -> None:
    still = Demonstrations(environment=config, episodes=1, first_seed=3, decisions=4)
    quiet, pushed = (record(replace(still, noise=noise), 3) for noise in (0.0, 0.5))
    np.testing.assert_array_equal(quiet.action_NA[:2], pushed.action_NA[:2])
    position, velocity = pushed.state["position"][:-1], pushed.state["velocity"][:-1]
    np.testing.assert_allclose(pushed.action_NA[1:], np.clip(-10 * position - velocity, -1, 1), atol=1e-5)
    assert (quiet.state["position"] != pushed.state["position"]).any()


@pytest.mark.parametrize(
    "task, decisions, words", [("point_mass-easy", 501, "1 to 500"), ("walker-walk", 5, "controllers for")]
)
def test_demonstrations_that_nothing_gives_are_refused(
    config: DmcConfig, task: str, decisions: int, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        Demonstrations(environment=replace(config, task=task), episodes=1, first_seed=0, decisions=decisions)

"""Names of environments, and what a policy is told in place of a task."""

from __future__ import annotations

import pytest

from preprocessing.simulation.choice import choose_environments, other_instructions
from preprocessing.simulation.metaworld_environment import MetaWorldConfig
from preprocessing.simulation.metaworld_rlds import INSTRUCTIONS
from preprocessing.simulation.metaworld_rollout import MOUNTED_VIEWS, VIEWS, Camera, load_simulator
from preprocessing.simulation.task_sets import TASK_SETS

CAMERA = Camera(view=VIEWS["side"], height=32, width=40, jpeg_quality=85)


def test_tasks_are_named_with_and_without_their_version() -> None:
    chosen = choose_environments("metaworld:faucet-open, door-lock-v3", camera=CAMERA, control_hz=10.0)
    assert [environment.task for environment in chosen] == ["faucet-open-v3", "door-lock-v3"]
    assert chosen[0].instruction == "turn the faucet on" and chosen[0].max_steps == 62
    for name, size in {"all": 50, "mt50": 50, "mt10_visible": 10, "mt6": 6, "mt6,drawer-open": 7}.items():
        assert len(choose_environments(f"metaworld:{name}", camera=CAMERA, control_hz=10)) == size


def test_the_ten_tasks_are_those_of_mt10_whose_goal_is_in_the_picture_and_three_others() -> None:
    load_simulator()
    from metaworld.env_dict import MT10_V3

    invisible = {"reach-v3", "push-v3", "pick-place-v3"}
    assert set(MT10_V3) - set(TASK_SETS["mt10_visible"]) == invisible
    assert len(set(TASK_SETS["mt10_visible"])) == 10


@pytest.mark.parametrize(
    "env, control_hz, words",
    [
        ("metaworld:faucet", 10, "Meta-World has no task 'faucet'"),
        ("metaworld:door-lock,door-lock-v3", 10, "door-lock-v3 is named twice"),
        ("metaworld:mt6,door-lock", 10, "door-lock-v3 is named twice"),
        ("metaworld:mt10", 10, "no task 'mt10': did you mean mt10_visible?"),
        ("metaworld:door-lock", 2.5, "whole number of steps per second, the policy at 2.5"),
        ("metaworld:door-lock", 3, "80 Hz must be a multiple of the control rate 3"),
        ("robosuite:lift", 10, "there is no simulator 'robosuite'"),
    ],
)
def test_what_cannot_be_simulated_is_named(env: str, control_hz: float, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        choose_environments(env, camera=CAMERA, control_hz=control_hz)


def test_a_policy_s_other_cameras_are_drawn_where_the_simulator_has_them() -> None:
    wrist = Camera(view=MOUNTED_VIEWS["wrist"], height=64, width=64, jpeg_quality=85)
    further = {"wrist": wrist}
    (chosen,) = choose_environments("metaworld:door-lock", camera=CAMERA, control_hz=10, further_cameras=further)
    assert isinstance(chosen, MetaWorldConfig) and chosen.further_cameras == further
    with pytest.raises(ValueError, match="reads camera wrist, and dm_control's tasks have one camera, image"):
        choose_environments("dmc:walker-walk", camera=CAMERA, control_hz=10, further_cameras=further)


def test_the_task_in_the_same_scene_lends_its_instruction() -> None:
    others = other_instructions(["faucet-open-v3", "door-lock-v3", "faucet-close-v3"])
    assert others["faucet-open-v3"] == INSTRUCTIONS["faucet-close-v3"]
    assert others["faucet-close-v3"] == INSTRUCTIONS["faucet-open-v3"]
    assert others["door-lock-v3"] == INSTRUCTIONS["faucet-close-v3"]
    with pytest.raises(ValueError, match="two tasks"):
        other_instructions(["door-lock-v3"])

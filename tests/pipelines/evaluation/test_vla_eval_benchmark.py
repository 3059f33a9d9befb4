"""Meta-World as vla-eval's harness drives it: episodes, seeds and endings are those of `rtp evaluate --env`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("vla_eval", reason="needs vla-eval")

from pipelines.evaluation.vla_eval_benchmark import MetaWorldBenchmark, read_action
from preprocessing.simulation.environment import FIRST_EVALUATION_SEED
from preprocessing.simulation.metaworld_rollout import VIEWS, Camera, roll_out
from preprocessing.store.images import decode_image


def test_eleven_numbers_have_their_names_and_declare_the_end() -> None:
    values, is_over = read_action([[1, 0.1, 0.2, 0.3, 0, 0, 0, -1, 0, 0, 0]])
    assert values["world_vector_y"] == 0.2 and values["gripper_closedness_action"] == -1 and not is_over
    assert read_action(np.zeros(11))[1]


def test_seven_numbers_are_the_harnesss_own() -> None:
    values, is_over = read_action([0.1, 0.2, 0.3, 9, 9, 9, 1])
    assert (values["world_vector_x"], values["gripper_closedness_action"], is_over) == (0.1, 1, False)
    with pytest.raises(ValueError, match=r"\(8,\) numbers"):
        read_action(np.zeros(8))


@pytest.mark.usefixtures("drawing")
def test_the_experts_actions_succeed_in_the_episode_of_that_seed() -> None:
    benchmark = MetaWorldBenchmark(tasks=["button-press"], seed=5, image_size=32)
    (task,) = benchmark.get_tasks()
    camera = Camera(view=VIEWS["side"], height=32, width=32, jpeg_quality=85)
    recording = roll_out("button-press-v3", seed=FIRST_EVALUATION_SEED + 5, control_hz=10, camera=camera)
    assert recording is not None
    seen = benchmark.reset({**task, "episode_idx": 0})
    first = benchmark.make_obs(seen, task)
    np.testing.assert_array_equal(first["images"]["primary"], decode_image(recording.frames_T[0]))
    assert first["task_description"] == "press the button"
    result: Any = None
    for action in recording.action_TA:
        number = [1, *(action[:3] * recording.metres_per_action), 0, 0, 0, action[3], 0, 0, 0]
        result = benchmark.step({"actions": np.array(number, np.float32)})
        if benchmark.check_done(result):
            break
    assert benchmark.get_step_result(result) == {"success": True}
    ended = benchmark.step({"actions": np.zeros(11)})
    assert benchmark.check_done(ended) and benchmark.get_step_result(ended) == {"success": False}
    benchmark.cleanup()

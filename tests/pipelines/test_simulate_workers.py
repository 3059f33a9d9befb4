"""`rtp simulate --workers`: how many rollouts are under way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from pipelines.simulate import SimulateConfig, simulate
from preprocessing.simulation.metaworld_rlds import Recording

FRAME = simplejpeg.encode_jpeg(np.zeros((8, 16, 3), np.uint8))


@pytest.mark.parametrize("tasks", [("button-press-v3",), ("button-press-v3", "faucet-open-v3", "door-lock-v3")])
def test_workers_have_work_while_one_rollout_is_waited_for(tasks: tuple[str, ...], tmp_path: Path) -> None:
    waiting, seen = set[tuple[str, int]](), []

    @contextmanager
    def counted(workers: int) -> Iterator[Callable[..., Callable[[], Recording]]]:
        def start(task: str, *, seed: int, **_: object) -> Callable[[], Recording]:
            waiting.add((task, seed))

            def wait() -> Recording:
                seen.append(len(waiting))
                waiting.remove((task, seed))
                nothing = np.zeros((2, 4), np.float32)
                return Recording(frames_T=[FRAME] * 2, state_TS=nothing, action_TA=nothing, metres_per_action=0.01)

            return wait

        yield start

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.simulate.rollouts", counted)
        simulate(tmp_path, SimulateConfig(tasks=tasks, episodes=8, val_episodes=0, workers=2, image_size="8x16"))
    total = 8 * len(tasks)
    assert len(seen) == total and not waiting  # none is simulated that is not wanted
    begun = len(tasks)
    assert all(count >= min(2, total - done) for done, count in enumerate(seen) if done >= begun)

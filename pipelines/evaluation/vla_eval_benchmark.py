"""Meta-World for allenai's vla-evaluation-harness: the episodes of `rtp evaluate --env`, run by an outside program.

    rtp serve RUN --adapter own --port 8000
    vla-eval run --config examples/vla_eval/metaworld.yaml --no-docker

Served with `--adapter own`, a policy's actions and its own "terminate" arrive as they are, and successes are those of
`rtp evaluate --env` under the same seeds. The harness's own seven numbers have a gripper that is open or closed, and
no way to declare the end. Needs vla-eval 0.8 beside the extra `sim`; this module is read by it alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from vla_eval.benchmarks.base import StepBenchmark, StepResult  # type: ignore[import-not-found]
from vla_eval.specs import IMAGE_RGB, LANGUAGE, RAW  # type: ignore[import-not-found]

from preprocessing.simulation.choice import choose_environments
from preprocessing.simulation.environment import FIRST_EVALUATION_SEED, Environment, Observation
from preprocessing.simulation.metaworld_rollout import VIEWS, Camera
from preprocessing.store.images import decode_image
from rt_models.action_space import rt1_action_spec

CAMERA = "primary"
HARNESS = (
    *(f"world_vector_{axis}" for axis in "xyz"),
    *(f"rotation_{axis}" for axis in "xyz"),  # not read: the arm does not rotate
    "gripper_closedness_action",
)
"""The harness's seven numbers."""


class MetaWorldBenchmark(StepBenchmark):
    """`tasks` by name. Frames, camera and control rate are those of the policy's demonstrations.

    Seeds are those of `rtp evaluate --env`: from `FIRST_EVALUATION_SEED` + `seed` up.
    """

    render_backends = frozenset({"gpu", "cpu"})

    def __init__(
        self,
        tasks: Sequence[str],
        seed: int = 0,
        control_hz: int = 10,
        image_size: int = 96,
        view: str = "side",
        jpeg_quality: int = 85,
    ) -> None:
        super().__init__()
        camera = Camera(view=VIEWS[view], height=image_size, width=image_size, jpeg_quality=jpeg_quality)
        chosen = choose_environments(f"metaworld:{','.join(tasks)}", camera=camera, control_hz=control_hz)
        self._configs = {config.task: config for config in chosen}
        self._seed = FIRST_EVALUATION_SEED + seed
        self._environment: Environment | None = None

    @classmethod
    def configure_render(cls, mode: str) -> dict[str, str]:
        """Nothing: our simulator finds what draws here by itself."""
        return {}

    def get_tasks(self) -> list[dict[str, Any]]:
        return [{"name": task, "suite": "metaworld"} for task in self._configs]

    def reset(self, task: Mapping[str, Any]) -> Observation:
        self.cleanup()
        self._environment = self._configs[task["name"]].build()
        return self._environment.reset(self._seed + int(task["episode_idx"]))

    def step(self, action: Mapping[str, Any]) -> StepResult:
        assert self._environment is not None
        values, is_over = read_action(action["actions"])
        if is_over:
            return StepResult(obs=self._last_result.obs, reward=0.0, done=True, info={})
        seen = self._environment.step(values)
        return StepResult(obs=seen, reward=seen.reward, done=seen.is_over, info={"success": seen.success})

    def make_obs(self, raw_obs: Observation, task: Mapping[str, Any]) -> dict[str, Any]:
        instruction = self._configs[task["name"]].instruction
        return {"images": {CAMERA: decode_image(raw_obs.frame)}, "task_description": instruction}

    def get_step_result(self, step_result: StepResult) -> dict[str, Any]:
        return {"success": bool(step_result.info.get("success", False))}

    def get_metadata(self) -> dict[str, Any]:
        return {"max_steps": max(config.max_steps for config in self._configs.values())}

    def get_action_spec(self) -> dict[str, Any]:
        return {"action": RAW}

    def get_observation_spec(self) -> dict[str, Any]:
        return {CAMERA: IMAGE_RGB, "language": LANGUAGE}

    def cleanup(self) -> None:
        if self._environment is not None:
            self._environment.close()
            self._environment = None


def read_action(actions: object) -> tuple[dict[str, float], bool]:
    """(physical values by dimension name, whether the policy declares the end) of RT-1's 11 numbers in the contract's
    order, or of the harness's 7. Raises ValueError for another number of them."""
    numbers = np.asarray(actions, np.float64)
    numbers = numbers[0] if numbers.ndim == 2 else numbers
    spec = rt1_action_spec()
    if numbers.shape == (spec.size,):
        return dict(zip(spec.names, numbers.tolist(), strict=True)), numbers[0] == 0  # 0: the class "terminate"
    if numbers.shape == (len(HARNESS),):
        return dict(zip(HARNESS, numbers.tolist(), strict=True)), False
    raise ValueError(f"an action of {numbers.shape} numbers: serve the policy with --adapter own, or with the default")

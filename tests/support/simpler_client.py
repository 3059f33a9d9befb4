"""Stands in for `vla-eval run` on SIMPLER: the harness's protocol and result files, with noise for frames.

python tests/support/simpler_client.py CONFIG OUT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.support.policy_clients import HarnessRobot

STEPS = 2


def main(config_file: str, out: str) -> None:
    config = yaml.safe_load(Path(config_file).read_text())
    Path(out).mkdir(parents=True)
    rng = np.random.default_rng(0)
    with HarnessRobot(config["server"]["url"]) as robot:
        hello = {"harness_version": "0", "protocol_version": 1, "benchmark": "simpler"}
        told = robot.ask("hello", hello)
        assert told["type"] == "hello", told
        for benchmark in config["benchmarks"]:
            task = benchmark["params"]["task_name"]
            episodes = [_episode(robot, task, number, rng) for number in range(benchmark["episodes_per_task"])]
            written = {"benchmark": "simpler", "tasks": [{"task": task, "episodes": episodes}]}
            Path(out, f"{benchmark['subname']}_aggregate.json").write_text(json.dumps(written))


def _episode(robot: HarnessRobot, task: str, number: int, rng: np.random.Generator) -> dict[str, object]:
    """Success is drawn; what counts is that every observation is answered with seven numbers for a Google robot."""
    robot.send("episode_start", {"task": {"name": task, "suite": "simpler", "episode_idx": number}})
    for _ in range(STEPS):
        frame = rng.integers(0, 255, (64, 80, 3), dtype=np.uint8)
        image = {"__image__": True, "format": "raw", "dtype": "|u1", "data": frame.tobytes(), "shape": frame.shape}
        seen = {"images": {"primary": image}, "task_description": "pick coke can", "task_name": task}
        answer = robot.ask("observation", seen)
        assert answer["type"] == "action", answer
        action = np.asarray(answer["payload"]["actions"], np.float64).ravel()
        assert action.shape == (7,) and np.isfinite(action).all() and 0 <= action[6] <= 1, action
    success = bool(rng.random() < 0.5)
    robot.send("episode_end", {"metrics": {"success": success}, "steps": STEPS, "elapsed_sec": 0.0})
    return {"episode_id": number, "metrics": {"success": success}, "steps": STEPS}


if __name__ == "__main__":
    main(*sys.argv[1:])

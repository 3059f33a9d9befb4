"""Sweeps over one number, and a trial that needs no model: its loss falls faster the nearer `x` is to 0.3."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuning.population import Population
from tuning.search import RandomSearch
from tuning.space import Uniform
from tuning.sweep import Budget, Objective, Sweep
from tuning.tuner import Report, TrialTask

NUM_STEPS = 9


def sweep(**changes: Any) -> Sweep:
    """A random search of four trials over `x` in [0, 1], with these fields changed."""
    settings: dict[str, Any] = {
        "name": "toy",
        "recipe": "none",
        "space": {"x": Uniform(low=0.0, high=1.0)},
        "objectives": (Objective(metric="loss", direction="min"),),
        "search": RandomSearch(),
        "budget": Budget(trials=4),
    }
    return Sweep(**{**settings, **changes})


def population(interval_steps: int = 3, trials: int = 4) -> Sweep:
    """The same as population-based training."""
    return sweep(scheduler=Population(interval_steps=interval_steps), budget=Budget(trials=trials))


def loss(x: float, step: int, start: float = 1.0) -> float:
    """The toy's loss after `step` steps from `start`: it falls fastest at x = 0.3."""
    return start * (0.5 + abs(x - 0.3)) ** step


@dataclass(frozen=True, kw_only=True)
class Toy:
    """Reports every step and then checkpoints it, as a training does; notes in trained.txt what it trained."""

    step_s: float = 0.0
    fail: int | None = None

    def __call__(self, task: TrialTask, report: Report) -> Mapping[str, float]:
        state = read_state(task.output)
        while state["step"] < (task.until or NUM_STEPS):
            if task.number == self.fail:
                raise ValueError("this one never works: leave it out")
            time.sleep(self.step_s)
            step, weight = state["step"] + 1, loss(task.parameters["x"], 1, state["weight"])
            state = {"step": step, "weight": weight}
            note(task.output, step)
            report({"step": step, "loss": weight})
            write_state(task.output, state)
        return {"step": state["step"], "loss": state["weight"]}


def read_state(output: str) -> dict[str, Any]:
    """The toy's checkpoint in a trial's folder, or its state before the first step."""
    path = Path(output, "state.json")
    return json.loads(path.read_text()) if path.exists() else {"step": 0, "weight": 1.0}


def note(output: str, step: int) -> None:
    """Write down that the trial trained this step."""
    Path(output).mkdir(parents=True, exist_ok=True)
    with Path(output, "trained.txt").open("a") as file:
        file.write(f"{step}\n")


def write_state(output: str, state: Mapping[str, Any]) -> None:
    """The toy's checkpoint, published in one move."""
    partial = Path(output, "state.partial")
    partial.write_text(json.dumps(state))
    partial.replace(Path(output, "state.json"))


def clone(source: str, target: str, step: int) -> str:
    """Copy the state of one trial into another's folder, as population-based training does."""
    assert read_state(source)["step"] == step
    shutil.copy(Path(source, "state.json"), Path(target, "state.json"))
    return f"{source}/state.json"

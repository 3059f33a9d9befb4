"""The public way into a policy from Python: camera frame and instruction in, an action by dimension name out.

from pipelines.publishing.policy import load_policy

policy = load_policy("runs/first")  # or a checkpoint, an exported folder, models:/NAME@ALIAS
action = policy.act(frame, "open the drawer")
action.values["world_vector_x"], action.units["world_vector_x"], action.absent
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from pipelines.config.compute import Compute, Precision
from pipelines.publishing.inference import InferenceModel, NamedAction, named
from pipelines.publishing.trained_model import load_trained, with_instructions
from rt_models.spec import DatasetContract


class LoadedPolicy:
    """Acts for one robot, whose last frames it keeps; a new instruction, or `reset`, begins a new episode."""

    def __init__(self, model: InferenceModel, dataset: str | None, control_hz: float | None = None) -> None:
        self.contract, self.dataset = model.contract, model.contract.dataset(dataset)
        if control_hz is not None:
            _require_rate(self.dataset, control_hz)
        self._model, self._episode = model, model.episode(self.dataset)

    def act(self, frame: object, instruction: str | np.ndarray) -> NamedAction:
        """The action for the newest frame: uint8 (H, W, 3), or PNG or JPEG bytes, of any size.

        `instruction` is a text, or for an RT-1 also a float (512,) vector of the contract's encoder. Raises ValueError
        for what is no frame, and for a text that neither the table of training instructions nor the encoder knows.
        """
        text, vector = (instruction, None) if isinstance(instruction, str) else (None, instruction)
        read = self._model.instruction(text, vector)
        (action,) = self._model.act([self._episode], [self._model.frame(frame)], [read])
        return named(action, self.contract, self.dataset)

    def reset(self) -> None:
        """Begin an episode: forget the frames seen."""
        self._episode.reset()


def _require_rate(dataset: DatasetContract, control_hz: float) -> None:
    """Raise ValueError for a robot that acts at another rate than was trained: its displacements are other speeds."""
    if not math.isclose(control_hz, dataset.control_hz, rel_tol=0.02):
        raise ValueError(
            f"the robot acts {control_hz:g} times a second, and the policy learned from {dataset.name} at "
            f"{dataset.control_hz:g} Hz, where an action lasts as long: run the robot at {dataset.control_hz:g} Hz"
        )


def load_policy(
    source: str | Path,
    *,
    dataset: str | None = None,
    control_hz: float | None = None,
    device: str = "auto",
    precision: Precision = "fp32",
) -> LoadedPolicy:
    """The policy of a run's output folder, a checkpoint, an exported folder (local or s3://, gs://) or
    models:/NAME@ALIAS.

    `dataset` names the one whose units and scale actions have, where the model was trained on several. `control_hz` is
    how often a second the robot acts, if it is to be checked. `device` is cpu, cuda, cuda:N, or auto: a GPU where there
    is one; `precision` as `rtp serve` takes it. Raises FileNotFoundError or ConnectionError if there is no model, and
    ValueError if the dataset must be named, was recorded at another rate, or there is no such GPU.
    """
    compute = Compute(device=device, precision=precision)
    compute.resolved()  # before the weights are read
    return LoadedPolicy(InferenceModel(with_instructions(load_trained(str(source))), compute), dataset, control_hz)

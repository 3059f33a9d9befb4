"""The public way into a policy from Python: camera frame and instruction in, an action by dimension name out.

from pipelines.publishing.policy import load_policy

policy = load_policy("runs/first")  # or a checkpoint, an exported folder, models:/NAME@ALIAS
action = policy.act(frame, "open the drawer")  # of several cameras {"image": frame, "wrist": another}
action = policy.act(frame, "pick up", object_box=[40, 60, 80, 110])  # of a policy that reads object masks
action.values["world_vector_x"], action.units["world_vector_x"], action.absent
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pipelines.config.compute import Compute, Precision
from pipelines.publishing.control_rate import OtherRate, at_rate, rate_factor
from pipelines.publishing.inference import InferenceModel, NamedAction, named
from pipelines.publishing.object_detection import ObjectDetection
from pipelines.publishing.objects_meant import ObjectsMeant
from pipelines.publishing.robot_declaration import require_declared
from pipelines.publishing.trained_model import load_trained, with_instructions


class LoadedPolicy:
    """Acts for one robot, whose last frames it keeps; a new instruction, or `reset`, begins a new episode."""

    def __init__(
        self,
        model: InferenceModel,
        dataset: str | None,
        control_hz: float | None = None,
        other_rate: OtherRate = "refuse",
        declared: Mapping[str, object] | None = None,
    ) -> None:
        self.contract, self.dataset = model.contract, model.contract.dataset(dataset)
        self.cameras = model.cameras(self.dataset)
        """Roles of the cameras that `act` wants a frame of."""
        self._factor = rate_factor(self.dataset, control_hz, other_rate)
        require_declared(declared or {}, self.contract, self.dataset)
        self._model, self._episode = model, model.episode(self.dataset)

    def act(
        self,
        frame: object,
        instruction: str | np.ndarray,
        state: object = None,
        *,
        object_box: object = None,
        second_object_box: object = None,
        object_name: object = None,
        second_object_name: object = None,
    ) -> NamedAction:
        """The action for the newest frame: uint8 (H, W, 3), or PNG or JPEG bytes, of any size; of a policy that reads
        several `cameras` a map from each role to its frame.

        `instruction` is a text, or for an RT-1 also a float (512,) vector of the contract's encoder. `state`, which a
        policy that reads one wants (`dataset.state` has names and units): physical values by name, or in that order.
        A policy that reads object masks wants with the first frame of an episode `object_box`, where the object meant
        is in this frame: corners [x0, y0, x1, y1] or a pixel [x, y]; `second_object_box` for "move X near Y"; or the
        objects' names, if there is a detector. It holds for the episode; another box begins one.
        Raises ValueError, naming it, for a camera, box or value that is missing or no frame or number, and for a text
        that neither the table of training instructions nor the encoder knows.
        """
        text, vector = (instruction, None) if isinstance(instruction, str) else (None, instruction)
        read = self._model.instruction(text, vector)
        frames = self._model.frames(frame, self.dataset)
        meant = ObjectsMeant(
            object_box=object_box,
            second_object_box=second_object_box,
            object_name=object_name,
            second_object_name=second_object_name,
        )
        marks = self._model.marks(meant, frame, frames, self.dataset)
        if marks is not None:
            self._model.mark(self._episode, marks)
        (action,) = self._model.act([self._episode], [frames], [read], [state])
        space, side = self.dataset.acted(self.contract.action)
        return at_rate(named(action, self.contract, self.dataset), self._factor, space, side)

    def reset(self) -> None:
        """Begin an episode: forget the frames seen."""
        self._episode.reset()


def load_policy(
    source: str | Path,
    *,
    dataset: str | None = None,
    control_hz: float | None = None,
    other_rate: OtherRate = "refuse",
    declared: Mapping[str, object] | None = None,
    device: str = "auto",
    precision: Precision = "fp32",
    detector: str | None = None,
    detector_threshold: float = 0.1,
) -> LoadedPolicy:
    """The policy of a run's output folder, a checkpoint, an exported folder (local or s3://, gs://) or
    models:/NAME@ALIAS.

    `dataset` names the one whose units and scale actions have, where the model was trained on several. `control_hz` is
    how often a second the robot acts, if it is to be checked; `other_rate` "scale" scales displacements to a rate that
    was not trained, instead of refusing it. `declared` is what the robot says of itself, to be checked: lists under
    action_names, action_units, state_names, state_units. `device` is cpu, cuda, cuda:N, or auto: a GPU where there
    is one; `precision`, `detector` (owlvit:PATH) and `detector_threshold` as `rtp serve` takes them. Raises
    FileNotFoundError or ConnectionError if there is no model, and ValueError if the dataset must be named, was recorded
    at another rate, or there is no such GPU.
    """
    compute = Compute(device=device, precision=precision)
    where = compute.resolved()
    detection = ObjectDetection(detector=detector, detector_threshold=detector_threshold)
    trained = with_instructions(load_trained(str(source), device=where))
    model = InferenceModel(trained, compute, detection=detection)
    return LoadedPolicy(model, dataset, control_hz, other_rate, declared)

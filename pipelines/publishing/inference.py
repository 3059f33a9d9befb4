"""A trained model that answers: reads frames and instructions, begins episodes, and names the dimensions of an action.

What `pipelines.publishing.policy.load_policy` and the registered model (`mlflow_policy.py`) share. A registered model
carries this file and what it imports, so it needs no command line, no Ray and no DeepSpeed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass

import numpy as np
import torch

from pipelines.config.compute import Compute
from pipelines.families.base import Instruction, Policy
from pipelines.families.models import Model, family_of
from pipelines.publishing.folder import TrainedModel
from pipelines.publishing.object_detection import ObjectDetection
from pipelines.publishing.objects_meant import MarkReader, ObjectsMeant
from pipelines.serving.request_values import camera_frame, described, is_missing, numbers
from rt_models.action_space import ActionSpec
from rt_models.blocks.cast_weights import cast_weights
from rt_models.control.action import Action, ActionOutlet
from rt_models.control.control_step import CAPACITIES
from rt_models.control.observation import Frame, ObservationInlet, RobotState
from rt_models.spec import EMBEDDING_WIDTH, MAIN_CAMERA, Contract, DatasetContract, ObjectMarks

TOGETHER = CAPACITIES[-1]
"""Robots that are answered in one pass at most: rt_models/control/control_step.py's largest graph."""


@dataclass(frozen=True, kw_only=True)
class NamedAction:
    """The action that one robot shall take now."""

    values: Mapping[str, float | None]
    """Physical value by dimension; None if the dimension is absent and has no neutral value."""
    units: Mapping[str, str]
    """Unit by dimension, such as m, rad, class, or unitless where the source's is unknown."""
    classes: Mapping[str, str]
    """Class by class dimension: {"terminate_episode": "arm"} beside its number 1.0 in `values`."""
    absent: tuple[str, ...]
    """Dimensions that the policy does not answer in, whose values are neutral (`ActionDimension.neutral`)."""
    frames_seen: int
    """Camera frames that the answer rests on, this one included."""
    plan: str | None = None
    """What the model said before the action, where it says plans."""


def named(action: Action, contract: Contract, dataset: DatasetContract) -> NamedAction:
    """The action of one robot, by name, in the space of its dataset."""
    space, side = dataset.acted(contract.action)
    names = space.names
    values = {name: float(value) for name, value in zip(names, action.values, strict=True)}
    return NamedAction(
        values={name: None if np.isnan(value) else value for name, value in values.items()},
        units=dict(zip(names, side.units, strict=True)),
        classes={name: str(label) for name, label in action.classes.items()},
        absent=action.absent,
        frames_seen=int(action.frames_seen),
        plan=action.plans[0] if action.plans else None,
    )


class InferenceModel:
    """A trained model with its instruction table: reads frames and instructions and begins episodes.

    `compute`: device and precision. `detection`: what looks for objects that robots name. `plan_tokens`: a model that
    was trained with plans says one of at most so many tokens before it acts; 0 asks for none. `begin`, or the first
    episode, prepares the weights once for all robots; it modifies the model of `trained`. Raises ValueError for
    imported weights that are bound to no dataset: their actions have no units.
    """

    def __init__(
        self,
        trained: TrainedModel,
        compute: Compute | None = None,
        *,
        plan_tokens: int = 0,
        detection: ObjectDetection | None = None,
    ) -> None:
        if not trained.contract.datasets:
            raise ValueError(f"{trained.source} is bound to no dataset: import its weights again with --data STORE")
        self.contract, self.instructions = trained.contract, trained.instructions
        self.source = trained.source
        self._family, self._config = family_of(trained.model), trained.model.config
        self._require_history(trained.source)
        self._given: Model | None = trained.model  # until it is made ready; not twice in memory
        self.reads_object_masks = self._family.reads_object_masks(self._config)
        """Whether a robot must say which object is meant, with the first frame of an episode."""
        self._compute, self._device = compute or Compute(), torch.device("cpu")
        self._mark_reader = self._marking(detection or ObjectDetection())
        self.plan_tokens = plan_tokens if trained.origin.document.get("plans") else 0
        self._policy_of: Callable[[DatasetContract], Policy] | None = None
        self._policies: dict[str, Policy] = {}

    @property
    def num_frames(self) -> int:
        """Camera frames that an answer may rest on."""
        return self._family.num_frames(self._config)

    @property
    def stride(self) -> int:
        """Control steps from one of these frames to the next."""
        return self._family.stride(self._config)

    def _require_history(self, source: str) -> None:
        """Raise ValueError unless the model looks at the frames that its contract names; older ones name none."""
        told, mine = (self.contract.num_steps, self.contract.stride), (self.num_frames, self.stride)
        if self.contract.num_steps and told != mine:
            raise ValueError(
                f"{source}: by its contract an answer rests on {told[0]} frames, {told[1]} steps from one to the next, "
                f"by its settings on {mine[0]}, {mine[1]} steps apart: export it again from its run"
            )

    def _marking(self, detection: ObjectDetection) -> MarkReader:
        """Raises ValueError or OSError if the detector cannot be loaded, or has nothing to look for."""
        detector = None
        if detection.detector is not None:
            if not self.reads_object_masks:
                raise ValueError(f"this policy reads no object masks: leave out --detector {detection.detector}")
            detector = detection.build(str(self._compute.resolved()))
        return MarkReader(recipe=self.contract.image, detector=detector, threshold=detection.detector_threshold)

    @property
    def roles(self) -> tuple[str, ...]:
        """The cameras that the model reads, in its order."""
        return self._family.cameras(self._config)

    def absent(self, dataset: DatasetContract) -> tuple[str, ...]:
        """Dimensions that a policy of this data set does not answer in."""
        answered = self._family.answered_dims(self._config)
        return ActionOutlet(self._config.action_spec(), dataset, answered).absent

    def sides(self, dataset: str | None) -> list[tuple[ActionSpec, DatasetContract]]:
        """The spaces that answers may be in, each with its data set's side: of the data set, or of all."""
        sides = self.contract.datasets if dataset is None else [self.contract.dataset(dataset)]
        return [side.acted(self.contract.action) for side in sides]

    def begin(self) -> Callable[[DatasetContract], Policy]:
        """Move the weights to the device, fused and cast; the maker of policies. Raises ValueError without a GPU."""
        if self._policy_of is None:
            assert self._given is not None
            self._device = self._compute.resolved()
            ready = self._family.for_inference(self._given.to(self._device))
            if self._compute.precision == "bf16":
                cast_weights(ready)
            self._policy_of, self._given = self._family.policies(ready), None
        return self._policy_of

    def episode(self, dataset: DatasetContract) -> Policy:
        """A policy without a history yet; all share one copy of the weights."""
        if dataset.name not in self._policies:
            policy = self.begin()(dataset)
            self._policies[dataset.name] = (
                self._family.with_plans(policy, self.plan_tokens) if self.plan_tokens else policy
            )
        return self._policies[dataset.name].for_another_robot()

    def warm_episode(self, dataset: DatasetContract) -> Policy:
        """One to warm up with: where objects must be marked, in the middle."""
        policy = self.episode(dataset)
        if self.reads_object_masks:
            self.mark(policy, ObjectMarks(first=(0.5, 0.5)))
        return policy

    def cameras(self, dataset: DatasetContract) -> tuple[str, ...]:
        """The cameras, by role, that a robot of this data set must send a frame of."""
        return self._inlet(dataset).cameras

    def _inlet(self, dataset: DatasetContract) -> ObservationInlet:
        return ObservationInlet(self.roles, self._family.state(self._config), dataset)

    def act(
        self,
        policies: Sequence[Policy],
        frames: Sequence[Frame],
        instructions: Sequence[Instruction],
        states: Sequence[RobotState] | None = None,
    ) -> list[Action]:
        """The action of each of these different policies for its frame, instruction and state, several in one pass."""
        states = [None] * len(policies) if states is None else states
        actions: list[Action] = []
        with self._compute.applied(self._device):
            for first in range(0, len(policies), TOGETHER):
                piece = slice(first, first + TOGETHER)
                taken = (policies[piece], frames[piece], instructions[piece], states[piece])
                actions += self._family.act_together(*taken)
        return actions

    def frame(self, image: object) -> np.ndarray:
        """uint8 (H, W, 3) as the training frames of the main camera; `camera_frame` lists what `image` may be."""
        return camera_frame(image, self.contract.image)

    def frames(self, images: object, dataset: DatasetContract) -> Frame:
        """What the model reads of a robot of this data set: the only camera's frame, or each one's by its role.

        `images` is a picture, or one by role. Raises ValueError naming a camera that is missing or no frame.
        """
        pictures = self._inlet(dataset).pictures(images)
        if tuple(pictures) == (MAIN_CAMERA,):
            return self.frame(pictures[MAIN_CAMERA])
        return {role: self._frame_of(role, picture) for role, picture in pictures.items()}

    def _frame_of(self, role: str, picture: object) -> np.ndarray:
        try:
            return camera_frame(picture, self.contract.recipe(role))
        except ValueError as error:
            raise ValueError(str(error) if role == MAIN_CAMERA else f"camera {role}: {error}") from error

    def marks(self, meant: ObjectsMeant, images: object, frames: Frame, dataset: DatasetContract) -> ObjectMarks | None:
        """The marks of the objects that a robot says are meant, in a picture as it sent it (`images` and `frames` as
        `frames` takes and gives them); None if it says nothing. Raises ValueError naming the field that is wrong."""
        if meant.said() and not self.reads_object_masks:
            raise ValueError(f"{meant.said()[0]}: this policy reads no object masks: leave it out")
        picture = self._inlet(dataset).pictures(images).get(MAIN_CAMERA)
        frame = frames.get(MAIN_CAMERA) if isinstance(frames, Mapping) else frames
        return self._mark_reader.marks(meant, picture, np.asarray(frame))

    def mark(self, policy: Policy, marks: ObjectMarks) -> None:
        """Tell a policy which objects are meant; others than before begin an episode."""
        self._family.mark(policy, marks)

    def warm_up(self, most: int) -> None:
        """Lay the weights out and answer grey frames: on a GPU once for each size of its CUDA graphs that up to `most`
        robots at once need."""
        self.begin()
        dataset = self.contract.datasets[0]
        frame, state = self.grey(dataset)
        instruction = self.any_instruction()
        on_gpu = self._device.type == "cuda"
        for below, robots in zip((0, *CAPACITIES), CAPACITIES, strict=False):
            if below < (most if on_gpu else 1):
                policies = [self.warm_episode(dataset) for _ in range(robots)]
                self.act(policies, [frame] * robots, [instruction] * robots, [state] * robots)
        if on_gpu:
            torch.cuda.synchronize(self._device)

    def grey(self, dataset: DatasetContract) -> tuple[Frame, RobotState]:
        """A frame of each camera and a mean state, for warming up."""
        recipes = {role: self.contract.recipe(role) for role in self.cameras(dataset)}
        pictures = {role: np.full((r.height, r.width, 3), 128, np.uint8) for role, r in recipes.items()}
        state = None if dataset.state is None else dataset.state.statistics.mean
        return self.frames(pictures, dataset), state

    def require_state(self, state: RobotState, dataset: DatasetContract) -> None:
        """Raise ValueError, naming the value, for a state that the policy of this data set cannot read."""
        self._inlet(dataset).state(state, num_robots=1)

    def instruction(self, text: object, vector: object = None) -> Instruction:
        """What the model reads: the text, or its vector (512,). Raises ValueError if there is none."""
        if not is_missing(vector):
            return self._vector(vector)
        if is_missing(text) or (text not in self.instructions.vectors and not str(text).strip()):
            raise ValueError("there is no instruction: give a text as instruction, or its vector as embedding")
        return str(text) if self._family.instruction == "text" else self.instructions.vector(str(text))

    def any_instruction(self) -> Instruction:
        """One that needs no encoder, for warming up: a text, or its vector, or zeros where no vector is known."""
        known = next(iter(self.instructions.vectors), None)
        if self._family.instruction == "text":
            return known or "open the drawer"
        return np.zeros(EMBEDDING_WIDTH, np.float32) if known is None else self.instructions.vectors[known]

    def _vector(self, vector: object) -> np.ndarray:
        if self._family.instruction == "text":
            raise ValueError("this policy reads instructions as text: send instruction instead of embedding")
        sized = isinstance(vector, Sized) and len(vector) == EMBEDDING_WIDTH
        embedding = numbers(vector) if sized else np.zeros(())
        shape_fits = embedding.shape == (EMBEDDING_WIDTH,) and embedding.dtype.kind in "fiu"
        if not shape_fits or not np.isfinite(embedding).all():
            raise ValueError(f"embedding must be {EMBEDDING_WIDTH} finite numbers, got {described(vector)}")
        return embedding.astype(np.float32)

"""What a robot asks and what it is answered, whatever the protocol.

Axes: A dimensions of the policy's action.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pipelines.publishing.inference import NamedAction
from pipelines.publishing.objects_meant import ObjectsMeant
from rt_models.spec import MAIN_CAMERA


def no_camera(role: str, others: Sequence[str]) -> object:
    """Of a robot whose main camera's frame is all that there is."""
    del role, others
    return None


@dataclass(frozen=True, kw_only=True)
class Question:
    """Camera frames with their instruction, as a codec and an adapter have read them."""

    frame: object = None
    """Of the main camera, what `pipelines.serving.request_values.camera_frame` takes: encoded bytes, base64, an array
    or nested lists; None where `camera` looks for it when a policy reads it."""
    camera: Callable[[str, Sequence[str]], object] = no_camera
    """The picture of a camera by its role, in the same forms; None where there is none. Second the other roles that the
    policy reads: their pictures are not this one's."""
    state: object = None
    """Physical values by name, or in the order of the data set: of a policy that reads them."""
    control_hz: float | None = None
    """How often a second the robot acts, where it says so."""
    declared: Mapping[str, object] = field(default_factory=dict)
    """What the robot says of its actions and state (`pipelines.publishing.robot_declaration`)."""
    instruction: str | None = None
    embedding: object = None
    """The instruction's vector (512,), in place of the text."""
    objects: ObjectsMeant = field(default_factory=ObjectsMeant)
    """Which objects are meant, in the main camera's picture: of a policy that reads object masks."""
    reset: bool = False
    """Whether an episode begins with this frame."""
    stateless: bool = False
    """Whether this frame is to be answered alone, and to leave every history as it is."""
    success: bool | None = None
    """Whether the robot's task is solved at this frame, where it says so."""
    dataset: str | None = None
    """Whose units and scale the answer has; needed where the policy was trained on several."""
    contract: str | None = None
    """The id that the caller was built for; another policy refuses."""
    explain: bool = False
    """Whether the answer says what was read (`Answer.read`), so that a replay can name the cause of a difference."""

    def pictures(self, roles: Sequence[str]) -> object:
        """What `InferenceModel.frames` takes of these cameras: the main one's picture, or those there are by role."""
        if tuple(roles) == (MAIN_CAMERA,):
            return self.picture(MAIN_CAMERA, roles)
        found = {role: self.picture(role, roles) for role in roles}
        return {role: picture for role, picture in found.items() if picture is not None}

    def picture(self, role: str, roles: Sequence[str]) -> object:
        """That of one of these cameras; None where there is none."""
        if role == MAIN_CAMERA and self.frame is not None:
            return self.frame
        return self.camera(role, [other for other in roles if other != role])


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What one robot is to do now."""

    action: NamedAction
    tokens_A: np.ndarray
    """int64: the bins chosen."""
    clipped: tuple[str, ...]
    """Dimensions whose values were brought within the limits that this server was started with."""
    contract: str
    model: str
    """Where the model comes from, such as models:/NAME/VERSION."""
    dataset: str
    infer_ms: float
    """Of the pass that answered this robot and those beside it."""
    read: Mapping[str, int] = field(default_factory=dict)
    """Where asked for: CRC-32 of each frame, the state and the instruction as the model got them."""

"""What a served policy is asked and answers, in words and as a `curl` line: for server, help and registry."""

from __future__ import annotations

import base64
import json
import shlex
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipelines.publishing.robot_declaration import DECLARATIONS
from preprocessing.store.images import encode_png
from rt_models.spec import MAIN_CAMERA, Contract, of_role

if TYPE_CHECKING:  # it imports torch, and `rtp serve --help` prints REQUEST
    from pipelines.publishing.inference import InferenceModel

ADDRESS = "http://127.0.0.1:5001"
MAX_ROWS = 64
EXAMPLE_BOX = [6, 6, 10, 10]
"""Corners of an object in the pixels of an example's frame."""
OBJECTS = ("object_box", "second_object_box", "object_name", "second_object_name")
COLUMNS = ("image", "instruction", "embedding", "robot", "reset", "stateless", "state", *OBJECTS)
PARAMETERS = ("dataset", "contract", "control_hz", *DECLARATIONS)

REQUEST = f"""\
POST /invocations with Content-Type: application/json and
  {{"dataframe_records": [ROW, ...], "params": {{"dataset": NAME}}}}

A ROW (at most {MAX_ROWS} in a request) holds
  image        a PNG or JPEG in base64, or rows of [red, green, blue], 0 to 255
  image_ROLE   the picture of another camera that the policy reads, such as
               image_wrist
  state        the robot's state by name, of a policy that reads it
  instruction  text; or embedding: the 512 numbers of the policy's own encoder
  object_box   of a policy that reads object masks, with the first frame of an
               episode: where the object meant is in the picture that is sent,
               [x0, y0, x1, y1] or one pixel [x, y]; second_object_box likewise
               for "move X near Y"; where the server has a detector also
               object_name and second_object_name, texts, in their place
  robot        the name of the robot whose last frames came before this one, or
  stateless    true: an answer to this frame alone
  reset        true on the first frame of an episode (optional)

params, which may be left out where there is nothing to choose, holds
  dataset      the robot data set whose units and scale the actions have
  contract     the id the caller was built for; another policy refuses
  control_hz   steps a second of the robot, as text; another rate than was
               trained is refused
  action_names, action_units, state_names, state_units
               lists of what the robot takes for the order and units; others
               are refused

The answer is {{"predictions": [ROW, ...]}}; a ROW holds the value of each action
dimension, terminate_episode_class (terminate, arm or base), absent (dimensions
that the data set lacks; their values command nothing) and frames_seen. A
request that is refused is answered with status 400 and {{"message": REASON}}."""


def is_column(name: str) -> bool:
    """Whether a row may hold this: one of `COLUMNS`, or the picture of another camera."""
    return name in COLUMNS or name.startswith("image_")


@dataclass(frozen=True, kw_only=True)
class ServedPolicy:
    """What a caller must know of one policy."""

    contract: Contract
    cameras: tuple[str, ...]
    """That it reads, by role."""
    instructions: tuple[str, ...]
    num_frames: int
    stride: int = 1
    """Control steps from one of these frames to the next."""
    reads_object_masks: bool = False

    @staticmethod
    def of(model: InferenceModel) -> ServedPolicy:
        texts = tuple(text for text in model.instructions.vectors if text.strip())
        return ServedPolicy(
            contract=model.contract,
            cameras=model.roles,
            instructions=texts,
            num_frames=model.num_frames,
            stride=model.stride,
            reads_object_masks=model.reads_object_masks,
        )

    def description(self, address: str = ADDRESS) -> str:
        """The request format, this policy's own part of it, and a line to paste."""
        return "\n".join([REQUEST, "", *self.own_part(), "", "Try it, with a grey frame:", "", self.curl(address)])

    def own_part(self) -> list[str]:
        """Lines about this policy alone: frame size, data sets, dimensions with units, contract."""
        names = [dataset.name for dataset in self.contract.datasets]
        lines = [
            f"This policy was trained on frames of {self._frames()}; others are resized.",
            *(f"state of {d.name}: {d.state.described()}" for d in self.contract.datasets if d.state is not None),
            self._history(),
            "It reads an object mask: send object_box with the first frame of an episode."
            if self.reads_object_masks
            else "",
            f"dataset must be one of {', '.join(names)}." if len(names) > 1 else "",
            *(self._dimensions(number) for number in range(len(names))),
            f"contract: {self.contract.id}",
        ]
        return [line for line in lines if line]

    def _history(self) -> str:
        steps = f", {self.stride} steps from one to the next" if self.stride > 1 else ""
        return f"It looks at the last {self.num_frames} frames of a robot{steps}." if self.num_frames > 1 else ""

    def _frames(self) -> str:
        """Height x width, of each camera unless it is the main one alone."""
        recipes = [self.contract.recipe(role) for role in self.cameras]
        if self.cameras == (MAIN_CAMERA,):
            return f"{recipes[0].height}x{recipes[0].width}"
        return ", ".join(f"{recipe.height}x{recipe.width} of camera {recipe.camera}" for recipe in recipes)

    def _dimensions(self, number: int) -> str:
        dataset = self.contract.datasets[number]
        space, side = dataset.acted(self.contract.action)
        rows = zip(space.names, side.units, side.action_mask, strict=True)
        named = f"{dataset.name}: " + ", ".join(f"{name} ({unit})" for name, unit, there in rows if there)
        return textwrap.fill(named, 80, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)

    def sent(self) -> list[str]:
        """The cameras, by role, that a robot of the first data set has."""
        return [role for role in self.cameras if role not in self.contract.datasets[0].without_cameras]

    def state(self) -> dict[str, float]:
        """The mean state of a robot of the first data set; empty where the policy reads none."""
        state = self.contract.datasets[0].state
        return {} if state is None else dict(zip(state.recorded_names, state.statistics.mean, strict=True))

    def request(self) -> Mapping[str, object]:
        """A request that is answered."""
        frame = base64.b64encode(encode_png(np.full((16, 16, 3), 128, np.uint8))).decode()
        text = self.instructions[0] if self.instructions else "open the drawer"
        names = [dataset.name for dataset in self.contract.datasets]
        row: dict[str, object] = {of_role("image", role): frame for role in self.sent()}
        row |= {"state": self.state()} if self.state() else {}
        row |= {"object_box": EXAMPLE_BOX} if self.reads_object_masks else {}
        rows = [{**row, "instruction": text, "robot": "arm-1"}]
        return {"dataframe_records": rows} | ({"params": {"dataset": names[0]}} if len(names) > 1 else {})

    def curl(self, address: str = ADDRESS) -> str:
        """The request as a line for a POSIX shell."""
        body = shlex.quote(json.dumps(self.request(), ensure_ascii=False))
        return f"curl {shlex.quote(address)}/invocations -H 'Content-Type: application/json' -d {body}"

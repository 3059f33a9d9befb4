"""EDAN (a wheelchair's arm, 5 Hz): shared control, commanded poses as position and euler angles.

The action is described in the words of the state: a position, then yaw, pitch, roll as scipy's euler angles "zxy". Octo
feeds it as a change and inverts the gripper.
"""

from preprocessing.action_parts import Columns
from preprocessing.conversion.embeddings import USE_ENCODER
from preprocessing.dataset_spec import DatasetSpec, Proprio, Text
from preprocessing.provenance import FEATURES, OCTO, SHEET, Provenance
from rt_models.action_space import ActionSpace, SpaceDimension

_POSITION = ("position_x", "position_y", "position_z")
_ROTATION = ("euler_z", "euler_x", "euler_y")
_REST = ("gripper_closed",)

SPEC = DatasetSpec(
    name="dlr_edan_shared_control_converted_externally_to_rlds",
    cameras={"image": "observation/image"},
    instruction=Text(path="language_instruction"),
    embedding="language_embedding",
    embedding_encoder=USE_ENCODER,
    space=ActionSpace(
        name="pose-zxy-7d",
        dimensions=tuple(SpaceDimension(name=name) for name in (*_POSITION, *_ROTATION, *_REST)),
        gripper="1 is closed, 0 is open",
    ),
    action=(
        Columns(
            names=_POSITION, path="action", unit="unitless", kind="absolute", state=("state/x", "state/y", "state/z")
        ),
        Columns(
            names=_ROTATION,
            path="action",
            first=3,
            unit="unitless",
            kind="absolute",
            rotation="euler zxy",
            state=("state/euler_z", "state/euler_x", "state/euler_y"),
        ),
        Columns(names=_REST, path="action", first=6, unit="closedness", kind="absolute"),
    ),
    source_actions=("action",),
    gripper="absolute",
    control_hz=5,
    proprio=(
        Proprio(
            path="observation/state",
            names=("x", "y", "z", "euler_z", "euler_x", "euler_y", "value_6"),
            units=("unknown",) * 7,
        ),
    ),
    notes="The seventh value of state is not described; in action it is the gripper.",
)

PROVENANCE = Provenance(
    units=f"a pose of undocumented units, unitless: {FEATURES}",
    gripper=f"absolute, 1 = closed: {OCTO}, which inverts it",
    rate=SHEET,
    rotation=f'yaw, pitch, roll, scipy\'s as_euler("zxy"): {FEATURES}',
    unknown=(
        "units of the pose",
        "that the poses are places and not changes: the word position alone says so",
        "whether scipy's angles are about fixed or moving axes: lower case means fixed",
    ),
)

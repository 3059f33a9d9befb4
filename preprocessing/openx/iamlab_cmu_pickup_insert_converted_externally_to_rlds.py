"""IAMLab pick and insert (Franka, 20 Hz): commanded poses as position and quaternion.

Octo and OpenVLA put the quaternion's euler angles in the place of a rotation and read 1 as an open gripper; here the
pose stays what it is, in a space of its own.
"""

from preprocessing.action_parts import Columns
from preprocessing.conversion.embeddings import USE_ENCODER
from preprocessing.dataset_spec import DatasetSpec, Proprio, Text
from preprocessing.provenance import FEATURES, OCTO, SHEET, Provenance
from rt_models.action_space import ActionSpace, SpaceDimension

_POSITION = ("position_x", "position_y", "position_z")
_ROTATION = ("quaternion_0", "quaternion_1", "quaternion_2", "quaternion_3")
_REST = ("gripper_open",)

SPEC = DatasetSpec(
    name="iamlab_cmu_pickup_insert_converted_externally_to_rlds",
    cameras={"image": "observation/image", "wrist": "observation/wrist_image"},
    instruction=Text(path="language_instruction"),
    embedding="language_embedding",
    embedding_encoder=USE_ENCODER,
    space=ActionSpace(
        name="pose-quaternion-8d",
        dimensions=tuple(SpaceDimension(name=name) for name in (*_POSITION, *_ROTATION, *_REST)),
        gripper="1 is open, 0 is closed",
    ),
    action=(
        Columns(names=_POSITION, path="action", unit="unitless", kind="absolute"),
        Columns(names=_ROTATION, path="action", first=3, unit="unitless", kind="absolute", rotation="quaternion"),
        Columns(names=_REST, path="action", first=7, unit="openness", kind="absolute"),
    ),
    source_actions=("action",),
    gripper="absolute",
    control_hz=20,
    proprio=(
        Proprio(
            path="observation/state",
            names=(
                *(f"joint_{i}" for i in range(7)),
                "gripper",
                *(f"torque_{i}" for i in range(6)),
                *(f"force_{i}" for i in range(6)),
            ),
            units=("unknown",) * 20,
        ),
    ),
    notes="Octo feeds the euler angles of the pose as if they were a change.",
)

PROVENANCE = Provenance(
    units=f"a position and a quaternion, of undocumented units, unitless: {FEATURES}",
    gripper=f"absolute, 1 = open, unless Octo is wrong, which passes it on: {OCTO}",
    rate=SHEET,
    rotation=f"a quaternion: {FEATURES}",
    unknown=(
        "units of the pose",
        "that the poses are places and not changes: the word position alone says so",
        "order of the quaternion",
    ),
)

"""CMU Stretch (Hello Stretch, 10 Hz): kitchen tasks, poses, a binary gripper and an end in a flat action of 8.

Octo cuts the last value off and passes on the rest, reading 1 as an open gripper.
"""

from preprocessing.action_parts import Columns
from preprocessing.conversion.embeddings import USE_ENCODER
from preprocessing.dataset_spec import DatasetSpec, Proprio, Text
from preprocessing.provenance import FEATURES, OCTO, SHEET, Provenance
from rt_models.action_space import ActionSpace, SpaceDimension

_POSITION = ("position_x", "position_y", "position_z")
_ROTATION = ("rotation_0", "rotation_1", "rotation_2")
_REST = ("gripper_open", "terminate")

SPEC = DatasetSpec(
    name="cmu_stretch",
    cameras={"image": "observation/image"},
    instruction=Text(path="language_instruction"),
    embedding="language_embedding",
    embedding_encoder=USE_ENCODER,
    space=ActionSpace(
        name="pose-terminate-8d",
        dimensions=tuple(SpaceDimension(name=name) for name in (*_POSITION, *_ROTATION, *_REST)),
        gripper="1 is open, 0 is closed",
    ),
    action=(
        Columns(
            names=_POSITION, path="action", unit="unitless", kind="absolute", state=("state/x", "state/y", "state/z")
        ),
        Columns(names=_ROTATION, path="action", first=3, unit="unitless", kind="absolute", rotation="unknown"),
        Columns(names=_REST, path="action", first=6, unit="unitless", kind="absolute"),
    ),
    source_actions=("action",),
    gripper="absolute",
    control_hz=10,
    proprio=(Proprio(path="observation/state", names=("x", "y", "z", "gripper"), units=("unknown",) * 4),),
    notes="features.json calls the first three values of state joint angles/ee pos.",
)

PROVENANCE = Provenance(
    units=f"a pose of undocumented units, unitless: {FEATURES}",
    gripper=f"absolute and binary: {FEATURES}; 1 = open, unless Octo is wrong, which passes it on: {OCTO}",
    rate=SHEET,
    rotation=f"not documented: {FEATURES} says ee rot",
    unknown=(
        "units of the pose",
        "that the poses are places and not changes: the word position alone says so",
        "rotation convention",
        "range of gripper and terminate",
    ),
)

"""Franka play (3 Hz): a robot left to play with toy kitchens, seen by two cameras.

The flat action is 7 joint velocities, a delta of x, y, z, one of roll, pitch, yaw, the gripper's position and the end
of the episode. Octo clips the gripper to 0..1 and reads 1 as open: its sign is known, its range is not. Octo blanks the
instructions.
"""

from preprocessing.conversion.embeddings import USE_ENCODER
from preprocessing.dataset_spec import Always, DatasetSpec, Linear, Proprio, Text
from preprocessing.flat_actions import TerminateAt
from preprocessing.provenance import FEATURES, OCTO, SHEET, Provenance

SPEC = DatasetSpec(
    name="nyu_franka_play_dataset_converted_externally_to_rlds",
    cameras={"image": "observation/image", "additional": "observation/image_additional_view"},
    instruction=Text(path="language_instruction"),
    embedding="language_embedding",
    embedding_encoder=USE_ENCODER,
    action=(
        TerminateAt(path="action", place=14),
        Linear(group="world_vector", path="action", first=7, unit="unitless"),
        Linear(group="rotation_delta", path="action", first=10, unit="unitless"),
        Linear(group="gripper_closedness_action", path="action", first=13, scale=-1, unit="unitless"),
    ),
    source_actions=("action",),
    gripper="absolute",
    control_hz=3,
    proprio=(
        Proprio(
            path="observation/state",
            names=(*(f"joint_{i}" for i in range(7)), "x", "y", "z", "roll", "pitch", "yaw"),
            units=("unknown",) * 13,
        ),
    ),
    flags=(Always(name="uninformative_instruction"),),
)

PROVENANCE = Provenance(
    units=f"deltas of undocumented scale, unitless: {FEATURES}",
    gripper=f"absolute, the larger the more open: {OCTO}",
    rate=SHEET,
    rotation=f"roll, pitch, yaw: {FEATURES}",
    unknown=("scale of the deltas", "range of the gripper: Octo clips it to 0..1", "units of the state"),
)

"""Dobb-E (a hand-held stick with a phone, filed as a Hello Stretch, 3.75 Hz): demonstrations in 22 homes of New York.

One camera, at the wrist. The flat action is passed on by OpenVLA as it is: a change of place, a change of rotation, and
the gripper.
"""

from preprocessing.conversion.embeddings import USE_ENCODER
from preprocessing.dataset_spec import DatasetSpec, Linear, Proprio, Text
from preprocessing.provenance import CATALOGUE, OPENVLA, SHEET, Provenance

SPEC = DatasetSpec(
    name="dobbe",
    cameras={"image": "observation/wrist_image"},
    instruction=Text(path="language_instruction"),
    embedding="language_embedding",
    embedding_encoder=USE_ENCODER,
    action=(
        Linear(group="world_vector", path="action", unit="unitless"),
        Linear(group="rotation_delta", path="action", first=3, unit="unitless"),
        Linear(group="gripper_closedness_action", path="action", first=6, scale=-2, offset=1, unit="closedness"),
    ),
    source_actions=("action",),
    gripper="absolute",
    control_hz=3.75,
    proprio=(
        Proprio(path="observation/xyz", names=("x", "y", "z"), units=("unknown",) * 3),
        Proprio(path="observation/rot", names=("rot_0", "rot_1", "rot_2"), units=("unknown",) * 3),
        Proprio(path="observation/gripper", names=("gripper",), units=("unknown",)),
    ),
)

PROVENANCE = Provenance(
    units=f"changes of undocumented scale, unitless: {CATALOGUE} has no word on the action",
    gripper=f"absolute, 1 = open, unless OpenVLA is wrong, which passes it on: {OPENVLA}",
    rate=SHEET,
    rotation=f"not documented; OpenVLA reads euler angles: {OPENVLA}",
    unknown=(
        "scale of the changes",
        "rotation convention",
        "encoder of the shipped vectors: taken to be that of the other sets",
        "features.json was not at hand",
    ),
)

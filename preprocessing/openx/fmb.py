"""FMB (Franka, 10 Hz): functional manipulation, pegs and boards, from two sides and two wrist cameras.

OpenVLA calls the set fmb_dataset, and passes its flat action on as it is. The authors' own files hold the pictures as
BGR; whether the release turned them is not documented, which the audit's colours can tell.
"""

from preprocessing.dataset_spec import DatasetSpec, Linear, Proprio, Text
from preprocessing.provenance import CATALOGUE, OPENVLA, SHEET, Provenance

SPEC = DatasetSpec(
    name="fmb",
    cameras={
        "image": "observation/image_side_1",
        "right": "observation/image_side_2",
        "wrist": "observation/image_wrist_1",
        "wrist_2": "observation/image_wrist_2",
    },
    instruction=Text(path="language_instruction"),
    action=(
        Linear(group="world_vector", path="action", unit="unitless"),
        Linear(group="rotation_delta", path="action", first=3, unit="unitless"),
        Linear(group="gripper_closedness_action", path="action", first=6, scale=-2, offset=1, unit="closedness"),
    ),
    source_actions=("action",),
    gripper="absolute",
    control_hz=10,
    proprio=(
        Proprio(
            path="observation/eef_pose",
            names=("x", "y", "z", "quaternion_0", "quaternion_1", "quaternion_2", "quaternion_3"),
            units=("unknown",) * 7,
        ),
        Proprio(path="observation/state_gripper_pose", names=("gripper",), units=("unknown",)),
    ),
)

PROVENANCE = Provenance(
    units=f"commands of undocumented scale, unitless: {CATALOGUE} has no word on the action",
    gripper=f"absolute, 1 = open, unless OpenVLA is wrong, which passes it on: {OPENVLA}",
    rate=SHEET,
    rotation=f"not documented: {CATALOGUE}",
    unknown=(
        "scale of the commands",
        "rotation convention",
        "whether the pictures are BGR, as in the authors' own files (the card of charlesxu0124/"
        "functional-manipulation-benchmark)",
        "features.json was not at hand",
    ),
)

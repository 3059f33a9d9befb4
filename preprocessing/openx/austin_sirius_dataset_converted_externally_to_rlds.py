"""SIRIUS (Franka, 20 Hz): demonstrations, autonomous steps and human interventions on a table top.

The flat action is a relative position, a relative rotation and the gripper. `action_mode` tells who acts (-1 first
demonstrations, 0 the robot, 1 an intervention); `intv_label` marks the 15 steps before an intervention with -10.
Octo blanks the instructions.
"""

from preprocessing.conversion.embeddings import USE_ENCODER
from preprocessing.dataset_spec import Always, DatasetSpec, Equals, Linear, Proprio, Text
from preprocessing.provenance import FEATURES, OCTO, SHEET, Provenance

SPEC = DatasetSpec(
    name="austin_sirius_dataset_converted_externally_to_rlds",
    cameras={"image": "observation/image", "wrist": "observation/wrist_image"},
    instruction=Text(path="language_instruction"),
    embedding="language_embedding",
    embedding_encoder=USE_ENCODER,
    action=(
        Linear(group="world_vector", path="action", unit="unitless"),
        Linear(group="rotation_delta", path="action", first=3, unit="unitless"),
        Linear(group="gripper_closedness_action", path="action", first=6, unit="unitless"),
    ),
    source_actions=("action",),
    gripper="absolute",
    control_hz=20,
    proprio=(
        Proprio(path="observation/state_joint", names=tuple(f"joint_{i}" for i in range(7)), units=("unknown",) * 7),
        Proprio(path="observation/state_gripper", names=("width",), units=("m",)),
        Proprio(
            path="observation/state_ee", names=tuple(f"pose_{i}" for i in range(16)), units=("homogeneous matrix",) * 16
        ),
    ),
    flags=(
        Always(name="uninformative_instruction"),
        Equals(name="autonomous", path="action_mode", value=0),
        Equals(name="intervention", path="action_mode", value=1),
        Equals(name="before_intervention", path="intv_label", value=-10),
    ),
)

PROVENANCE = Provenance(
    units=f"deltas of undocumented scale, unitless: {FEATURES}",
    gripper=f"absolute, the larger the more closed: {OCTO}, which inverts it",
    rate=SHEET,
    rotation="not documented",
    unknown=("scale of the deltas", "rotation convention", "range of the gripper: Octo clips it to 0..1"),
)

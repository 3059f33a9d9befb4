"""SAILOR (Franka, 20 Hz): setting a table.

The flat action is a relative position, a relative rotation and the gripper. Octo blanks the instructions.
"""

from preprocessing.conversion.embeddings import USE_ENCODER
from preprocessing.dataset_spec import Always, DatasetSpec, Linear, Proprio, Text
from preprocessing.provenance import FEATURES, OCTO, SHEET, Provenance

SPEC = DatasetSpec(
    name="austin_sailor_dataset_converted_externally_to_rlds",
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
        Proprio(
            path="observation/state", names=("x", "y", "z", "qx", "qy", "qz", "qw", "gripper"), units=("unknown",) * 8
        ),
        Proprio(path="observation/state_joint", names=tuple(f"joint_{i}" for i in range(7)), units=("unknown",) * 7),
        Proprio(path="observation/state_gripper", names=("width",), units=("m",)),
    ),
    flags=(Always(name="uninformative_instruction"),),
    notes="The order of the quaternion is not documented; x, y, z, w is what its columns are called here.",
)

PROVENANCE = Provenance(
    units=f"deltas of undocumented scale, unitless: {FEATURES}",
    gripper=f"absolute, the larger the more closed: {OCTO}, which inverts it",
    rate=SHEET,
    rotation="not documented",
    unknown=("scale of the deltas", "rotation convention", "range of the gripper: Octo clips it to 0..1"),
)

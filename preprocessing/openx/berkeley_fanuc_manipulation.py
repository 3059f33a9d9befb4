"""Fanuc manipulation (Fanuc Mate, 10 Hz).

The flat action is a change of x, y, z and of roll, pitch, yaw. No gripper command is recorded: Octo and OpenVLA put the
measured gripper in its place, here the dimension is absent. Both cameras are stored as BGR.
"""

from preprocessing.conversion.embeddings import USE_ENCODER
from preprocessing.dataset_spec import Always, DatasetSpec, Linear, Proprio, Text
from preprocessing.provenance import FEATURES, OCTO, SHEET, Provenance

SPEC = DatasetSpec(
    name="berkeley_fanuc_manipulation",
    cameras={"image": "observation/image", "wrist": "observation/wrist_image"},
    instruction=Text(path="language_instruction"),
    embedding="language_embedding",
    embedding_encoder=USE_ENCODER,
    action=(
        Linear(group="world_vector", path="action", unit="unitless"),
        Linear(group="rotation_delta", path="action", first=3, unit="unitless"),
    ),
    source_actions=("action",),
    gripper="none",
    control_hz=10,
    proprio=(
        Proprio(
            path="observation/state",
            names=(*(f"joint_{i}" for i in range(6)), "gripper", *(f"joint_velocity_{i}" for i in range(6))),
            units=("unknown",) * 13,
        ),
        Proprio(
            path="observation/end_effector_state",
            names=("x", "y", "z", "quaternion_0", "quaternion_1", "quaternion_2", "quaternion_3"),
            units=("unknown",) * 7,
        ),
    ),
    flags=(Always(name="bgr_images"),),
    notes="Both cameras are stored as BGR (rlds_dataset_mod, prepare_open_x.sh).",
)

PROVENANCE = Provenance(
    units=f"changes of undocumented scale, unitless: {FEATURES}",
    gripper=f"not recorded: {OCTO} says so",
    rate=SHEET,
    rotation=f"roll, pitch, yaw: {FEATURES}",
    unknown=(
        "scale of the action",
        "sign of the measured gripper: features.json calls it open status, Octo reads 1 as closed",
        "order of the quaternion",
    ),
)

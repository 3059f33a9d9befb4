"""HYDRA (Franka, 10 Hz): long-horizon tasks of waypoints and dense motion.

The flat action is a positional delta, an orientation delta in euler angles and "close gripper". `is_dense` tells dense
steps from waypoints. Both cameras are stored as BGR. Octo blanks the instructions.
"""

from preprocessing.conversion.embeddings import USE_ENCODER
from preprocessing.dataset_spec import Always, DatasetSpec, Equals, Linear, Proprio, Text
from preprocessing.provenance import FEATURES, OCTO, SHEET, Provenance

SPEC = DatasetSpec(
    name="stanford_hydra_dataset_converted_externally_to_rlds",
    cameras={"image": "observation/image", "wrist": "observation/wrist_image"},
    instruction=Text(path="language_instruction"),
    embedding="language_embedding",
    embedding_encoder=USE_ENCODER,
    action=(
        Linear(group="world_vector", path="action", unit="unitless"),
        Linear(group="rotation_delta", path="action", first=3, unit="unitless"),
        Linear(group="gripper_closedness_action", path="action", first=6, scale=2, offset=-1, unit="closedness"),
    ),
    source_actions=("action",),
    gripper="absolute",
    control_hz=10,
    proprio=(
        Proprio(
            path="observation/state",
            names=(
                "x",
                "y",
                "z",
                "qx",
                "qy",
                "qz",
                "qw",
                "euler_0",
                "euler_1",
                "euler_2",
                *(f"joint_{i}" for i in range(7)),
                *(f"joint_velocity_{i}" for i in range(7)),
                *(f"gripper_{i}" for i in range(3)),
            ),
            units=("unknown",) * 27,
        ),
    ),
    flags=(
        Always(name="uninformative_instruction"),
        Always(name="bgr_images"),
        Equals(name="dense", path="is_dense", value=1),
    ),
    notes="Both cameras are stored as BGR (rlds_dataset_mod, prepare_open_x.sh).",
)

PROVENANCE = Provenance(
    units=f"deltas of undocumented scale, unitless: {FEATURES}",
    gripper=f"absolute, 1 = closed, 0 = open: {FEATURES}; {OCTO}",
    rate=SHEET,
    rotation=f"euler angles of undocumented order: {FEATURES}",
    unknown=("scale of the deltas", "order of the euler angles"),
)

"""Berkeley Autolab UR5 (5 Hz).

Source: features.json of version 0.1.0; octo-models/octo 241fb35 `octo/data/oxe/oxe_standardization_transforms.py`;
google-deepmind/open_x_embodiment 9eeb68b9 `colabs/Minimal_Training_Example.ipynb`. The gripper is relative.
"""

from preprocessing.conversion.embeddings import USE_ENCODER
from preprocessing.dataset_spec import (
    OXE_EMBEDDING,
    OXE_INSTRUCTION,
    DatasetSpec,
    Linear,
    Proprio,
    Terminate,
)
from preprocessing.provenance import FEATURES, SHEET, Provenance

SPEC = DatasetSpec(
    name="berkeley_autolab_ur5",
    cameras={"image": "observation/image", "hand": "observation/hand_image"},
    instruction=OXE_INSTRUCTION,
    embedding=OXE_EMBEDDING,
    embedding_encoder=USE_ENCODER,
    action=(
        Terminate(path="action/terminate_episode"),
        Linear(group="world_vector", path="action/world_vector", unit="m"),
        Linear(group="rotation_delta", path="action/rotation_delta", unit="rad"),
        Linear(group="gripper_closedness_action", path="action/gripper_closedness_action", unit="closedness"),
    ),
    source_actions=(
        "action/terminate_episode",
        "action/world_vector",
        "action/rotation_delta",
        "action/gripper_closedness_action",
    ),
    gripper="relative",
    control_hz=5,
    proprio=(
        Proprio(
            path="observation/robot_state",
            names=(
                *(f"joint_{i}" for i in range(6)),
                "x",
                "y",
                "z",
                "qx",
                "qy",
                "qz",
                "qw",
                "gripper_closed",
                "blocked",
            ),
            units=("rad",) * 6 + ("m",) * 3 + ("quaternion",) * 4 + ("closedness", "flag"),
        ),
    ),
    notes="The camera `hand` is stored as BGR.",
)

PROVENANCE = Provenance(
    units=f"changes of x, y, z and of roll, pitch, yaw: {FEATURES}; that they are in m and rad is not written",
    gripper=f"relative, 1 closes, -1 opens, 0 leaves it: {FEATURES}",
    rate=SHEET,
    rotation=f"roll, pitch, yaw: {FEATURES}",
    unknown=("units of the action: m and rad are taken",),
)

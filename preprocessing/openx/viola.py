"""VIOLA (Franka, 20 Hz).

Source: features.json of version 0.1.0; octo-models/octo 241fb35 `octo/data/oxe/oxe_standardization_transforms.py`;
google-deepmind/open_x_embodiment 9eeb68b9 `colabs/Minimal_Training_Example.ipynb`. Actions are commands within +-1 and
+-0.4 of undocumented scale; the gripper is absolute, and 0 in it is padding.
"""

from preprocessing.conversion.embeddings import USE_ENCODER
from preprocessing.dataset_spec import (
    OXE_EMBEDDING,
    OXE_INSTRUCTION,
    Always,
    DatasetSpec,
    Equals,
    Linear,
    Proprio,
    Terminate,
)
from preprocessing.provenance import NOTEBOOK, OCTO, SHEET, Provenance

SPEC = DatasetSpec(
    name="viola",
    cameras={"image": "observation/agentview_rgb", "wrist": "observation/eye_in_hand_rgb"},
    instruction=OXE_INSTRUCTION,
    embedding=OXE_EMBEDDING,
    embedding_encoder=USE_ENCODER,
    action=(
        Terminate(path="action/terminate_episode"),
        Linear(group="world_vector", path="action/world_vector", unit="unitless"),
        Linear(group="rotation_delta", path="action/rotation_delta", unit="unitless"),
        Linear(group="gripper_closedness_action", path="action/gripper_closedness_action", unit="closedness"),
    ),
    source_actions=(
        "action/terminate_episode",
        "action/world_vector",
        "action/rotation_delta",
        "action/gripper_closedness_action",
    ),
    gripper="absolute",
    control_hz=20,
    proprio=(
        Proprio(path="observation/joint_states", names=tuple(f"joint_{i}" for i in range(7)), units=("rad",) * 7),
        Proprio(path="observation/gripper_states", names=("width",), units=("m",)),
        Proprio(
            path="observation/ee_states",
            names=tuple(f"pose_{i}" for i in range(16)),
            units=("homogeneous matrix",) * 16,
        ),
    ),
    flags=(
        Always(name="uninformative_instruction"),
        Equals(name="gripper_padding", path="action/gripper_closedness_action", value=0),
    ),
)

PROVENANCE = Provenance(
    units=f"commands within +-1 and +-0.4 of undocumented scale, unitless: {NOTEBOOK}",
    gripper=f"absolute, 1 close, -1 open, 0 is padding: {NOTEBOOK}; {OCTO}",
    rate=SHEET,
    rotation="not documented",
    unknown=("scale of the commands", "rotation convention"),
)

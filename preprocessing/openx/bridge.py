"""BridgeData V2 (WidowX, 5 Hz) as first released in Open X-Embodiment; its authors' own bridge_dataset is newer.

Source: features.json of version 0.1.0; octo-models/octo 241fb35 `octo/data/oxe/oxe_standardization_transforms.py`;
google-deepmind/open_x_embodiment 9eeb68b9 `colabs/Minimal_Training_Example.ipynb`. `open_gripper` is a boolean.
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
from preprocessing.provenance import FEATURES, OCTO, SHEET, Provenance

SPEC = DatasetSpec(
    name="bridge",
    cameras={"image": "observation/image"},
    instruction=OXE_INSTRUCTION,
    embedding=OXE_EMBEDDING,
    embedding_encoder=USE_ENCODER,
    action=(
        Terminate(path="action/terminate_episode"),
        Linear(group="world_vector", path="action/world_vector", unit="m"),
        Linear(group="rotation_delta", path="action/rotation_delta", unit="rad"),
        Linear(group="gripper_closedness_action", path="action/open_gripper", scale=-2, offset=1, unit="closedness"),
    ),
    source_actions=(
        "action/terminate_episode",
        "action/world_vector",
        "action/rotation_delta",
        "action/open_gripper",
    ),
    gripper="absolute",
    control_hz=5,
    proprio=(
        Proprio(
            path="observation/state",
            names=("x", "y", "z", "roll", "pitch", "yaw", "gripper"),
            units=("m", "m", "m", "rad", "rad", "rad", "openness"),
        ),
    ),
    notes="Outdated: bridge_dataset holds more episodes. Instructions may be empty.",
)

PROVENANCE = Provenance(
    units="m and rad: BridgeData V2, whose first conversion this is",
    gripper=f"absolute, open_gripper is a truth value: {FEATURES}; {OCTO}",
    rate=SHEET,
    rotation="roll, pitch, yaw: BridgeData V2",
)

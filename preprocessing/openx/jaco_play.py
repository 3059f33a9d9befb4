"""Jaco Play (Jaco 2, 10 Hz): translation and gripper, no rotation.

Source: features.json of version 0.1.0; octo-models/octo 241fb35 `octo/data/oxe/oxe_standardization_transforms.py`;
google-deepmind/open_x_embodiment 9eeb68b9 `colabs/Minimal_Training_Example.ipynb`. The gripper is relative; the unit of
the translation is not documented.
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
from preprocessing.provenance import OCTO, SHEET, Provenance

SPEC = DatasetSpec(
    name="jaco_play",
    cameras={"image": "observation/image", "wrist": "observation/image_wrist"},
    instruction=OXE_INSTRUCTION,
    embedding=OXE_EMBEDDING,
    embedding_encoder=USE_ENCODER,
    action=(
        Terminate(path="action/terminate_episode"),
        Linear(group="world_vector", path="action/world_vector", unit="unitless"),
        Linear(group="gripper_closedness_action", path="action/gripper_closedness_action", unit="closedness"),
    ),
    source_actions=(
        "action/terminate_episode",
        "action/world_vector",
        "action/gripper_closedness_action",
    ),
    gripper="relative",
    control_hz=10,
    proprio=(
        Proprio(
            path="observation/end_effector_cartesian_pos",
            names=("x", "y", "z", "roll", "pitch", "yaw", "gripper"),
            units=("m", "m", "m", "rad", "rad", "rad", "unitless"),
        ),
        Proprio(path="observation/joint_pos", names=tuple(f"joint_{i}" for i in range(8)), units=("rad",) * 8),
    ),
)

PROVENANCE = Provenance(
    units="not documented: unitless",
    gripper=f"relative, +1 closes: {OCTO}",
    rate=SHEET,
    rotation="none: the action has no rotation",
    unknown=("scale of the translation",),
)

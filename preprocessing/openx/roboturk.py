"""RoboTurk (Sawyer, 10 Hz), teleoperated by telephone.

Source: features.json of version 0.1.0; octo-models/octo 241fb35 `octo/data/oxe/oxe_standardization_transforms.py`;
google-deepmind/open_x_embodiment 9eeb68b9 `colabs/Minimal_Training_Example.ipynb`. The gripper is absolute; there is no
proprioception and no documented scale.
"""

from preprocessing.conversion.embeddings import USE_ENCODER
from preprocessing.dataset_spec import (
    OXE_EMBEDDING,
    OXE_INSTRUCTION,
    Always,
    DatasetSpec,
    Linear,
    Terminate,
)
from preprocessing.provenance import OCTO, SHEET, Provenance

SPEC = DatasetSpec(
    name="roboturk",
    cameras={"image": "observation/front_rgb"},
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
    control_hz=10,
    flags=(Always(name="uninformative_instruction"),),
)

PROVENANCE = Provenance(
    units="not documented: unitless",
    gripper=f"absolute, 1 = closed: {OCTO}",
    rate=SHEET,
    rotation="not documented",
    unknown=("scale of the action", "rotation convention"),
)

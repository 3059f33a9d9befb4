"""Door opening (Hello Stretch, 3 Hz), seen from the wrist.

Source: features.json of version 0.1.0; octo-models/octo 241fb35 `octo/data/oxe/oxe_standardization_transforms.py`;
google-deepmind/open_x_embodiment 9eeb68b9 `colabs/Minimal_Training_Example.ipynb`. The action is a velocity of
undocumented scale, about +-0.07; the gripper is relative; there is no proprioception.
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
from preprocessing.provenance import FEATURES, OCTO, SHEET, Provenance

SPEC = DatasetSpec(
    name="nyu_door_opening_surprising_effectiveness",
    cameras={"image": "observation/image"},
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
    gripper="relative",
    control_hz=3,
    flags=(Always(name="uninformative_instruction"),),
)

PROVENANCE = Provenance(
    units=f"velocities of undocumented scale, unitless: {FEATURES}",
    gripper=f"relative, +1 closes: {OCTO}",
    rate=SHEET,
    rotation=f"angular velocities about x, y and z: {FEATURES}",
    unknown=("scale of the velocities",),
)

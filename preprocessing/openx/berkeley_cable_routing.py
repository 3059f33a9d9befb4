"""Cable Routing (Franka, 10 Hz): velocities, no gripper.

Source: features.json of version 0.1.0; octo-models/octo 241fb35 `octo/data/oxe/oxe_standardization_transforms.py`;
google-deepmind/open_x_embodiment 9eeb68b9 `colabs/Minimal_Training_Example.ipynb`. The action is a linear velocity and
an angular velocity about z, of undocumented scale.
"""

from preprocessing.conversion.embeddings import USE_ENCODER
from preprocessing.dataset_spec import (
    OXE_EMBEDDING,
    OXE_INSTRUCTION,
    Always,
    DatasetSpec,
    Linear,
    Proprio,
    Terminate,
)
from preprocessing.provenance import FEATURES, SHEET, Provenance

SPEC = DatasetSpec(
    name="berkeley_cable_routing",
    cameras={
        "image": "observation/image",
        "top": "observation/top_image",
        "wrist45": "observation/wrist45_image",
        "wrist225": "observation/wrist225_image",
    },
    instruction=OXE_INSTRUCTION,
    embedding=OXE_EMBEDDING,
    embedding_encoder=USE_ENCODER,
    action=(
        Terminate(path="action/terminate_episode"),
        Linear(group="world_vector", path="action/world_vector", unit="unitless"),
        Linear(group="rotation_delta", path="action/rotation_delta", unit="unitless"),
    ),
    source_actions=(
        "action/terminate_episode",
        "action/world_vector",
        "action/rotation_delta",
    ),
    gripper="none",
    control_hz=10,
    proprio=(Proprio(path="observation/robot_state", names=tuple(f"joint_{i}" for i in range(7)), units=("rad",) * 7),),
    flags=(Always(name="uninformative_instruction"),),
)

PROVENANCE = Provenance(
    units=f"velocities of undocumented scale, unitless: {FEATURES}",
    gripper=f"none: {FEATURES}",
    rate=SHEET,
    rotation=f"an angular velocity about z: {FEATURES}",
    unknown=("scale of the velocities",),
)

"""TOTO (Franka, 30 Hz): scooping and pouring.

Source: octo-models/octo 241fb35 `octo/data/oxe/oxe_standardization_transforms.py`; google-deepmind/open_x_embodiment
9eeb68b9 `colabs/Minimal_Training_Example.ipynb`; no features.json was at hand. `open_gripper` is a boolean; the action
has no documented scale.
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
from preprocessing.provenance import OCTO, SHEET, Provenance

SPEC = DatasetSpec(
    name="toto",
    cameras={"image": "observation/image"},
    instruction=OXE_INSTRUCTION,
    embedding=OXE_EMBEDDING,
    embedding_encoder=USE_ENCODER,
    action=(
        Terminate(path="action/terminate_episode"),
        Linear(group="world_vector", path="action/world_vector", unit="unitless"),
        Linear(group="rotation_delta", path="action/rotation_delta", unit="unitless"),
        Linear(group="gripper_closedness_action", path="action/open_gripper", scale=-2, offset=1, unit="closedness"),
    ),
    source_actions=(
        "action/terminate_episode",
        "action/world_vector",
        "action/rotation_delta",
        "action/open_gripper",
    ),
    gripper="absolute",
    control_hz=30,
    proprio=(Proprio(path="observation/state", names=tuple(f"joint_{i}" for i in range(7)), units=("rad",) * 7),),
    flags=(Always(name="uninformative_instruction"),),
    notes="RT-1-X fed open_gripper as closedness, that is with the opposite sign.",
)

PROVENANCE = Provenance(
    units="not documented: unitless",
    gripper=f"absolute, open_gripper is a truth value: {OCTO}",
    rate=SHEET,
    rotation="not documented",
    unknown=("scale of the action", "rotation convention", "features.json was not at hand"),
)

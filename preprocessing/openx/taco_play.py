"""Task-Agnostic Robot Play (Franka, 15 Hz).

Source: features.json of version 0.1.0; octo-models/octo 241fb35 `octo/data/oxe/oxe_standardization_transforms.py`;
google-deepmind/open_x_embodiment 9eeb68b9 `colabs/Minimal_Training_Example.ipynb`. Of three recorded actions the
relative one in the robot's base frame is canonical; its scale is not documented. The source's rotations are yaw, pitch,
roll; the canonical ones are roll, pitch, yaw, as everywhere.
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
from preprocessing.flat_actions import Reordered
from preprocessing.provenance import FEATURES, SHEET, Provenance

SPEC = DatasetSpec(
    name="taco_play",
    cameras={"image": "observation/rgb_static", "gripper": "observation/rgb_gripper"},
    instruction=OXE_INSTRUCTION,
    embedding=OXE_EMBEDDING,
    embedding_encoder=USE_ENCODER,
    action=(
        Terminate(path="action/terminate_episode"),
        Linear(group="world_vector", path="action/rel_actions_world", unit="unitless"),
        Reordered(group="rotation_delta", path="action/rel_actions_world", unit="unitless", places=(5, 4, 3)),
        Linear(group="gripper_closedness_action", path="action/rel_actions_world", first=6, unit="closedness"),
    ),
    source_actions=(
        "action/terminate_episode",
        "action/rel_actions_world",
        "action/rel_actions_gripper",
        "action/actions",
    ),
    gripper="absolute",
    control_hz=15,
    proprio=(
        Proprio(
            path="observation/robot_obs",
            names=(
                "x",
                "y",
                "z",
                "euler_0",
                "euler_1",
                "euler_2",
                "width",
                *(f"joint_{i}" for i in range(7)),
                "gripper_action",
            ),
            units=("m",) * 3 + ("rad",) * 3 + ("m",) + ("rad",) * 7 + ("closedness",),
        ),
    ),
    notes="Gripper sign: features.json says -1 open, 1 close, as taken here; Octo and OpenVLA read 1 as open. "
    "RT-1-X trained on the absolute `actions` instead, in the source's order: yaw, pitch, roll.",
)

PROVENANCE = Provenance(
    units="not documented: unitless",
    gripper=f"absolute, -1 open, +1 close: {FEATURES}",
    rate=SHEET,
    rotation=f"yaw, pitch, roll in the source: {FEATURES}; filed as roll, pitch, yaw here",
    unknown=(
        "scale of the relative action",
        "gripper: Octo and OpenVLA read 1 as open",
        "order of the measured euler angles",
    ),
    corrected="rotation_delta was filed as yaw, pitch, roll and is roll, pitch, yaw since: a model that was trained on "
    "a store of the earlier spec turns about other axes",
)

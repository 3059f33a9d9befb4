"""QT-Opt grasping (KUKA iiwa, 10 Hz), in RT-1's action keys; several fields are zlib-compressed tensors.

Source: features.json of version 0.1.0; octo-models/octo 241fb35 `octo/data/oxe/oxe_standardization_transforms.py`;
google-deepmind/open_x_embodiment 9eeb68b9 `colabs/Minimal_Training_Example.ipynb`. The gripper is relative. Most
attempts fail: Octo and OpenVLA keep only episodes with `success`, here a flag.
"""

from preprocessing.conversion.embeddings import USE_ENCODER
from preprocessing.dataset_spec import (
    OXE_EMBEDDING,
    OXE_INSTRUCTION,
    RT1_ACTION,
    Always,
    DatasetSpec,
    Equals,
    Proprio,
)
from preprocessing.provenance import OCTO, SHEET, Provenance

SPEC = DatasetSpec(
    name="kuka",
    cameras={"image": "observation/image"},
    instruction=OXE_INSTRUCTION,
    embedding=OXE_EMBEDDING,
    embedding_encoder=USE_ENCODER,
    action=RT1_ACTION,
    source_actions=tuple(part.path for part in RT1_ACTION),
    gripper="relative",
    control_hz=10,
    proprio=(
        Proprio(
            path="observation/clip_function_input/base_pose_tool_reached",
            names=("x", "y", "z", "qx", "qy", "qz", "qw"),
            units=("m", "m", "m", "quaternion", "quaternion", "quaternion", "quaternion"),
        ),
        Proprio(path="observation/gripper_closed", names=("closed",), units=("closedness",)),
    ),
    flags=(Equals(name="failure", path="success", value=False), Always(name="uninformative_instruction")),
)

PROVENANCE = Provenance(
    units="not documented; m and rad, as of RT-1 whose keys it has",
    gripper=f"relative, +1 closes: {OCTO}",
    rate=SHEET,
    rotation="not documented; roll, pitch, yaw, as of RT-1",
    unknown=("units of the action", "rotation convention"),
)

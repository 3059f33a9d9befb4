"""RT-1's own data (Google Robot, 3 Hz): the dataset whose action space is the canonical one.

Source: features.json of version 0.1.0; google-research/robotics_transformer 4569641b `tokenizers/action_tokenizer.py`;
google-deepmind/open_x_embodiment 9eeb68b9 `colabs/Minimal_Training_Example.ipynb`. The gripper is relative: +1 closes,
-1 opens, 0 leaves it. `orientation_box` holds infinities and is no part of proprioception here.
"""

from preprocessing.conversion.embeddings import USE_ENCODER
from preprocessing.dataset_spec import (
    OXE_EMBEDDING,
    OXE_INSTRUCTION,
    RT1_ACTION,
    DatasetSpec,
    Equals,
    Proprio,
)
from preprocessing.provenance import FEATURES, OCTO, SHEET, Provenance

SPEC = DatasetSpec(
    name="fractal20220817_data",
    cameras={"image": "observation/image"},
    instruction=OXE_INSTRUCTION,
    embedding=OXE_EMBEDDING,
    embedding_encoder=USE_ENCODER,
    action=RT1_ACTION,
    source_actions=tuple(part.path for part in RT1_ACTION),
    gripper="relative",
    control_hz=3,
    proprio=(
        Proprio(
            path="observation/base_pose_tool_reached",
            names=("x", "y", "z", "qx", "qy", "qz", "qw"),
            units=("m", "m", "m", "quaternion", "quaternion", "quaternion", "quaternion"),
        ),
        Proprio(path="observation/gripper_closed", names=("closed",), units=("closedness",)),
        Proprio(path="observation/height_to_bottom", names=("height",), units=("m",)),
    ),
    flags=(Equals(name="undesirable", path="aspects/undesirable", value=True),),
)

PROVENANCE = Provenance(
    units="m and rad: RT-1 acts in them, google-deepmind/open_x_embodiment 9eeb68b9, models/rt1.py",
    gripper=f"relative, +1 closes: {OCTO}",
    rate=SHEET,
    rotation="roll, pitch, yaw in the frame of the base: " + FEATURES,
)

"""BridgeData V2 (WidowX, 5 Hz) as converted by its authors to RLDS, called bridge_orig by Octo and OpenVLA.

Source: octo-models/octo 241fb35 `octo/data/oxe/oxe_standardization_transforms.py`; openvla/openvla c8f03f48
`prismatic/vla/datasets/rlds/oxe/transforms.py`. The flat action is [dx, dy, dz (m), droll, dpitch, dyaw (rad),
gripper], the gripper absolute with 1 = open. There is no terminate dimension.
"""

from preprocessing.conversion.embeddings import USE_ENCODER
from preprocessing.dataset_spec import DatasetSpec, FirstActionZero, Linear, Proprio, Text
from preprocessing.provenance import OCTO, SHEET, Provenance

SPEC = DatasetSpec(
    name="bridge_dataset",
    cameras={
        "image": "observation/image_0",
        "1": "observation/image_1",
        "2": "observation/image_2",
        "3": "observation/image_3",
    },
    instruction=Text(path="language_instruction"),
    embedding="language_embedding",
    embedding_encoder=USE_ENCODER,
    action=(
        Linear(group="world_vector", path="action", unit="m"),
        Linear(group="rotation_delta", path="action", first=3, unit="rad"),
        Linear(group="gripper_closedness_action", path="action", first=6, scale=-2, offset=1, unit="closedness"),
    ),
    source_actions=("action",),
    gripper="absolute",
    control_hz=5,
    proprio=(
        Proprio(
            path="observation/state",
            names=("x", "y", "z", "roll", "pitch", "yaw", "gripper"),
            units=("m", "m", "m", "rad", "rad", "rad", "openness"),
        ),
    ),
    flags=(FirstActionZero(path="action", width=6),),
    notes="The first action of an episode is zero. has_image_0..3 may be False although the images are there.",
)

PROVENANCE = Provenance(
    units="m and rad: BridgeData V2; openvla/openvla c8f03f48, prismatic/vla/datasets/rlds/oxe/transforms.py",
    gripper=f"absolute, 1 = open: {OCTO}",
    rate=SHEET,
    rotation="roll, pitch, yaw: BridgeData V2",
)

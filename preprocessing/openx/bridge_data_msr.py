"""Microsoft Research's additions to BridgeData (WidowX-250): in setup and format compatible with BridgeData V2.

Units, gripper and rate are those of BridgeData V2, whose format it declares to share; features.json describes no field.
"""

from preprocessing.conversion.embeddings import USE_ENCODER
from preprocessing.dataset_spec import DatasetSpec, Equals, Linear, Proprio, Text
from preprocessing.provenance import Provenance

SPEC = DatasetSpec(
    name="bridge_data_msr",
    cameras={
        "image": "observation/image_0",
        "1": "observation/image_1",
        "2": "observation/image_2",
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
    flags=(
        Equals(name="no_language", path="episode_metadata/has_language", value=0),
        Equals(name="no_image_1", path="episode_metadata/has_image_1", value=0),
        Equals(name="no_image_2", path="episode_metadata/has_image_2", value=0),
    ),
)

PROVENANCE = Provenance(
    units="m and rad, as of BridgeData V2: dataset_info.json says that the format is compatible",
    gripper="absolute, 1 = open, as of BridgeData V2: dataset_info.json says that the format is compatible",
    rate="5 Hz, as of BridgeData V2: dataset_info.json says that the setup is compatible",
    rotation="roll, pitch, yaw, as of BridgeData V2",
    unknown=("all of it but by that one sentence of dataset_info.json",),
)

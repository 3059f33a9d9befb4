"""RT-1's own data (Google Robot, 3 Hz): the dataset whose action space is the canonical one.

Source: features.json of version 0.1.0 and facts of the RT-1 and RT-1-X repositories. The gripper is relative:
+1 closes, -1 opens, 0 leaves it. `orientation_box` holds infinities and is no part of proprioception here.
"""

from preprocessing.dataset_spec import USE_LARGE_5, DatasetSpec, EpisodeIs, Linear, Proprio, Terminate, Text

SPEC = DatasetSpec(
    name="fractal20220817_data",
    cameras={"image": "observation/image"},
    instruction=Text(path="observation/natural_language_instruction"),
    embedding="observation/natural_language_embedding",
    embedding_encoder=USE_LARGE_5,
    action=(
        Terminate(path="action/terminate_episode"),
        Linear(group="world_vector", path="action/world_vector", unit="m"),
        Linear(group="rotation_delta", path="action/rotation_delta", unit="rad"),
        Linear(group="gripper_closedness_action", path="action/gripper_closedness_action", unit="closedness"),
        Linear(
            group="base_displacement_vertical_rotation", path="action/base_displacement_vertical_rotation", unit="rad"
        ),
        Linear(group="base_displacement_vector", path="action/base_displacement_vector", unit="m"),
    ),
    source_actions=(
        "action/terminate_episode",
        "action/world_vector",
        "action/rotation_delta",
        "action/gripper_closedness_action",
        "action/base_displacement_vertical_rotation",
        "action/base_displacement_vector",
    ),
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
    flags=(EpisodeIs(name="undesirable", path="aspects/undesirable", value=True),),
)

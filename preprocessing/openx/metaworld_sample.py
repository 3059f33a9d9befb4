"""Meta-World's scripted experts recorded by `rtp simulate` (Sawyer): the dataset that ships with this project.

`world_vector` is the commanded displacement of the hand in metres, summed over the simulator's 80 Hz steps within one
recorded step; the gripper is Meta-World's own command, +1 close, -1 open. Rotation and base do not exist.
"""

from preprocessing.dataset_spec import DatasetSpec, Linear, Proprio, Terminate, Text
from preprocessing.provenance import Provenance

SPEC = DatasetSpec(
    name="metaworld_sample",
    cameras={"image": "observation/image"},
    optional_cameras={"wrist": "observation/wrist_image"},
    instruction=Text(path="observation/natural_language_instruction"),
    action=(
        Terminate(path="action/terminate_episode"),
        Linear(group="world_vector", path="action/world_vector", unit="m"),
        Linear(group="gripper_closedness_action", path="action/gripper_closedness_action", unit="closedness"),
    ),
    source_actions=(
        "action/terminate_episode",
        "action/world_vector",
        "action/rotation_delta",
        "action/gripper_closedness_action",
        "action/base_displacement_vertical_rotation",
        "action/base_displacement_vector",
        "action/metaworld_action",
    ),
    gripper="absolute",
    control_hz="episode_metadata/control_hz",
    proprio=(Proprio(path="observation/state", names=("x", "y", "z", "gripper"), units=("m", "m", "m", "openness")),),
)

PROVENANCE = Provenance(
    units="m: rtp simulate, preprocessing/simulation/metaworld_rollout.py",
    gripper="absolute, +1 close, -1 open: Meta-World",
    rate="recorded with each episode",
    rotation="none: the action has no rotation",
)

"""DROID (Franka, 15 Hz): 76,000 episodes of many laboratories, two outer cameras and one at the wrist.

The flat action is joint velocities; what is read here is the commanded Cartesian velocity beside it, as OpenVLA does.
The controller takes it within +-1 and moves by at most 0.075 m and 0.15 rad in a step (droid-dataset/droid,
robot_ik/robot_ik_solver.py): it is a share of that, and no displacement in m.
"""

from preprocessing.dataset_spec import DatasetSpec, Linear, Proprio, Text
from preprocessing.provenance import FEATURES, OPENVLA, SHEET, Provenance

SPEC = DatasetSpec(
    name="droid",
    cameras={
        "image": "observation/exterior_image_1_left",
        "right": "observation/exterior_image_2_left",
        "wrist": "observation/wrist_image_left",
    },
    instruction=Text(path="language_instruction"),
    action=(
        Linear(group="world_vector", path="action_dict/cartesian_velocity", unit="unitless"),
        Linear(group="rotation_delta", path="action_dict/cartesian_velocity", first=3, unit="unitless"),
        Linear(
            group="gripper_closedness_action",
            path="action_dict/gripper_position",
            scale=2,
            offset=-1,
            unit="closedness",
        ),
    ),
    source_actions=("action", "action_dict/cartesian_velocity", "action_dict/gripper_position"),
    gripper="absolute",
    control_hz=15,
    proprio=(
        Proprio(
            path="observation/cartesian_position",
            names=("x", "y", "z", "euler_0", "euler_1", "euler_2"),
            units=("unknown",) * 6,
        ),
        Proprio(path="observation/gripper_position", names=("gripper",), units=("closedness",)),
    ),
    notes="Many episodes have two further wordings, language_instruction_2 and _3; some have no instruction at all.",
)

PROVENANCE = Provenance(
    units=f"velocities as shares of the controller's largest step, unitless: {FEATURES}; droid-dataset/droid",
    gripper=f"absolute, 1 = closed: {OPENVLA}, which inverts it",
    rate=SHEET,
    rotation=f"an angular velocity; the state has euler angles of undocumented order: {FEATURES}",
    unknown=("scale of the commanded velocities in m and rad: nothing in the data says it", "units of the state"),
)

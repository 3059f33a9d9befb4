"""FurnitureBench (Franka, 10 Hz): assembly of printed furniture.

The action is a change of place, a change of rotation as a quaternion, and the gripper. Octo and OpenVLA put the
quaternion's euler angles in its place and invert the gripper; here it stays what it is, in a space of its own.
"""

from preprocessing.action_parts import Columns
from preprocessing.conversion.embeddings import USE_ENCODER
from preprocessing.dataset_spec import DatasetSpec, Text
from preprocessing.provenance import FEATURES, OCTO, Provenance
from rt_models.action_space import ActionSpace, SpaceDimension

_POSITION = ("position_delta_x", "position_delta_y", "position_delta_z")
_ROTATION = ("quaternion_delta_0", "quaternion_delta_1", "quaternion_delta_2", "quaternion_delta_3")
_REST = ("gripper_closed",)

SPEC = DatasetSpec(
    name="furniture_bench_dataset_converted_externally_to_rlds",
    cameras={"image": "observation/image", "wrist": "observation/wrist_image"},
    instruction=Text(path="language_instruction"),
    embedding="language_embedding",
    embedding_encoder=USE_ENCODER,
    space=ActionSpace(
        name="delta-pose-quaternion-8d",
        dimensions=tuple(SpaceDimension(name=name) for name in (*_POSITION, *_ROTATION, *_REST)),
        gripper="+1 closes, -1 opens",
    ),
    action=(
        Columns(names=_POSITION, path="action", unit="unitless", kind="delta"),
        Columns(
            names=_ROTATION,
            path="action",
            first=3,
            unit="unitless",
            kind="delta",
            rotation="quaternion",
            neutral="mean",
        ),
        Columns(names=_REST, path="action", first=7, unit="unitless", kind="absolute"),
    ),
    source_actions=("action",),
    gripper="absolute",
    control_hz=10,
    notes="A change by a quaternion is 1 somewhere where nothing turns; which place that is is not documented.",
)

PROVENANCE = Provenance(
    units=f"a change of the end effector, of undocumented units, unitless: {FEATURES}",
    gripper=f"absolute, the larger the more closed: {OCTO}, which inverts it",
    rate="10 Hz: clvrai.github.io/furniture-bench, overview",
    rotation=f"a change as a quaternion: {OCTO}, which turns it into euler angles",
    unknown=("units of the change", "order of the quaternion", "range of the gripper: Octo clips it to 0..1"),
)

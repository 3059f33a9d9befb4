"""BC-Z (Google Robot, 10 Hz): teleoperated and DAgger episodes.

Source: features.json of version 0.1.0. Each step holds ten future actions of which the first is canonical: residuals to
add to the position and to the components of the axis-angle vector (which is no rotation), and an absolute closure. The
shipped vectors are of USE/4, not of large/5: `--encoder use` embeds the instructions anew.
"""

from preprocessing.dataset_spec import OXE_EMBEDDING, OXE_INSTRUCTION, DatasetSpec, Equals, Linear, Proprio
from preprocessing.provenance import FEATURES, SHEET, Provenance

AXIS_ANGLE = "difference of axis-angle components"  # which is no rotation: it cannot be turned by one

SPEC = DatasetSpec(
    name="bc_z",
    cameras={"image": "observation/image"},
    instruction=OXE_INSTRUCTION,
    embedding=OXE_EMBEDDING,
    embedding_encoder="universal-sentence-encoder/4",
    action=(
        Linear(group="world_vector", path="action/future/xyz_residual", unit="m"),
        Linear(group="rotation_delta", path="action/future/axis_angle_residual", unit=AXIS_ANGLE),
        Linear(
            group="gripper_closedness_action", path="action/future/target_close", scale=2, offset=-1, unit="closedness"
        ),
    ),
    source_actions=(
        "action/future/xyz_residual",
        "action/future/axis_angle_residual",
        "action/future/target_close",
    ),
    gripper="absolute",
    control_hz=10,
    proprio=(
        Proprio(path="observation/present/xyz", names=("x", "y", "z"), units=("m", "m", "m")),
        Proprio(path="observation/present/axis_angle", names=("x", "y", "z"), units=("rad", "rad", "rad")),
        Proprio(path="observation/present/sensed_close", names=("closed",), units=("closedness",)),
    ),
    flags=(
        Equals(name="failure", path="observation/episode_success", value=0),
        Equals(name="autonomous", path="observation/present/autonomous", value=1),
    ),
    notes="The control rate is not documented.",
)

PROVENANCE = Provenance(
    units=f"deltas to add to position and axis-angle vector: {FEATURES}; that they are in m and rad is not written",
    gripper=f"absolute closure, 1 = closed: {FEATURES}",
    rate=SHEET,
    rotation=f"differences of axis-angle components, not a rotation: {FEATURES}",
    unknown=("units of position and angle",),
)

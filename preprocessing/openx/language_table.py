"""Language Table (xArm, 10 Hz): pushing blocks in a plane, the real robot.

Source: octo-models/octo 241fb35 `octo/data/oxe/oxe_standardization_transforms.py`; no features.json was at hand. The
instruction is a row of byte values and no vector is shipped; the action is a change of the planar set point in metres.
"""

from preprocessing.dataset_spec import DatasetSpec, Linear, PaddedBytes, Proprio
from preprocessing.provenance import OCTO, SHEET, Provenance

SPEC = DatasetSpec(
    name="language_table",
    cameras={"image": "observation/rgb"},
    instruction=PaddedBytes(path="observation/instruction"),
    action=(Linear(group="world_vector", path="action", width=2, unit="m"),),
    source_actions=("action",),
    gripper="none",
    control_hz=10,
    proprio=(
        Proprio(path="observation/effector_translation", names=("x", "y"), units=("m", "m")),
        Proprio(path="observation/effector_target_translation", names=("x", "y"), units=("m", "m")),
    ),
)

PROVENANCE = Provenance(
    units=f"a change of the planar set point in m: {OCTO}",
    gripper="none: the tool is a rod",
    rate=SHEET,
    rotation="none: the action has no rotation",
    unknown=("features.json was not at hand",),
)

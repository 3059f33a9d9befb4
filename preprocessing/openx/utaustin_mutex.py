"""MUTEX (Franka, 20 Hz): household tasks with detailed instructions.

The flat action is a delta pose (6) and the gripper's position. Both cameras are stored as BGR. Octo blanks the
instructions; they are long descriptions of each task, and are not flagged here.
"""

from preprocessing.conversion.embeddings import USE_ENCODER
from preprocessing.dataset_spec import Always, DatasetSpec, Linear, Proprio, Text
from preprocessing.provenance import FEATURES, OCTO, SHEET, Provenance

SPEC = DatasetSpec(
    name="utaustin_mutex",
    cameras={"image": "observation/image", "wrist": "observation/wrist_image"},
    instruction=Text(path="language_instruction"),
    embedding="language_embedding",
    embedding_encoder=USE_ENCODER,
    action=(
        Linear(group="world_vector", path="action", unit="unitless"),
        Linear(group="rotation_delta", path="action", first=3, unit="unitless"),
        Linear(group="gripper_closedness_action", path="action", first=6, unit="unitless"),
    ),
    source_actions=("action",),
    gripper="absolute",
    control_hz=20,
    proprio=(
        Proprio(
            path="observation/state",
            names=(*(f"joint_{i}" for i in range(7)), "gripper", *(f"pose_{i}" for i in range(16))),
            units=("unknown",) * 8 + ("homogeneous matrix",) * 16,
        ),
    ),
    flags=(Always(name="bgr_images"),),
    notes="Both cameras are stored as BGR (rlds_dataset_mod, prepare_open_x.sh).",
)

PROVENANCE = Provenance(
    units=f"deltas of undocumented scale, unitless: {FEATURES}",
    gripper=f"absolute, the larger the more closed: {OCTO}, which inverts it",
    rate=SHEET,
    rotation="not documented",
    unknown=("scale of the deltas", "rotation convention", "range of the gripper: Octo clips it to 0..1"),
)

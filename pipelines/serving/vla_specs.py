"""What a server tells the vla-eval harness of its actions and observations (`specs.py` of vla-eval 0.8.0).

The harness only warns where a benchmark expects something else; the key of an image is the camera's name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from pipelines.serving.adapters.base import Adapter
from pipelines.serving.adapters.vla_eval import VlaEval
from rt_models.spec import MAIN_CAMERA

Spec = Mapping[str, object]


def action_spec(adapter: Adapter) -> dict[str, Spec]:
    """Of the harness's 7-D action; empty for another adapter, whose numbers it has no words for."""
    if not isinstance(adapter, VlaEval):
        return {}
    gripper_low = -1.0 if adapter.gripper.startswith("binary_close_p") or adapter.gripper.endswith("negative") else 0.0
    return {
        "position": {"name": "position", "dims": 3, "format": "delta_xyz", "range": [-1.0, 1.0]},
        "rotation": {"name": "rotation", "dims": 3, "format": adapter.rotation, "range": [-math.pi, math.pi]},
        "gripper": {"name": "gripper", "dims": 1, "format": adapter.gripper, "range": [gripper_low, 1.0]},
    }


def observation_spec(adapter: Adapter, cameras: Sequence[str]) -> dict[str, Spec]:
    """Of a policy that reads these cameras, by role."""
    keys = [key.removeprefix("images.") for key in adapter.image_keys if key.startswith("images.") and "*" not in key]
    main = keys[0] if keys else "primary"
    names = [main if role == MAIN_CAMERA else role for role in cameras]
    return {
        **{name: {"name": name, "dims": 0, "format": "rgb_hwc_uint8"} for name in names},
        "language": {"name": "language", "dims": 0, "format": "language"},
    }

"""Cameras by role: what they are called, and the keys of a batch that belong to each.

The main camera's keys are those of a batch with one camera. The standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

MAIN_CAMERA = "image"
CAMERA_ALIASES = {"hand": "wrist", "gripper": "wrist", "primary": "image", "side": "image"}
"""Other names of roles."""


def camera_role(name: str) -> str:
    """The role that a camera's name stands for."""
    return CAMERA_ALIASES.get(name, name)


def require_cameras(cameras: Sequence[str]) -> None:
    """Raise ValueError unless these are different roles, one or more, that keys of a batch can end with."""
    wrong = [role for role in cameras if not re.fullmatch(r"[a-z0-9][a-z0-9_]*", role)]
    if wrong or not cameras or len(set(cameras)) < len(cameras):
        raise ValueError(
            f"cameras must be different roles such as image, wrist, left, one or more, in small letters, digits and _, "
            f"got {', '.join(map(repr, cameras)) or 'none'}"
        )
    for name in cameras:
        if name in CAMERA_ALIASES:
            raise ValueError(f"cameras: {name} is another name of {camera_role(name)}: write {camera_role(name)}")


def frames_key(role: str) -> str:
    """The key of a camera's frames: "frames" of the main one, else "frames_wrist"."""
    return of_role("frames", role)


def index_key(role: str) -> str:
    """The key of where a camera's frames stand in the windows."""
    return of_role("frame_index", role)


def image_index_key(role: str) -> str:
    """The key of where a camera's frames stand in RT-2's rows."""
    return of_role("image_index", role)


def of_role(key: str, role: str) -> str:
    """`key` as it is for the main camera, else with the role behind it."""
    return key if role == MAIN_CAMERA else f"{key}_{role}"

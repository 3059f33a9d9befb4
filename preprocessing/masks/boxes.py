"""Boxes of objects from a file of JSON lines, one an episode:

    {"episode": 0, "box": [x0, y0, x1, y1], "second": [x0, y0, x1, y1], "verb": "move near"}

Corners are pixels of the stored frame, from its upper left; `second` and `verb` may be left out, and without a verb the
instruction's is taken.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from preprocessing.store.file_system import file_system_of
from preprocessing.store.shard_files import with_retries


@dataclass(frozen=True, kw_only=True)
class Boxes:
    """Centres as fractions (x, y) of the frame."""

    centre: tuple[float, float]
    second: tuple[float, float] | None
    verb: str | None


def read_boxes(path: str, *, height: int, width: int, episodes: int) -> dict[int, Boxes]:
    """By episode. Raises ValueError naming the first line that is wrong, FileNotFoundError if there is no such file."""
    filesystem, inside = file_system_of(path)
    if not filesystem.exists(inside):
        raise FileNotFoundError(f"--detector boxes:{path} does not exist: give a file of JSON lines")
    blob = with_retries(lambda: filesystem.cat_file(inside), what=path)
    found: dict[int, Boxes] = {}
    for number, line in enumerate(blob.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            episode, boxes = _line(_fields(line), height, width)
        except (ValueError, TypeError, KeyError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else error
            raise ValueError(f"{path}:{number} is no line of boxes ({reason})") from None
        if not 0 <= episode < episodes:
            raise ValueError(f"{path}:{number} is about episode {episode}, the store has 0 to {episodes - 1}")
        if episode in found:
            raise ValueError(f"{path}:{number} is about episode {episode}, as a line before it: give one an episode")
        found[episode] = boxes
    return found


def _fields(line: bytes) -> dict[str, object]:
    try:
        fields = json.loads(line)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise ValueError(f"{line[:60].decode(errors='replace')!r} is no JSON object")
    return fields


def _line(fields: dict[str, object], height: int, width: int) -> tuple[int, Boxes]:
    episode, verb = fields["episode"], fields.get("verb")
    if not isinstance(episode, int) or isinstance(episode, bool):
        raise TypeError(f"episode is {episode!r}, not a whole number")
    if verb is not None and not isinstance(verb, str):
        raise TypeError(f"verb is {verb!r}, not a text")
    second = fields.get("second")
    centre = box_centre(fields["box"], height, width)
    return episode, Boxes(
        centre=centre, second=None if second is None else box_centre(second, height, width), verb=verb or None
    )


def box_centre(box: object, height: int, width: int) -> tuple[float, float]:
    """Fractions (x, y) of the frame: the middle of the part of the box that lies in it. Raises ValueError or TypeError
    for what is no box, or lies outside."""
    if not isinstance(box, Sequence) or isinstance(box, str) or len(box) != 4:
        raise TypeError(f"a box is [x0, y0, x1, y1], not {box!r:.60}")
    x0, y0, x1, y1 = (float(corner) for corner in box)
    if not all(map(math.isfinite, (x0, y0, x1, y1))) or x1 < x0 or y1 < y0:
        raise ValueError(f"box {box!r:.60} has no corners x0 <= x1 and y0 <= y1")
    if x1 < 0 or y1 < 0 or x0 > width or y0 > height:
        raise ValueError(f"box {box!r:.60} lies outside of the frame of {height}x{width} pixels")
    return (max(x0, 0) + min(x1, width)) / 2 / width, (max(y0, 0) + min(y1, height)) / 2 / height

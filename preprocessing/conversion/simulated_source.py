"""What a dataset's own files say of the simulator it is from: `metadata.json`, where TFDS keeps such things."""

from __future__ import annotations

import json
import logging

from preprocessing.rlds import open_folder
from rt_models.spec import SimulatedSource

METADATA, KEY = "metadata.json", "simulation"


def simulated_source_of(folder: str) -> SimulatedSource | None:
    """None where there is nothing of it. What cannot be read costs no conversion; the log says why."""
    filesystem, root = open_folder(folder.rstrip("/"))
    try:
        data = json.loads(filesystem.cat_file(f"{root}/{METADATA}").decode())
        recorded = data.get(KEY) if isinstance(data, dict) else None
    except Exception:  # object stores fail in the types of their own libraries, and other datasets' file may be any
        return None
    if not isinstance(recorded, dict):
        return None
    try:
        return SimulatedSource.from_json(recorded)
    except ValueError as error:
        logging.warning("%s/%s: %s; it is left out of the store", folder, METADATA, error)
        return None

"""Where a pretrained model lies: in a folder, or, where that is said, on the model hub.

A folder that is missing is never looked for on the hub: anybody may publish a model under the name of a folder.
"""

from __future__ import annotations

import re
from pathlib import Path

_HUB = "hub:"
REMEDY = f"give a saved folder, or {_HUB}OWNER/MODEL for one of the hub"


def is_on_hub(path: str) -> bool:
    return path.startswith(_HUB)


def located(path: str) -> str:
    """The same with an absolute folder: workers run in other folders."""
    return path if is_on_hub(path) else str(Path(path).expanduser().absolute())


def source_of(path: str) -> str:
    """What transformers is given: a folder that is there, or the name on the hub. Raises OSError for neither."""
    if not is_on_hub(path):
        if not Path(located(path)).is_dir():
            raise OSError(f"model folder {path}: it is not there; {REMEDY}")
        return located(path)
    name = path.removeprefix(_HUB)
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name):
        raise OSError(f"model {path}: a model of the hub is named {_HUB}OWNER/MODEL")
    return name

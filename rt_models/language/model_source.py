"""Where a pretrained model lies: in a folder, or, where that is said, on the model hub.

A folder that is missing is never looked for on the hub: anybody may publish a model under the name of a folder.
"""

from __future__ import annotations

import re
from pathlib import Path

_HUB = ("hub:", "hf://")
REMEDY = f"give a saved folder, or {_HUB[0]}OWNER/MODEL for one of the hub"


def is_on_hub(path: str) -> bool:
    return path.startswith(_HUB)


def located(path: str) -> str:
    """The same with an absolute folder: workers run in other folders."""
    return path if is_on_hub(path) or "://" in path else str(Path(path).expanduser().absolute())


def source_of(path: str) -> str:
    """What transformers is given: a folder that is there, or the name on the hub. Raises OSError for neither."""
    if not is_on_hub(path):
        if "://" in path:
            raise OSError(f"model {path}: transformers reads a folder on a disk, so copy it to one; {REMEDY}")
        if not Path(located(path)).is_dir():
            raise OSError(f"model folder {path}: it is not there; {REMEDY}")
        return located(path)
    name = path.removeprefix(_HUB[0]).removeprefix(_HUB[1])
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name):
        raise OSError(f"model {path}: a model of the hub is named {_HUB[0]}OWNER/MODEL or {_HUB[1]}OWNER/MODEL")
    return name

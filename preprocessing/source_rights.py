"""What a dataset's own files say of its licence, how to cite it, and where it is from. Nothing is guessed."""

from __future__ import annotations

import json
import re
from typing import Any

from preprocessing.rlds import open_folder
from preprocessing.store.store_manifest import Rights

_LONGEST = 4000  # characters of a citation


def rights_of(folder: str) -> Rights | None:
    """From dataset_info.json of TFDS, or the head of README.md (the hub's dataset card) in any other folder.

    None where they say nothing. What cannot be read costs no conversion.
    """
    filesystem, root = open_folder(folder.rstrip("/"))
    for name, read in (("dataset_info.json", _of_tfds), ("README.md", _of_card)):
        try:
            rights = read(filesystem.cat_file(f"{root}/{name}").decode())
        except Exception:  # object stores fail in the types of their own libraries
            continue
        if rights != Rights():
            return rights
    return None


def _of_tfds(text: str) -> Rights:
    info: dict[str, Any] = json.loads(text)
    urls = (info.get("location") or {}).get("urls") or []
    return Rights(
        licence=_words((info.get("redistributionInfo") or {}).get("license")),
        citation=_words(info.get("citation")),
        source=" ".join(url for url in urls if isinstance(url, str)),
    )


def _of_card(text: str) -> Rights:
    """`license: apache-2.0` between the two lines of dashes at the beginning."""
    head = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    found = re.search(r"^license:\s*(\S.*)$", head[1], re.MULTILINE) if head else None
    return Rights(licence=_words(found[1].strip("'\"")) if found else "")


def _words(value: object) -> str:
    return value.strip()[:_LONGEST] if isinstance(value, str) else ""

"""One record of image-text data: its pictures, or none, with what is asked of them and what is to be said."""

from __future__ import annotations

import json
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")


@dataclass(frozen=True, kw_only=True)
class WebExample:
    """What is asked of an image and what is to be said. `prompt` is empty for a caption; `references` are all answers
    that people gave, the one trained on among them.

    What cannot be used is an example too, with a `problem`, so that every account counts it. `place` says where it
    stands in the source, where its record's place does not say it. `score` and `language` are what the source says of
    the pair (`extra_fields`), and make no other example of it.
    """

    prompt: str = ""
    answer: str = ""
    references: tuple[str, ...] = ()
    place: str = ""
    problem: str | None = None
    score: float | None = field(default=None, compare=False)
    language: str | None = field(default=None, compare=False)


@dataclass(frozen=True, kw_only=True)
class WebRecord:
    """`place` says where it stands in the source. `images` are the encoded files, in the order in which a model sees
    them; `problem` says why no example of it can be used. `duplicates` counts examples that stand in the source again
    and were left out for it; `unread` names the parts of the record that nothing reads, by their extension."""

    place: str
    images: tuple[bytes, ...]
    examples: tuple[WebExample, ...]
    problem: str | None = None
    duplicates: int = 0
    unread: tuple[str, ...] = ()


class Identities:
    """Ids that were read, with what stood under them."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}

    def judge(self, identity: object, content: Hashable) -> Literal["new", "again", "other"]:
        """Whether the id was not read before (as None never is), or with the same content, or with another one."""
        if identity is None:
            return "new"
        key = str(identity)
        now = hash(content)
        if key not in self._known:
            self._known[key] = now
            return "new"
        return "again" if self._known[key] == now else "other"


def not_its_own(identity: object) -> str:
    """The problem of what stands under another's id."""
    return f"its id {str(identity)[:80]} stands for something else already"


def parsed(text: bytes, path: str) -> Any:
    """The JSON in `text`, whatever it is. Raises ValueError naming `path` if it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # no text, no JSON, a number too long, brackets too deep
        raise ValueError(f"{path} cannot be read as JSON ({error}): fetch it again") from None


def parsed_once(text: bytes, path: str) -> Any:
    """As `parsed`, and a name that an object gives twice, of which JSON would keep the last, is a ValueError too."""
    try:
        return json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}): fetch it again") from None


def _once(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is given twice")
    return fields

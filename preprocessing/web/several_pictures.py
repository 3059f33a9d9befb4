"""Records about several pictures: which they are, in their order, and how their texts speak of them.

RT-2's Episodic WebLI has several image-text pairs of a page as one example (PaLI-X, arXiv 2305.18565). All pictures of
an example stand before its text, so that a mark `<image>` inside a question names a picture instead of standing for its
place: the second one becomes "image 2". Marks that only open the first question say nothing and fall away, as the mark
of a single picture does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

from preprocessing.web.extra_fields import ExtraFields
from preprocessing.web.texts import ASKING, PLACEHOLDER, TEXT_FIELDS

PICTURE_FIELDS = ("image", "images", "pairs")
_OPENING = re.compile(rf"(?:\s*{PLACEHOLDER})+\s*")
_GLUED = re.compile(rf"(?<=\w)(?={PLACEHOLDER})|(?<={PLACEHOLDER})(?=\w|{PLACEHOLDER})")
_NOT_AMONG = "its image is not among its images: name all its pictures in one list"
_NO_PAIRS = "its pairs are no list of objects with image and text"


@dataclass(frozen=True, kw_only=True)
class Pictured:
    """What a record has in the place of each picture (a path, a cell), and its fields with the texts as they are read;
    `problem` where it cannot be used."""

    pictures: tuple[object, ...]
    fields: Mapping[str, object]
    problem: str | None = None


def pictured(fields: Mapping[str, object], extra: ExtraFields) -> Pictured | None:
    """A record whose `image` or `images` is a list of pictures, or whose `pairs` are; None for every other record, and
    where an example has one picture."""
    if extra.most_pictures == 1:
        return None
    if fields.get("pairs") is not None:
        return _limited(_of_pairs(fields, extra), extra)
    listed, apart = _listed(fields)
    if listed is None:
        return None
    if not listed:  # it is about words alone
        others = {name: value for name, value in fields.items() if name not in PICTURE_FIELDS}
        return Pictured(pictures=(), fields=others)
    fields, problem = numbered(fields, len(listed))
    return _limited(Pictured(pictures=tuple(listed), fields=fields, problem=apart or problem), extra)


def _listed(fields: Mapping[str, object]) -> tuple[Sequence[object] | None, str | None]:
    """The list of a record's pictures, None if it has no list; and why `image` and `images` do not go together."""
    one, several = fields.get("image"), fields.get("images")
    several = several if isinstance(several, list | tuple) else None
    if one in (None, "") or (several and one in ([], ())):
        return several, None
    if not several or one == several:
        return one if isinstance(one, list | tuple) else None, None
    return several, None if not isinstance(one, list | tuple) and one in several else _NOT_AMONG


def too_many(number: int, extra: ExtraFields) -> str | None:
    """Why a record of so many pictures cannot be used, or None."""
    if number <= extra.most_pictures:
        return None
    if extra.most_pictures == 1:
        return f"it has {number} pictures, and an example has one"
    return f"it has {number} pictures, and an example at most {extra.most_pictures}"


def _limited(found: Pictured, extra: ExtraFields) -> Pictured:
    problem = found.problem or too_many(len(found.pictures), extra)
    return Pictured(pictures=found.pictures, fields=found.fields, problem=problem)


def _of_pairs(fields: Mapping[str, object], extra: ExtraFields) -> Pictured:
    """The pairs of a page as one caption that numbers its pictures; its score is the mean of theirs."""
    pairs = fields["pairs"]
    others = {name: value for name, value in fields.items() if name != "pairs"}
    if not isinstance(pairs, list | tuple) or not pairs or not all(isinstance(pair, Mapping) for pair in pairs):
        return Pictured(pictures=(), fields=others, problem=_NO_PAIRS)
    given = (name for name in (*PICTURE_FIELDS, *TEXT_FIELDS) if others.get(name) not in (None, "", [], ()))
    beside = next(given, None)
    if beside is not None:
        problem = f"it has {beside!r} beside its pairs, which are all that is read: put it into them or leave it out"
        return Pictured(pictures=(), fields=others, problem=problem)
    texts = [text.strip() if isinstance(text := pair.get("text"), str) else "" for pair in pairs]
    if not all(texts) or any(pair.get("image") in (None, "") for pair in pairs):
        return Pictured(pictures=(), fields=others, problem="one of its pairs has no image or no text")
    if len(pairs) == 1:
        caption = texts[0]
    else:
        caption = " ".join(f"image {number}: {text}" for number, text in enumerate(texts, start=1))
    if extra.score and others.get(extra.score) is None:
        others[extra.score] = [pair.get(extra.score) for pair in pairs]
    return Pictured(pictures=tuple(pair["image"] for pair in pairs), fields={**others, "caption": caption})


# --- Marks in texts ---


def numbered(fields: Mapping[str, object], pictures: int) -> tuple[Mapping[str, object], str | None]:
    """The fields of a record of several pictures without marks, and why they do not fit the pictures, or None; those of
    one picture as they are."""
    if pictures < 2:
        return fields, None
    asked: list[str] = []
    _with_asked(fields, lambda text: asked.append(text) or text)
    marks = sum(text.count(PLACEHOLDER) for text in asked)
    if not marks:
        return fields, None
    if marks != pictures:
        return fields, f"its text marks {marks} pictures and it has {pictures}"
    opening = _OPENING.match(asked[0])
    if opening is not None and opening[0].count(PLACEHOLDER) == marks:
        return _with_asked(fields, lambda text: _OPENING.sub("", text)), None
    numbers = count(1)

    def named(text: str) -> str:
        return re.sub(PLACEHOLDER, lambda _: f"image {next(numbers)}", _GLUED.sub(" ", text))

    return _with_asked(fields, named), None


def _with_asked(fields: Mapping[str, object], change: Callable[[str], str]) -> Mapping[str, object]:
    """The fields with each text that a person asks, in their order, put through `change`."""
    turns = fields.get("conversations")
    if isinstance(turns, list | tuple):
        return {**fields, "conversations": [_turn_with(turn, change) for turn in turns]}
    name = next((name for name in ("question", "prompt") if isinstance(fields.get(name), str) and fields[name]), None)
    return fields if name is None else {**fields, name: change(str(fields[name]))}


def _turn_with(turn: object, change: Callable[[str], str]) -> object:
    if not isinstance(turn, Mapping) or str(turn.get("from") or turn.get("role")) not in ASKING:
        return turn
    name = "value" if "value" in turn else "content"
    return {**turn, name: change(turn[name])} if isinstance(turn.get(name), str) else turn

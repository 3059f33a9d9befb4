"""What is read of a record beside the texts and the picture of everyone: score, language, and further pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from preprocessing.web.records import WebExample


@dataclass(frozen=True, kw_only=True)
class ExtraFields:
    """The names that a source has for score and language, "" for what is not read; and how many pictures an example may
    have (`several_pictures`)."""

    score: str = ""
    language: str = ""
    most_pictures: int = 1

    def names(self) -> tuple[str, ...]:
        return tuple(name for name in (self.score, self.language) if name)

    def added(self, examples: Sequence[WebExample], fields: Mapping[str, object]) -> tuple[WebExample, ...]:
        """The examples of a record with what its `fields` say; None for what is no number, or no text."""
        if not self.names():
            return tuple(examples)
        given, language = fields.get(self.score), fields.get(self.language)
        score = _mean(given) if self.most_pictures > 1 and isinstance(given, list | tuple) else _number(given)
        spoken = language.strip() or None if isinstance(language, str) else None
        return tuple(replace(example, score=score, language=spoken) for example in examples)


def _mean(values: Sequence[object]) -> float | None:
    """The mean of the scores of an example's pictures; None where one is missing."""
    known = [number for value in values if (number := _number(value)) is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _number(value: object) -> float | None:
    """A finite number, or a text of one."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


NO_EXTRA_FIELDS = ExtraFields()

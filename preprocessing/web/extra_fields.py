"""What a source may say of an example beside its texts, for `rtp filter`: a similarity score and a language."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from preprocessing.web.records import WebExample


@dataclass(frozen=True, kw_only=True)
class ExtraFields:
    """The names that a source has for them; "" for what is not read."""

    score: str = ""
    language: str = ""

    def names(self) -> tuple[str, ...]:
        return tuple(name for name in (self.score, self.language) if name)

    def added(self, examples: Sequence[WebExample], fields: Mapping[str, object]) -> tuple[WebExample, ...]:
        """The examples of a record with what its `fields` say; None for what is no number, or no text."""
        if not self.names():
            return tuple(examples)
        score, language = _number(fields.get(self.score)), fields.get(self.language)
        spoken = language.strip() or None if isinstance(language, str) else None
        return tuple(replace(example, score=score, language=spoken) for example in examples)


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

"""One record of image-text data: an image, or none, with what is asked of it and what is to be said."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")


@dataclass(frozen=True, kw_only=True)
class WebExample:
    """What is asked of an image and what is to be said. `prompt` is empty for a caption; `references` are all answers
    that people gave, the one trained on among them."""

    prompt: str
    answer: str
    references: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class WebRecord:
    """`place` says where it stands in the source. `image` is the encoded file or None; `problem` why it is unusable."""

    place: str
    image: bytes | None
    examples: tuple[WebExample, ...]
    problem: str | None = None


def parsed(text: bytes, path: str) -> Any:
    """The JSON in `text`, whatever it is. Raises ValueError naming `path` where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # no text, no JSON, a number too long, brackets too deep
        raise ValueError(f"{path} cannot be read as JSON ({error}): fetch it again") from None


def examples_of(fields: Mapping[str, Any]) -> tuple[WebExample, ...]:
    """Question and answer(s), or caption(s), under the names that public sets use; none where there is neither.

    Of several answers the commonest is trained on, the first given of equally common ones.
    """
    question = str(fields.get("question") or fields.get("prompt") or "")
    answers = _texts(fields.get("answers")) or _texts(fields.get("answer"))
    chosen = fields.get("multiple_choice_answer") or max(answers, key=answers.count, default="")
    if answers or chosen:
        return (WebExample(prompt=question, answer=str(chosen), references=tuple(answers or [str(chosen)])),)
    for name in ("captions", "caption", "sentences", "text"):
        captions = _texts(fields.get(name))
        if captions:
            return tuple(WebExample(prompt=question, answer=c, references=tuple(captions)) for c in captions)
    return ()


def answers_of(question: str, fields: Mapping[str, Any]) -> tuple[WebExample, ...]:
    """The answers in `fields` to a question; where there is none, the question with an empty answer."""
    return examples_of({**fields, "question": question}) or (WebExample(prompt=question, answer="", references=()),)


def _texts(value: Any) -> list[str]:
    """Texts of a text, a list of texts, or a list of {"answer": text} or {"raw": text}."""
    items: Iterable[Any] = value if isinstance(value, list | tuple) else [] if value is None else [value]
    found = (item.get("answer") or item.get("raw") if isinstance(item, Mapping) else item for item in items)
    return ["" if text is None else str(text) for text in found]

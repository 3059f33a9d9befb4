"""Fields of a record, under the names that public sets use -> the examples in it.

Every record gives one example at least: one that cannot be used says why in `problem`. A text is a text or a whole or
decimal number; what else stands in its place (NaN, a truth value, a list, an object) is never turned into words.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from decimal import Decimal

from preprocessing.web.records import WebExample

NOTHING_TO_LEARN = "it has neither question and answer nor a caption"
PLACEHOLDER = "<image>"
_SEVERAL = "it is about several pictures, and an example has one"
_CAPTIONS = ("captions", "caption", "sentences", "text")
TEXT_FIELDS = ("question", "prompt", "answers", "answer", "multiple_choice_answer", *_CAPTIONS, "conversations")
_PICTURE_NAMES = ("image", "img", "picture", "photo", "file_name", "filename", "jpg", "jpeg", "png", "webp", "pixel")
_EXACT = 2**53  # below it a float is the whole number that it stands for
ASKING, _ANSWERING = ("human", "user"), ("gpt", "assistant")


class _NoText(ValueError):
    """A value that is no text, in the place of a text."""


def examples_of(fields: Mapping[str, object]) -> tuple[WebExample, ...]:
    """A conversation's questions and answers, or a question with its answer(s), or caption(s), in this order of rank.

    Of several answers the commonest is trained on, the first given of equally common ones.
    """
    if fields.get("conversations") is not None:
        return _conversation(fields["conversations"])
    try:
        question = _question(_text(fields.get("question"), "question") or _text(fields.get("prompt"), "prompt"))
        answers = _texts(fields.get("answers"), "answer") or _texts(fields.get("answer"), "answer")
        usable = [answer for answer in answers if answer.strip()]
        chosen = _text(fields.get("multiple_choice_answer"), "answer") or max(usable, key=usable.count, default="")
    except _NoText as error:
        return (unusable(str(error)),)
    if chosen:
        problem = None if question else "it has an answer and no question"
        return (WebExample(prompt=question, answer=chosen, references=tuple(usable or [chosen]), problem=problem),)
    captions = next((texts for name in _CAPTIONS if (texts := _captions(fields.get(name), question))), ())
    return captions or (unusable("its answer is empty" if answers else NOTHING_TO_LEARN),)


def answers_of(question: object, fields: Mapping[str, object]) -> WebExample:
    """The answer in `fields` to a question; if there is none, its problem says so."""
    (example, *more) = examples_of({**fields, "question": question, "conversations": None})
    nothing = more or example.problem == NOTHING_TO_LEARN
    return unusable("its answer is empty") if nothing else example


def question_id(fields: Mapping[str, object]) -> str | None:
    """The id that a record's question has in the set that it is from, or None."""
    try:
        return _text(fields.get("question_id"), "question_id") or None
    except _NoText:
        return None


def unusable(problem: str, place: str = "") -> WebExample:
    """What is read in the place of an example and cannot be used."""
    return WebExample(place=place, problem=problem)


def without_picture(fields: Mapping[str, object], examples: Sequence[WebExample]) -> tuple[WebExample, ...]:
    """The examples of a record whose `image` is empty: a question may be about words alone, the rest may not."""
    pictures = (name for name in fields if name != "image" and name.lower().startswith(_PICTURE_NAMES))
    unread = next((name for name in pictures if fields[name]), None)
    if unread is not None:
        is_list = unread == "images" and isinstance(fields[unread], list | tuple)
        remedy = "give --pictures N for examples of several" if is_list else "name it 'image'"
        reason = f"its picture is named by {unread!r}, which is not read: {remedy}"
        return tuple(_refused(example, reason) for example in examples)
    if fields.get("conversations") is not None:
        return tuple(_refused(example, "its conversation is about no picture") for example in examples)
    reason = "it is a caption without a picture"
    return tuple(example if example.prompt else _refused(example, reason) for example in examples)


def _refused(example: WebExample, problem: str) -> WebExample:
    return replace(example, problem=example.problem or problem)


# --- Captions and conversations ---


def _captions(value: object, question: str) -> tuple[WebExample, ...]:
    """An example for each caption in `value`; all of them are references of each."""
    captions: list[tuple[str, str | None]] = []
    for item in value if isinstance(value, list | tuple) else [] if value is None else [value]:
        try:
            caption = _said(item, "caption")
            captions.append((caption, None if caption.strip() else "its caption is empty"))
        except _NoText as error:
            captions.append(("", str(error)))
    references = tuple(caption for caption, problem in captions if problem is None)
    return tuple(WebExample(prompt=question, answer=c, references=references, problem=p) for c, p in captions)


def _conversation(turns: object) -> tuple[WebExample, ...]:
    """LLaVA's layout, [{"from": "human" or "gpt", "value": text}]: every question with the answer that follows it."""
    if not isinstance(turns, list | tuple) or not turns:
        return (unusable("its conversation is no list of turns"),)
    examples: list[WebExample] = []
    question: WebExample | None = None
    for turn in turns:
        speaker, spoken = _turn(turn)
        if speaker in _ANSWERING:
            examples.append(_answered(question, spoken))
            question = None
            continue
        examples += [_refused(question, "its question is not answered")] if question is not None else []
        question = spoken if speaker in ASKING else None
        examples += [] if question is not None else [_refused(spoken, "its turn is neither human's nor gpt's")]
    examples += [_refused(question, "its question is not answered")] if question is not None else []
    asking = (turn for turn in turns if isinstance(turn, Mapping) and _speaker(turn) in ASKING)
    pictures = sum(str(turn.get("value", turn.get("content"))).count(PLACEHOLDER) for turn in asking)
    return tuple(_refused(example, _SEVERAL) for example in examples) if pictures > 1 else tuple(examples)


def _speaker(turn: Mapping[str, object]) -> str:
    return str(turn.get("from") or turn.get("role"))


def _turn(turn: object) -> tuple[str, WebExample]:
    """Who speaks, and what is said as the prompt of an example or its problem."""
    if not isinstance(turn, Mapping):
        return "", unusable(f"its turn is {_kind(turn)}, not an object")
    speaker = _speaker(turn)
    try:
        words = _text(turn.get("value", turn.get("content")), "turn")
        return speaker, WebExample(prompt=_question(words) if speaker in ASKING else words)
    except _NoText as error:
        return speaker, unusable(str(error))


def _answered(question: WebExample | None, answer: WebExample) -> WebExample:
    if question is None:
        return _refused(answer, "it has an answer and no question")
    problem = question.problem or answer.problem or (None if question.prompt else "its question is empty")
    return WebExample(prompt=question.prompt, answer=answer.prompt, references=(answer.prompt,), problem=problem)


def _question(text: str) -> str:
    """A question without the mark that stands for its picture."""
    if text.count(PLACEHOLDER) > 1:
        raise _NoText(_SEVERAL)
    return text.replace(PLACEHOLDER, "").strip() if PLACEHOLDER in text else text if text.strip() else ""


# --- Texts ---


def _texts(value: object, what: str) -> list[str]:
    """Texts of a text, a list of texts, or a list of {"answer": text} or {"raw": text}."""
    items = value if isinstance(value, list | tuple) else [] if value is None else [value]
    return [_said(item, what) for item in items]


def _said(item: object, what: str) -> str:
    if isinstance(item, Mapping):
        if "answer" not in item and "raw" not in item:
            raise _NoText(f"its {what} is an object without 'answer' or 'raw'")
        return _text(item.get("answer"), what) or _text(item.get("raw"), what)
    return _text(item, what)


def _text(value: object, what: str) -> str:
    """`value` in words, "" for nothing. Raises _NoText for what is neither a text nor a number."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):  # a column of whole numbers with a gap comes as decimal ones
        return str(int(value)) if value.is_integer() and abs(value) < _EXACT else str(value)
    if isinstance(value, Decimal) and value.is_finite():
        return str(value)
    if isinstance(value, bytes):
        with suppress(UnicodeDecodeError):
            return value.decode()
    raise _NoText(f"its {what} is {_kind(value)}, not a text")


def _kind(value: object) -> str:
    names: dict[type, str] = {
        bool: "a truth value",
        list: "a list",
        dict: "an object",
        bytes: "bytes that are no UTF-8",
    }
    number = isinstance(value, float | Decimal)
    return str(value).lower() if number else names.get(type(value), f"of type {type(value).__name__}")

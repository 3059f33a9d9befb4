"""What is no text never becomes words, and what is read is never left out of the account."""

from __future__ import annotations

import itertools
import json
import math
from datetime import date
from decimal import Decimal
from typing import Any

import pytest

from preprocessing.web.records import WebExample
from preprocessing.web.texts import TEXT_FIELDS, examples_of, without_picture

UNREAD = "its picture is named by 'image_id', which is not read: name it 'image'"


def told(fields: dict[str, Any]) -> list[tuple[str, str]]:
    """(prompt, answer) of the examples that can be used."""
    return [(example.prompt, example.answer) for example in examples_of(fields) if example.problem is None]


def problems(fields: dict[str, Any]) -> list[str | None]:
    return [example.problem for example in examples_of(fields)]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (math.nan, "its answer is nan, not a text"),
        (-math.inf, "its answer is -inf, not a text"),
        (Decimal("NaN"), "its answer is nan, not a text"),
        (True, "its answer is a truth value, not a text"),
        ([["red"]], "its answer is a list, not a text"),
        ([math.nan, "red"], "its answer is nan, not a text"),
        ({"text": "red"}, "its answer is an object without 'answer' or 'raw'"),
        (b"\xff", "its answer is bytes that are no UTF-8, not a text"),
        (date(2020, 1, 1), "its answer is of type date, not a text"),
        ("", "its answer is empty"),
        ([None, " "], "its answer is empty"),
        (None, "it has neither question and answer nor a caption"),
    ],
)
def test_what_is_no_answer_is_named(answer: Any, reason: str) -> None:
    assert problems({"question": "what?", "answer": answer}) == [reason]


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (2, "2"),
        (0, "0"),
        (2.5, "2.5"),
        (3.0, "3"),
        (1e300, "1e+300"),
        (Decimal("1.50"), "1.50"),
        ("nan", "nan"),
        ("日本", "日本"),
        (b"red", "red"),
    ],
)
def test_numbers_are_said_as_they_stand(answer: Any, text: str) -> None:
    assert told({"question": "what?", "answer": answer}) == [("what?", text)]


def test_empty_answers_have_no_vote() -> None:
    (example,) = examples_of({"question": "what?", "answers": [None, "", "red", ""], "multiple_choice_answer": ""})
    assert (example.answer, example.problem) == ("red", None)
    (example,) = examples_of({"question": "what?", "answers": [{"answer": ""}], "multiple_choice_answer": "red"})
    assert example.references == ("red",)


@pytest.mark.parametrize("question", [math.nan, ["what?", "who?"], {"a": 1}, False])
def test_what_is_no_question_is_named(question: Any) -> None:
    (problem,) = problems({"question": question, "answer": "red"})
    assert problem is not None and problem.startswith("its question is ")


@pytest.mark.parametrize("question", [None, "", " ", "<image>"])
def test_an_answer_needs_a_question(question: Any) -> None:
    assert problems({"question": question, "answer": "red"}) == ["it has an answer and no question"]


def test_one_bad_caption_costs_itself() -> None:
    examples = examples_of({"captions": ["a cup", math.nan, "", "a mug"]})
    assert [example.problem for example in examples] == [
        None,
        "its caption is nan, not a text",
        "its caption is empty",
        None,
    ]
    assert all(example.references == ("a cup", "a mug") for example in examples)


def talk(*turns: tuple[Any, Any]) -> dict[str, Any]:
    return {"conversations": [{"from": speaker, "value": value} for speaker, value in turns]}


def test_a_conversation_is_a_question_for_each_answer() -> None:
    fields = talk(("human", "<image>\nwhat is it?"), ("gpt", "a cup"), ("human", "which colour?"), ("gpt", "red"))
    assert told(fields) == [("what is it?", "a cup"), ("which colour?", "red")]
    assert told(talk(("human", "what is it?\n<image>"), ("gpt", "a cup"))) == [("what is it?", "a cup")]
    assert told({"conversations": [{"role": "user", "content": "who?"}, {"role": "assistant", "content": "me"}]}) == [
        ("who?", "me")
    ]


@pytest.mark.parametrize(
    ("fields", "reasons"),
    [
        (talk(("human", "a?"), ("human", "b?"), ("gpt", "b")), ["its question is not answered", None]),
        (talk(("human", "a?"), ("gpt", "a"), ("human", "b?")), [None, "its question is not answered"]),
        (talk(("gpt", "a")), ["it has an answer and no question"]),
        (talk(("human", "<image>"), ("gpt", "a")), ["its question is empty"]),
        (talk(("human", math.nan), ("gpt", "a")), ["its turn is nan, not a text"]),
        (talk(("human", "a?"), ("gpt", math.nan)), ["its turn is nan, not a text"]),
        (talk(("system", "be kind"), ("human", "a?"), ("gpt", "a")), ["its turn is neither human's nor gpt's", None]),
        (talk(("human", "<image><image> a?"), ("gpt", "a")), ["it is about several pictures, and an example has one"]),
        (
            talk(("human", "<image>a?"), ("gpt", "a"), ("human", "<image>b?"), ("gpt", "b")),
            ["it is about several pictures, and an example has one"] * 2,
        ),
        ({"conversations": []}, ["its conversation is no list of turns"]),
        ({"conversations": "what?"}, ["its conversation is no list of turns"]),
        (
            {"conversations": [7]},
            ["its turn is of type int, not an object"],
        ),
    ],
)
def test_every_turn_is_in_the_account(fields: dict[str, Any], reasons: list[str | None]) -> None:
    assert problems(fields) == reasons


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"question": "who?", "answer": "me"}, None),
        ({"caption": "a cup"}, "it is a caption without a picture"),
        (
            {"image_id": 7, "question": "who?", "answer": "me"},
            UNREAD,
        ),
        ({"jpg": b"\xff\xd8", "question": "who?", "answer": "me"}, UNREAD.replace("image_id", "jpg")),
        ({"pixel_values": [0], "question": "who?", "answer": "me"}, UNREAD.replace("image_id", "pixel_values")),
        ({"img_path": None, "question": "who?", "answer": "me"}, None),
        (talk(("human", "who?"), ("gpt", "me")), "its conversation is about no picture"),
    ],
)
def test_words_alone_are_questions_alone(fields: dict[str, Any], reason: str | None) -> None:
    (example,) = without_picture(fields, examples_of(fields))
    assert example.problem == reason


def test_anything_in_the_place_of_a_text_has_a_reason() -> None:
    """Whatever JSON holds, there is an example to count, and no text that was not there."""
    things = json.loads('[null, true, 1, NaN, "", "x", [], {}, [null], [{}], {"answer": null}, [["x"]]]')
    for name, thing in itertools.product(TEXT_FIELDS, things):
        examples = examples_of({"question": "what?", "answer": "x", "caption": "y"} | {name: thing})
        assert examples
        for example in examples:
            assert example.problem or {example.prompt, example.answer} <= {"", "what?", "x", "y", "1"}


def test_a_list_of_pictures_is_told_of_its_flag() -> None:
    example = WebExample(prompt="which is red?", answer="the first")
    (listed,) = without_picture({"images": ["a.png", "b.png"]}, [example])
    (named,) = without_picture({"images": "a.png"}, [example])
    assert listed.problem is not None and listed.problem.endswith("give --pictures N for examples of several")
    assert named.problem is not None and named.problem.endswith("name it 'image'")

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.evaluation.answers import cider_d, normalised, vqa_accuracy


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The Red Ball.", "red ball"),
        ("two", "2"),
        ("none", "0"),
        ("don't", "dont"),
        ("1,000", "1000"),
        ("3.5", "3.5"),
        ("yes!", "yes"),
        ("black-and-white", "black and white"),
    ],
)
def test_answers_are_compared_as_vqa_does(answer: str, expected: str) -> None:
    assert normalised(answer) == expected


@given(st.text())
def test_normalising_twice_changes_nothing(text: str) -> None:
    assert normalised(normalised(text)) == normalised(text)


@pytest.mark.parametrize(("agreeing", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_vqa_accuracy_with_ten_people(agreeing: int, expected: float) -> None:
    references = ["Red"] * agreeing + [f"other {number}" for number in range(10 - agreeing)]
    assert vqa_accuracy("the red", references) == pytest.approx(expected)


def test_vqa_accuracy_with_one_person() -> None:
    assert (vqa_accuracy("Yes", ["yes"]), vqa_accuracy("no", ["yes"])) == (1.0, 0.0)


REFERENCES = [["a dog runs on grass", "the dog is running on the grass"], ["two people eat a pizza"], ["a red bus"]]


def test_the_reference_itself_scores_ten_and_a_stranger_nothing() -> None:
    scores = cider_d(["a zebra", "two people eat a pizza", "a red bus"], REFERENCES)
    assert scores[0] == pytest.approx(0, abs=1e-9)
    assert scores[1] == pytest.approx(10)
    assert scores[2] == pytest.approx(7.5)  # three words have no 4-gram


def test_more_words_of_the_reference_score_more() -> None:
    near, far, other = (
        cider_d([said, "", ""], REFERENCES)[0] for said in ("a dog runs on grass", "a dog", "a red bus")
    )
    assert near > far > other
    padded = cider_d(["a dog runs on grass " + "grass " * 20, "", ""], REFERENCES)[0]
    assert padded < near / 2

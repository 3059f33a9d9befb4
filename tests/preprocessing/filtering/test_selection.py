"""The choice among examples: exact shares, ties by order, one of every picture, and a sum that adds up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocessing.filtering import selection
from preprocessing.filtering.picture_signature import THUMBNAIL_NUMBERS
from preprocessing.filtering.selection import FURTHER, NO_PICTURE, Examples, Verdict, select

OFF = {"min_score": None, "languages": (), "same_text": None, "distance": 3}


def examples(scores: list[float], *, pictures: list[int] | None = None, bits: list[int] | None = None) -> Examples:
    count = len(scores)
    numbers = list(range(count)) if pictures is None else pictures
    hashes = [np.random.default_rng(n).integers(2**63) for n in range(count)] if bits is None else bits
    return Examples(
        usable_N=np.ones(count, bool),
        score_N=np.array(scores),
        language_N=np.array(["en"] * count, object),
        picture_N=np.array(numbers),
        text_N=np.arange(count).astype(np.uint64),
        bits_P=np.array(hashes, np.uint64),
        thumbnails_PK=np.zeros((len(hashes), THUMBNAIL_NUMBERS), np.uint8),
    )


@given(st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.5, -1.0, 7.0]), max_size=60), st.floats(0.01, 1))
def test_the_highest_are_kept_and_ties_go_to_the_earlier(scores: list[float], keep: float) -> None:
    chosen = select(examples(scores), keep=keep, **OFF)
    order = sorted(range(len(scores)), key=lambda place: (-scores[place], place))[: round(keep * len(scores))]
    assert np.flatnonzero(chosen.verdict_N == Verdict.KEPT).tolist() == sorted(order)
    assert chosen.lowest == (min(scores[place] for place in order) if order else None)


def test_what_is_unusable_or_of_another_language_is_not_counted_in_the_share() -> None:
    given_ = examples([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    given_.usable_N[0] = False
    given_.language_N[1] = "fr"
    chosen = select(given_, keep=0.5, **OFF | {"languages": ("en",)})
    assert [Verdict(v).name for v in chosen.verdict_N] == ["QUARANTINED", "LANGUAGE", "KEPT", "KEPT", "SCORE", "SCORE"]


def test_of_copies_the_highest_score_stays_with_all_its_texts() -> None:
    bits = [0, 0b111, 0b1111 << 16, 2**63 - 1]  # the second is 3 bits from the first, the third 4
    given_ = examples([0.1, 0.3, 0.2, 0.4, 0.5, 0.25], pictures=[0, 1, 2, 3, 3, NO_PICTURE], bits=bits)
    chosen = select(given_, keep=1.0, **OFF | {"same_text": False})
    assert chosen.original_N.tolist() == [1, -1, -1, -1, -1, -1]
    exact = select(given_, keep=1.0, **OFF | {"same_text": False, "distance": 2})
    assert (exact.original_N == -1).all()


def test_copies_with_other_words_are_pairs_of_their_own_if_asked() -> None:
    given_ = examples([0.3, 0.2, 0.1, 0.1], pictures=[0, 0, 1, 1], bits=[5, 5])
    given_.text_N[:] = [1, 2, 1, 1]
    assert select(given_, keep=1.0, **OFF | {"same_text": True}).original_N.tolist() == [-1, -1, 0, 0]
    assert select(given_, keep=1.0, **OFF | {"same_text": False}).original_N.tolist() == [-1, -1, 0, 0]
    given_.text_N[:] = [1, 2, 3, 3]
    assert select(given_, keep=1.0, **OFF | {"same_text": True}).original_N.tolist() == [-1, -1, -1, 2]


def test_equal_hashes_of_unlike_pictures_are_no_copies() -> None:
    given_ = examples([0.2, 0.1], bits=[7, 7])
    given_.thumbnails_PK[1] += 13
    assert (select(given_, keep=1.0, **OFF | {"same_text": False}).original_N == -1).all()
    given_.thumbnails_PK[1] -= 1
    assert select(given_, keep=1.0, **OFF | {"same_text": False}).original_N.tolist() == [-1, 0]


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 7)), min_size=1, max_size=40), st.booleans())
def test_no_two_kept_pictures_are_near_and_every_duplicate_is_near_one_that_is_kept(
    drawn: list[tuple[int, int]], same_text: bool
) -> None:
    given_ = examples([score / 4 for score, _ in drawn], bits=[1 << bit for _, bit in drawn])
    given_.text_N[:] = 0
    chosen = select(given_, keep=1.0, **OFF | {"same_text": same_text, "distance": 1})
    kept = np.flatnonzero(chosen.original_N < 0)
    bits = given_.bits_P
    assert all(np.bitwise_count(bits[a] ^ bits[b]) > 1 for a in kept for b in kept if a < b)
    for copy in np.flatnonzero(chosen.original_N >= 0):
        original = chosen.original_N[copy]
        assert original in kept and np.bitwise_count(bits[copy] ^ bits[original]) <= 1
        assert (-given_.score_N[original], original) < (-given_.score_N[copy], copy)


def of_several(scores: list[float], pages: list[list[int]]) -> Examples:
    """An example a page, which is the hashes of its pictures."""
    further = {}
    for number, page in enumerate(pages):
        if len(page) > 1:
            further[number] = np.zeros(len(page) - 1, FURTHER)
            further[number]["bits"] = page[1:]
    return replace(examples(scores, bits=[page[0] for page in pages]), further=further)


_HASHES = st.sampled_from([0, 0b1, 0b111, 0b1111, 1 << 16 | 1 << 32 | 1 << 48, 1 << 63 | 1 << 40 | 1 << 20 | 1])


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.lists(_HASHES, min_size=1, max_size=3)), min_size=1, max_size=25),
    st.integers(0, 3),
)
def test_of_pages_every_copy_is_found_as_by_comparing_all(drawn: list[tuple[int, list[int]]], distance: int) -> None:
    scores, pages = [score / 4 for score, _ in drawn], [page for _, page in drawn]
    kept: list[int] = []
    expected = [-1] * len(pages)
    for place in sorted(range(len(pages)), key=lambda place: (-scores[place], place)):
        alike = (
            other
            for other in kept
            if len(pages[other]) == len(pages[place])
            and all((a ^ b).bit_count() <= distance for a, b in zip(pages[other], pages[place], strict=True))
        )
        expected[place] = next(alike, -1)
        kept += [place] if expected[place] < 0 else []
    given_ = of_several(scores, pages)
    given_.text_N[:] = 0
    for same_text in (False, True):
        chosen = select(given_, keep=1.0, **OFF | {"same_text": same_text, "distance": distance})
        assert chosen.original_N.tolist() == expected


def test_pages_that_begin_with_one_picture_are_not_all_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = 0
    near = selection.are_near

    def counting(bits: Any, thumbnail: Any, others: Any, *rest: Any, **settings: Any) -> np.ndarray:
        nonlocal compared
        compared += len(others)
        return near(bits, thumbnail, others, *rest, **settings)

    monkeypatch.setattr(selection, "are_near", counting)
    count = 400
    lasts = np.random.default_rng(0).integers(2**63, size=count).tolist()
    pages = [[5, last] for last in lasts]
    chosen = select(of_several([0.5] * count, pages), keep=1.0, **OFF | {"same_text": False})
    assert (chosen.original_N == -1).all() and compared < 10 * count  # of 80 000 pairs

"""Which examples of a set are kept: a function of scores, languages and signatures alone, the same on any machine.

In this order: what has a problem is quarantined; languages that are not asked for and all but the highest scores are
filtered; of copies of a picture the one with the highest score stays. Ties go to the earlier example. Examples of
several pictures are copies if they have as many, and each is a copy of its counterpart.

Axes: N examples, S those that are left, K numbers of a thumbnail.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np

from preprocessing.filtering.languages import spoken
from preprocessing.filtering.picture_signature import THUMBNAIL_NUMBERS, are_near

BANDS = 4  # of 16 bits: two hashes that differ in at most 3 bits agree in one of them
MOST_BITS = BANDS - 1
NO_PICTURE = -1
FURTHER = np.dtype([("bits", "<u8"), ("thumbnail", "u1", (THUMBNAIL_NUMBERS,))])
"""The signature of a picture after an example's first."""


class Verdict(IntEnum):
    """What becomes of an example."""

    KEPT = 0
    QUARANTINED = 1
    LANGUAGE = 2
    SCORE = 3
    DUPLICATE = 4


@dataclass(frozen=True, kw_only=True)
class Examples:
    """All examples of a store, in order. `picture_N` names an example's first picture among the signatures, -1 for
    none; `further` has the signatures after it, (M,) of `FURTHER`, by its name."""

    usable_N: np.ndarray
    score_N: np.ndarray
    language_N: np.ndarray
    picture_N: np.ndarray
    text_N: np.ndarray
    """uint64: equal for equal texts."""
    bits_P: np.ndarray
    thumbnails_PK: np.ndarray
    further: Mapping[int, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """`verdict_N` of `Verdict`; `original_N`: the example that a duplicate is one of, else -1; `lowest` the lowest
    score that passed, None if none did."""

    verdict_N: np.ndarray
    original_N: np.ndarray
    lowest: float | None


def select(
    examples: Examples,
    *,
    keep: float,
    min_score: float | None,
    languages: Sequence[str],
    same_text: bool | None,
    distance: int,
) -> Selection:
    """Keep the share `keep` of the highest scores, if they are at least `min_score`, in `languages` (none: any).

    `same_text`: a duplicate has the words of its original too; None looks for no duplicates.
    """
    verdict_N = np.full(len(examples.score_N), Verdict.KEPT, np.uint8)
    verdict_N[~examples.usable_N] = Verdict.QUARANTINED
    if languages:
        spoken_N = spoken(examples.language_N, languages)
        verdict_N[~spoken_N & examples.usable_N] = Verdict.LANGUAGE
    passing = np.flatnonzero(verdict_N == Verdict.KEPT)
    high = _highest(examples.score_N[passing], round(keep * len(passing)))
    if min_score is not None:
        high &= examples.score_N[passing] >= min_score
    verdict_N[passing[~high]] = Verdict.SCORE
    left = passing[high]
    lowest = float(examples.score_N[left].min()) if len(left) else None
    original_N = np.full(len(verdict_N), -1, np.int64)
    if same_text is not None and len(left):
        original_N[left] = _originals(examples, left, same_text=same_text, distance=distance)
        verdict_N[original_N >= 0] = Verdict.DUPLICATE
    return Selection(verdict_N=verdict_N, original_N=original_N, lowest=lowest)


def _highest(score_S: np.ndarray, count: int) -> np.ndarray:
    """bool (S,): the `count` highest scores; of equal ones at the border the earlier."""
    if count == 0:
        return np.zeros(len(score_S), bool)
    border = np.partition(score_S, len(score_S) - count)[len(score_S) - count]
    high_S = score_S > border
    level = np.flatnonzero(score_S == border)
    high_S[level[: count - int(high_S.sum())]] = True
    return high_S


def _originals(examples: Examples, left: np.ndarray, *, same_text: bool, distance: int) -> np.ndarray:
    """int64 (S,): the example that each of `left` copies, -1 for none. Pictures are taken by falling score."""
    order = left[np.lexsort((left, -examples.score_N[left]))]
    pictures = examples.picture_N[order].tolist()
    texts = examples.text_N[order].tolist() if same_text else [0] * len(order)
    original_N = np.full(len(examples.score_N), -1, np.int64)
    fate: dict[tuple[int, int], int] = {}  # a picture with its text -> what another example of it is a copy of
    index = _NearPictures(examples, distance)
    for example, picture, text in zip(order.tolist(), pictures, texts, strict=True):
        if picture == NO_PICTURE:
            continue
        if (picture, text) not in fate:
            original = index.find(picture, text)
            original_N[example] = original
            if original < 0:
                index.add(picture, text, example)
                original = example if same_text else -1  # several texts of one kept picture are no duplicates
            fate[picture, text] = original
        else:
            original_N[example] = fate[picture, text]
    return original_N[left]


def _bands(bits: int) -> list[tuple[int, int]]:
    """The bands of a hash, each with its number."""
    return [(band, bits >> 16 * band & 0xFFFF) for band in range(BANDS)]


class _NearPictures:
    """Pictures that were added, found again by their bands of bits: those of an example's first picture, and of several
    together with those of the last, since many examples may begin with one picture, such as a logo."""

    def __init__(self, examples: Examples, distance: int) -> None:
        self._examples, self._distance = examples, distance
        self._buckets: defaultdict[tuple[int, ...], list[tuple[int, int]]] = defaultdict(list)

    def add(self, picture: int, text: int, example: int) -> None:
        for bucket in self._buckets_of(picture, text):
            bucket.append((example, picture))

    def find(self, picture: int, text: int) -> int:
        """The first example that was added of those near it, -1 if there is none."""
        near = [found for bucket in self._buckets_of(picture, text) if (found := self._first(picture, bucket)) >= 0]
        if not near:
            return -1
        scores = self._examples.score_N
        return min(near, key=lambda example: (-scores[example], example))

    def _buckets_of(self, picture: int, text: int) -> list[list[tuple[int, int]]]:
        keys = _bands(int(self._examples.bits_P[picture]))
        further = self._examples.further.get(picture)
        if further is None:
            return [self._buckets[text, *first] for first in keys]
        lasts = _bands(int(further["bits"][-1]))
        return [self._buckets[text, len(further), *first, *last] for first in keys for last in lasts]

    def _first(self, picture: int, bucket: list[tuple[int, int]]) -> int:
        if not bucket:
            return -1
        bits_P, thumbnails_PK = self._examples.bits_P, self._examples.thumbnails_PK
        others = np.array([number for _, number in bucket])
        near = are_near(
            bits_P[picture],
            thumbnails_PK[picture].astype(np.int16),
            bits_P[others],
            thumbnails_PK[others],
            distance=self._distance,
        )
        copies = (place for place in np.flatnonzero(near) if self._same_further(picture, int(others[place])))
        place = next(copies, None)
        return -1 if place is None else bucket[int(place)][0]

    def _same_further(self, picture: int, other: int) -> bool:
        """Whether the pictures after these two are copies of each other, one by one."""
        further = self._examples.further
        mine, theirs = further.get(picture), further.get(other)
        if mine is None or theirs is None:
            return mine is theirs
        if len(mine) != len(theirs):
            return False
        thumbnails = mine["thumbnail"].astype(np.int16)
        return all(
            are_near(mine["bits"][i], thumbnails[i], *theirs_i, distance=self._distance).all()
            for i, theirs_i in enumerate(zip(theirs["bits"][:, None], theirs["thumbnail"][:, None], strict=True))
        )

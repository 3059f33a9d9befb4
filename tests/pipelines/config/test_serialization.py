from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.config.serialization import flatten, from_plain, to_plain


@dataclass(frozen=True, kw_only=True)
class Warm:
    rate: float = 0.1
    kind: Literal["a", "b"] = "a"


@dataclass(frozen=True, kw_only=True)
class Cold:
    rate: float = 0.2
    name: str | None = None


@dataclass(frozen=True, kw_only=True)
class Whole:
    steps: int
    part: Warm | Cold = field(default_factory=Warm)
    sizes: tuple[int, ...] = ()
    pair: tuple[float, float] = (0.0, 1.0)
    on: bool = False


FLOATS = st.floats(allow_nan=False)
WHOLES = st.builds(
    Whole,
    steps=st.integers(),
    part=st.builds(Warm, rate=FLOATS, kind=st.sampled_from(["a", "b"]))
    | st.builds(Cold, rate=FLOATS, name=st.none() | st.text()),
    sizes=st.lists(st.integers()).map(tuple),
    pair=st.tuples(FLOATS, FLOATS),
    on=st.booleans(),
)


@given(WHOLES)
def test_round_trip(whole: Whole) -> None:
    assert from_plain(Whole, to_plain(whole)) == whole


def test_a_part_keeps_what_the_overlay_does_not_name() -> None:
    base = Whole(steps=3, part=Cold(rate=5.0, name="x"))
    assert from_plain(Whole, {"part": {"rate": 6}}, base=base) == Whole(steps=3, part=Cold(rate=6.0, name="x"))
    assert from_plain(Whole, {"part": {"type": "Warm"}}, base=base).part == Warm()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"stepz": 1}, "stepz is not a setting of Whole: did you mean 'steps'?"),
        ({"steps": "many"}, "steps: expected a whole number, got 'many'"),
        ({"steps": True}, "steps: expected a whole number, got True"),
        ({}, "steps is missing"),
        ({"steps": 1, "part": {"type": "Hot"}}, "part: no config class 'Hot'"),
        ({"steps": 1, "part": {"kind": "c"}}, "part.kind: expected one of a, b, got 'c'"),
        ({"steps": 1, "pair": [1.0]}, "pair: expected 2 values, got 1"),
        ({"steps": 1, "part": 7}, "part: expected Warm or Cold, got 7"),
        ([], "expected a mapping"),
    ],
)
def test_mistakes_name_the_setting(data: object, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        from_plain(Whole, data)


def test_flatten() -> None:
    assert flatten({"a": {"b": 1, "c": [2]}, "d": 3}) == {"a.b": 1, "a.c": [2], "d": 3}

"""Keyed random numbers."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from rt_models.blocks.keyed_random import integers, mix, uniform

int64 = st.integers(-(2**63), 2**63 - 1)


def splitmix64(state: int) -> int:
    """The finaliser in unbounded integers, from the published algorithm."""
    z = (state + 0x9E3779B97F4A7C15) % 2**64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    return z ^ (z >> 31)


def test_the_first_number_of_the_published_generator() -> None:
    assert int(mix(0)) % 2**64 == 0xE220A8397B1DCDAF  # SplitMix64 seeded with 0


@given(keys=st.lists(int64, min_size=1, max_size=4))
def test_mix_is_the_published_finaliser_chained(keys: list[int]) -> None:
    expected = 0
    for key in keys:
        expected = splitmix64(expected ^ key % 2**64)
    assert int(mix(*[torch.tensor([key]) for key in keys])) % 2**64 == expected


@given(keys=st.lists(int64, min_size=2, max_size=8), bound=st.integers(1, 1000))
def test_a_number_depends_on_its_key_alone(keys: list[int], bound: int) -> None:
    together = integers(bound, torch.tensor(keys), 5)
    alone = [int(integers(bound, torch.tensor([key]), 5)) for key in keys]
    assert together.tolist() == alone
    assert all(0 <= number < bound for number in alone)


def test_numbers_are_uniform_and_streams_are_independent() -> None:
    keys = torch.arange(20_000)
    first, second = uniform(keys, 0), uniform(keys, 1)
    assert abs(float(first.mean()) - 0.5) < 0.01
    assert abs(float(first.var()) - 1 / 12) < 0.002
    assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 0.03
    counts = integers(41, keys, 7).bincount(minlength=41)
    assert int(counts.min()) > 380 and int(counts.max()) < 600

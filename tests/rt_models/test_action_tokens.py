"""The action tokenizer: the official numbers, and the laws of encoding and decoding."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rt_models.action_space import ActionDimension, ActionSpec, rt1_action_spec
from rt_models.action_tokens import decode, encode


def one_dimension(low: float, high: float, bins: int, binning: str = "truncate") -> ActionSpec:
    dimension = ActionDimension(name="x", low=low, high=high, unit="m")
    return ActionSpec(name="line", dimensions=(dimension,), gripper="none", bins=bins, binning=binning)  # type: ignore[arg-type]


lines = st.builds(
    one_dimension,
    low=st.floats(-10, 0, width=32),
    high=st.floats(0.125, 10, width=32),
    bins=st.sampled_from([2, 3, 255, 256, 512, 1000]),
    binning=st.sampled_from(["truncate", "centre"]),
)


def test_zero_is_bin_127_and_decodes_half_a_bin_low() -> None:
    spec = one_dimension(-1, 1, 256)
    assert encode(torch.zeros(1), spec).tolist() == [127]
    assert decode(torch.tensor([127]), spec).item() == pytest.approx(-0.0039, abs=1e-4)


@pytest.mark.parametrize(
    ("high", "bins", "changed"),
    [(1, 256, 63), (2, 256, 63), (math.pi, 256, 39), (math.pi / 2, 256, 39)],
)
def test_truncation_is_not_idempotent_in_float32_as_measured_on_the_official_code(
    high: float, bins: int, changed: int
) -> None:
    spec = one_dimension(-high, high, bins)
    tokens = torch.arange(bins)[:, None]
    again = encode(decode(tokens, spec), spec)
    assert int((again != tokens).sum()) == changed
    assert int((tokens - again).max()) == 1


@pytest.mark.parametrize(("high", "changed"), [(2, {40, 83}), (math.pi, {40, 83})])
def test_truncation_at_512_bins(high: float, changed: set[int]) -> None:
    tokens = torch.arange(512)[:, None]
    spec = one_dimension(-high, high, 512)
    assert int((encode(decode(tokens, spec), spec) != tokens).sum()) in changed


def test_only_the_upper_bound_itself_is_in_the_last_bin() -> None:
    spec = one_dimension(-1, 1, 256)
    values = torch.tensor([[1.0], [np.nextafter(np.float32(1), np.float32(0)).item() - 1e-6], [5.0]])
    assert encode(values, spec).flatten().tolist() == [255, 254, 255]


@given(spec=lines, share=st.floats(0, 1, width=32))
def test_decode_of_encode_is_within_one_bin(spec: ActionSpec, share: float) -> None:
    dimension = spec.dimensions[0]
    value = torch.tensor([dimension.low + share * (dimension.high - dimension.low)]).clamp(
        dimension.low, dimension.high
    )
    width = dimension.high - dimension.low
    bin_width = width / (spec.bins - 1) if spec.binning == "truncate" else width / spec.bins / 2
    assert abs(decode(encode(value, spec), spec) - value).item() <= bin_width + 1e-5


@given(spec=lines.filter(lambda spec: spec.binning == "centre"))
def test_centres_encode_to_their_own_bin(spec: ActionSpec) -> None:
    tokens = torch.arange(spec.bins)[:, None]
    assert torch.equal(encode(decode(tokens, spec), spec), tokens)


@given(spec=lines, values=st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=20))
def test_encoding_is_monotone_and_stays_in_range(spec: ActionSpec, values: list[float]) -> None:
    tokens = encode(torch.tensor(sorted(values))[:, None], spec).flatten()
    assert (tokens.diff() >= 0).all()
    assert int(tokens.min()) >= 0 and int(tokens.max()) < spec.bins


@pytest.mark.parametrize(("binning", "bias_bins"), [("truncate", -0.5), ("centre", 0.0)])
def test_truncation_is_half_a_bin_low_on_average_and_centring_is_not(binning: str, bias_bins: float) -> None:
    spec = one_dimension(-1, 1, 256, binning)
    values = torch.linspace(-1, 1, 100_001)[:, None]
    error = (decode(encode(values, spec), spec) - values).double().mean().item()
    assert error / (2 / 255) == pytest.approx(bias_bins, abs=0.01)


def test_a_class_is_its_own_token_and_is_clamped_to_the_classes() -> None:
    spec = rt1_action_spec()
    values = torch.zeros(5, spec.size)
    values[:, 0] = torch.tensor([-1.0, 0.0, 1.0, 2.0, 7.0])
    assert encode(values, spec)[:, 0].tolist() == [0, 0, 1, 2, 2]
    tokens = torch.zeros(2, spec.size, dtype=torch.int64)
    tokens[:, 0] = torch.tensor([1, 200])
    assert decode(tokens, spec)[:, 0].tolist() == [1.0, 2.0]


def test_a_dimension_of_one_class_has_the_token_and_the_value_0() -> None:
    only = ActionDimension(name="x", low=1, high=2, unit="class", num_classes=1)
    spec = ActionSpec(name="one", dimensions=(only,), gripper="none", bins=4)
    assert encode(torch.tensor([[0.0], [2.0]]), spec).flatten().tolist() == [0, 0]
    assert decode(torch.tensor([[0], [3]]), spec).flatten().tolist() == [0.0, 0.0]


def test_float64_input_is_binned_in_float32() -> None:
    just_below = torch.tensor([1 - 1e-9], dtype=torch.float64)  # 1 in float32
    assert encode(just_below, one_dimension(-1, 1, 256)).item() == 255


def test_the_wrong_number_of_dimensions_is_refused() -> None:
    with pytest.raises(ValueError, match=r"axis of 11 dimensions, got shape \(4, 7\)"):
        encode(torch.zeros(4, 7), rt1_action_spec())


def test_worked_examples_of_both_rules() -> None:
    values = torch.tensor([[-1.0], [-0.4], [0.0], [0.4], [1.0]])
    tokens = {rule: encode(values, one_dimension(-1, 1, 4, rule)).flatten().tolist() for rule in ("truncate", "centre")}
    assert tokens == {"truncate": [0, 0, 1, 2, 3], "centre": [0, 1, 2, 2, 3]}
    bins = torch.arange(4)[:, None]
    truncated, centred = (decode(bins, one_dimension(-1, 3, 4, rule)).flatten() for rule in ("truncate", "centre"))
    torch.testing.assert_close(truncated, torch.tensor([-1, 1 / 3, 5 / 3, 3]))
    torch.testing.assert_close(centred, torch.tensor([-0.5, 0.5, 1.5, 2.5]))


@pytest.mark.parametrize("function", [encode, decode])
def test_sizes_are_checked_on_both_ways_and_a_number_alone_has_none(function: Callable[..., torch.Tensor]) -> None:
    with pytest.raises(ValueError, match=r"actions of line end in an axis of 1 dimensions, got shape \(2, 3\)"):
        function(torch.zeros(2, 3), one_dimension(-1, 1, 4))
    with pytest.raises(ValueError, match=r"got shape \(\)"):
        function(torch.tensor(0), one_dimension(-1, 1, 4))

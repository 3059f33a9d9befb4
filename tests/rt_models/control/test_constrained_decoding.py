"""Constrained decoding."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rt_models.action_space import rt1_action_spec
from rt_models.control.constrained_decoding import choose_tokens

SPEC = rt1_action_spec()


@given(seed=st.integers(0, 2**31))
def test_a_class_dimension_never_gets_a_token_that_is_no_class(seed: int) -> None:
    logits = 50 * torch.randn(8, SPEC.size, SPEC.bins, generator=torch.Generator().manual_seed(seed))
    assert int(choose_tokens(logits, SPEC)[:, 0].max()) <= 2


def test_unconstrained_dimensions_get_their_likeliest_token() -> None:
    logits = torch.randn(4, 3, SPEC.size, SPEC.bins)
    assert torch.equal(choose_tokens(logits, SPEC)[..., 1:], logits.argmax(-1)[..., 1:])


def test_logits_of_another_vocabulary_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(11, 256\), got shape \(1, 11, 512\)"):
        choose_tokens(torch.zeros(1, 11, 512), SPEC)


def test_a_model_may_mask_its_own_logits() -> None:
    logits = torch.zeros(2, SPEC.size, SPEC.bins)
    logits[..., 0] = logits[:, 3, :7] = -torch.inf
    assert choose_tokens(logits, SPEC)[1, 2:4].tolist() == [1, 7]


def test_logits_that_are_not_finite_are_no_action() -> None:
    for value, bins in ((torch.nan, 7), (torch.inf, 7), (-torch.inf, slice(None))):
        logits = torch.zeros(2, SPEC.size, SPEC.bins)
        logits[1, 3, bins] = value
        with pytest.raises(ValueError, match="the model's logits are not finite"):
            choose_tokens(logits, SPEC)

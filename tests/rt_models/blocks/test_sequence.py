"""The attention masks, against their definitions spelt out position by position."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rt_models.blocks.sequence import Layout, RowPlan, attention_mask

layouts = st.builds(
    Layout, num_steps=st.integers(1, 4), num_input_tokens=st.integers(1, 4), num_action_tokens=st.integers(1, 4)
)
RT1 = Layout(num_steps=6, num_input_tokens=8, num_action_tokens=11)


@given(layout=layouts, rule=st.sampled_from(["tf", "jax"]))
def test_masks_are_the_official_loops(layout: Layout, rule: str) -> None:
    mask = attention_mask(layout, rule)  # type: ignore[arg-type]
    for row in range(layout.size):
        for column in range(layout.size):
            row_acts, column_acts = (place % layout.step_size >= layout.num_input_tokens for place in (row, column))
            allowed = column <= row and not (column_acts and (row_acts or rule == "jax"))
            assert mask[row, column] == allowed


def test_an_image_token_does_not_see_the_later_tokens_of_its_own_frame() -> None:
    mask = attention_mask(RT1, "tf")
    assert not mask[3, 5] and mask[5, 3]
    assert mask[19, 8] and not attention_mask(RT1, "jax")[19, 8]  # the next frame's first token on the first action


def test_the_last_image_token_answers_for_the_first_action_and_the_last_action_position_for_none() -> None:
    assert RT1.output_positions("all")[:11].tolist() == list(range(7, 18))
    assert RT1.output_positions("last").tolist() == list(range(5 * 19 + 7, 5 * 19 + 18))


@given(layout=layouts, rule=st.sampled_from(["tf", "jax"]), output_steps=st.sampled_from(["all", "last"]))
def test_every_row_has_a_key_and_every_needed_key_is_a_row(layout: Layout, rule: str, output_steps: str) -> None:
    plan = RowPlan(layout, rule, output_steps)  # type: ignore[arg-type]
    mask = attention_mask(layout, rule)  # type: ignore[arg-type]
    rows, keys = plan.rows_R.numpy(), plan.rows_R[plan.keys_S].numpy()
    assert plan.mask_RS.any(dim=1).all()
    np.testing.assert_array_equal(plan.mask_RS.numpy(), mask[np.ix_(rows, keys)])
    assert mask[rows].sum() == plan.mask_RS.sum()  # no key of a computed row is left out


@pytest.mark.parametrize(
    ("rule", "output_steps", "rows"), [("jax", "all", 108), ("jax", "last", 58), ("tf", "all", 113)]
)
def test_rows_that_nobody_reads_are_not_computed(rule: str, output_steps: str, rows: int) -> None:
    assert len(RowPlan(RT1, rule, output_steps).rows_R) == rows  # type: ignore[arg-type]


@given(layout=layouts, rule=st.sampled_from(["tf", "jax"]), output_steps=st.sampled_from(["all", "last"]))
def test_outputs_and_steps_of_the_rows_are_those_of_their_positions(
    layout: Layout, rule: str, output_steps: str
) -> None:
    plan = RowPlan(layout, rule, output_steps)  # type: ignore[arg-type]
    rows = plan.rows_R.numpy()
    assert rows[plan.outputs_O.numpy()].tolist() == layout.output_positions(output_steps).tolist()  # type: ignore[arg-type]
    assert plan.step_R.tolist() == [row // layout.step_size for row in rows]
    assert sorted(set(rows.tolist())) == rows.tolist()
    assert not plan.state_dict() and {name for name, _ in plan.named_buffers()} >= {"rows_R", "mask_RS", "step_R"}

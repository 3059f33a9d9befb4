"""The transformer, against one that computes every position with the full mask."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from einops import rearrange
from torch import Tensor

from rt_models.blocks.sequence import Layout, attention_mask
from rt_models.blocks.transformer import Transformer, TransformerConfig
from tests.support.rt1_windows import stirred

LAYOUT = Layout(num_steps=3, num_input_tokens=4, num_action_tokens=5)
CONFIG = TransformerConfig(num_layers=3, num_heads=2, key_size=6, width=8, hidden=10, dropout=0.0)
CASES = [(mask, kind) for mask in ("tf", "jax") for kind in ("linear", "linear_bias", "swiglu")]


def build(**changes: object) -> Transformer:
    config = replace(CONFIG, **changes)  # type: ignore[arg-type]
    return stirred(config.build(LAYOUT, in_width=7, bins=9)).double()  # type: ignore[return-value]


def contents(batch: int = 2) -> tuple[Tensor, Tensor]:
    image = torch.randn(batch, LAYOUT.num_steps, LAYOUT.num_input_tokens, 7, dtype=torch.float64)
    action = torch.randn(batch, LAYOUT.num_steps, LAYOUT.num_action_tokens, 7, dtype=torch.float64)
    return image, action


def reference(
    model: Transformer, image: Tensor, action: Tensor | None, rule: str, first_step: int = 0, first_place: int = 0
) -> Tensor:
    """Softmax attention written out, all positions; `first_step` leaves earlier steps away, `first_place` their places
    in the table of positions."""
    layout = model.layout
    action = torch.zeros(*image.shape[:2], layout.num_action_tokens, 7).double() if action is None else action
    content = torch.cat([image, action], dim=2)[:, first_step:].flatten(1, 2)
    kept = slice(first_step * layout.step_size, None)
    mask = torch.from_numpy(attention_mask(layout, rule))[kept, kept]  # type: ignore[arg-type]
    places = slice(first_place * layout.step_size, None)
    position = model.position.weight[places][: content.shape[1]]
    x = model.token_projection(content) + position + model.position.bias
    for block in model.blocks:
        attention, h = block.attention, block.attention_norm(x)
        q, k, v = (
            rearrange(f(h), "b n (h k) -> b h n k", h=2) for f in (attention.query, attention.key, attention.value)
        )
        scores = (q @ k.transpose(-1, -2) / 6**0.5).masked_fill(~mask, -torch.inf)
        x = x + attention.out(rearrange(scores.softmax(-1) @ v, "b h n k -> b n (h k)"))
        h, forward = block.feed_forward_norm(x), block.feed_forward
        if hasattr(forward, "gate"):
            swish = forward.swish(h)
            x = x + forward.out(swish * swish.sigmoid() * forward.gate(h))
        else:
            x = x + forward.out(h)
    logits = rearrange(model.output(x), "b (t p) v -> b t p v", p=layout.step_size)
    return logits[:, :, layout.num_input_tokens - 1 : -1]


@pytest.mark.parametrize(("mask", "kind"), CASES)
@pytest.mark.parametrize("acting", [False, True])
def test_computing_only_the_needed_rows_changes_nothing(mask: str, kind: str, acting: bool) -> None:
    model = build(mask=mask, feed_forward=kind)
    image, action = contents()
    expected = reference(model, image, action if acting else None, mask)
    for output_steps, part in (("all", expected), ("last", expected[:, -1:])):
        logits = model(image, action if acting else None, None, output_steps)
        torch.testing.assert_close(logits, part, rtol=1e-12, atol=1e-12)


def test_the_two_masks_differ() -> None:
    image, _ = contents()
    tf, jax = (build(mask=mask) for mask in ("tf", "jax"))
    jax.load_state_dict(tf.state_dict())
    assert (tf(image) - jax(image)).abs().max() > 1e-3


@pytest.mark.parametrize("mask", ["tf", "jax"])
@pytest.mark.parametrize("padded", [0, 1, 2])
@pytest.mark.parametrize("episode_start", ["last_places", "first_places"])
def test_a_padded_window_equals_the_real_steps_alone_at_their_positions(
    mask: str, padded: int, episode_start: str
) -> None:
    model = build(mask=mask, episode_start=episode_start)
    image, action = contents()
    real = torch.arange(LAYOUT.num_steps).expand(2, -1) >= padded
    first_place = padded if episode_start == "last_places" else 0
    alone = reference(model, image, action, mask, first_step=padded, first_place=first_place)
    torch.testing.assert_close(model(image, action, real)[:, padded:], alone, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(model(image, action, real, "last"), alone[:, -1:], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("episode_start", ["last_places", "first_places"])
def test_windows_of_one_batch_may_be_padded_differently(episode_start: str) -> None:
    model = build(episode_start=episode_start)
    image, action = contents(3)
    real = torch.tensor([[True, True, True], [False, True, True], [False, False, True]])
    together = model(image, action, real)
    for row in range(3):
        alone = model(image[row : row + 1], action[row : row + 1], real[row : row + 1])
        torch.testing.assert_close(together[row][real[row]], alone[0][real[row]])


def test_padding_has_finite_logits_and_gradients() -> None:
    model = build()
    image, _ = contents()
    image.requires_grad_()
    real = torch.tensor([[False, False, True]]).expand(2, -1)
    logits = model(image, None, real)
    assert logits.isfinite().all()
    logits[:, -1].sum().backward()
    assert image.grad is not None and image.grad.isfinite().all()
    assert image.grad[:, :2].abs().max() == 0 and image.grad[:, 2].abs().max() > 0


def test_a_window_of_another_length_cannot_load_the_position_table() -> None:
    longer = CONFIG.build(replace(LAYOUT, num_steps=4), in_width=7, bins=9)
    with pytest.raises(RuntimeError, match=r"position\.weight"):
        longer.load_state_dict(build().state_dict())


def test_dropout_acts_in_training_only() -> None:
    model = build(dropout=0.5)
    image, _ = contents()
    assert (model.train()(image) - model(image)).abs().max() > 1e-3
    torch.testing.assert_close(model.eval()(image), model(image))

"""RT-2 from scratch: the public example, causality, and rows that do not care what stands beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rt_models.language.decoder import DecoderConfig
from rt_models.rt2 import RT2, RT2Config
from rt_models.vision.rt2_image_inputs import PictureConfig
from tests.support.rt2_rows import MINIMAL, make_batch, row_of

PREFIXES = ["causal", "image", "prompt"]


@pytest.fixture(scope="module")
def default_model() -> RT2:
    torch.manual_seed(0)
    return RT2().eval()


@torch.no_grad()
def test_the_public_example_holds_literally(default_model: RT2) -> None:
    logits = default_model(torch.randn(1, 3, 256, 256), torch.randint(0, 20000, (1, 1024)))
    assert isinstance(logits, Tensor)
    assert logits.shape == (1, 1024, 20000)
    assert torch.isfinite(logits).all()


@torch.no_grad()
def test_fresh_logits_depend_on_picture_and_word_order_and_not_on_the_future(default_model: RT2) -> None:
    image, caption = torch.rand(1, 3, 256, 256), torch.randint(0, 20000, (1, 64))
    logits = default_model(image, caption)
    assert (default_model(torch.rand(1, 3, 256, 256), caption) - logits).abs().amax(dim=-1).min() > 1e-2
    swapped, changed = caption.clone(), caption.clone()
    swapped[0, [10, 20]] = caption[0, [20, 10]]
    changed[0, 40] = (caption[0, 40] + 1) % 20000
    assert (default_model(image, swapped) - logits)[0, -1].abs().max() > 1e-3
    difference = (default_model(image, changed) - logits).abs().amax(dim=-1)[0]
    assert difference[:40].max() == 0
    assert difference[40:].min() > 1e-4


def test_both_ways_to_build_a_model_are_the_same(default_model: RT2) -> None:
    assert default_model.config == RT2Config()
    models = []
    for make in (lambda: RT2(MINIMAL), MINIMAL.build):
        torch.manual_seed(0)
        models.append(make())
    for mine, theirs in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.0, 1.0, -1.0])
def test_any_finite_picture_has_finite_logits(dtype: torch.dtype, scale: float) -> None:
    image = torch.full((1, 3, 16, 16), torch.finfo(dtype).max * scale, dtype=dtype)
    image[..., ::2] *= 0.1
    assert torch.isfinite(RT2(MINIMAL)(image, torch.tensor([[1, 2, 3]]))).all()


@torch.no_grad()
@given(seed=st.integers(0, 1000), place=st.integers(0, 11), prefix=st.sampled_from(PREFIXES))
@settings(max_examples=15, deadline=None)
def test_no_logit_of_a_caption_sees_a_later_token(seed: int, place: int, prefix: str) -> None:
    torch.manual_seed(seed)
    model = RT2(replace(MINIMAL, prefix=prefix)).double()  # type: ignore[arg-type]
    image, caption = torch.rand(2, 3, 16, 16, dtype=torch.float64), torch.randint(0, 1024, (2, 12))
    changed = caption.clone()
    changed[:, place] = (caption[:, place] + 1) % 1024
    difference = (model(image, changed) - model(image, caption)).abs().amax(dim=-1)
    assert difference[:, :place].sum() == 0
    assert difference[:, place:].min() > 0


@torch.no_grad()
def test_a_caption_needs_no_picture_and_takes_several() -> None:
    model, caption = RT2(MINIMAL), torch.tensor([[1, 2, 3], [4, 5, 6]])
    images = torch.rand(2, 2, 3, 16, 16)
    outputs = [
        model(None, caption),
        model(images[:, 0], caption),
        model(images, caption),
        model(images.flip(1), caption),
    ]
    assert {output.shape for output in outputs} == {(2, 3, 1024)}
    for first, second in pairwise(outputs):
        assert (first - second).abs().max() > 1e-3


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_row_counts_the_same_alone_and_among_longer_ones(prefix: str) -> None:
    model = RT2(replace(MINIMAL, prefix=prefix)).double().eval()  # type: ignore[arg-type]
    batch = make_batch(MINIMAL.build_text())
    together = model.row_losses(batch)
    for row in range(4):
        alone = model.row_losses(row_of(batch, row))
        torch.testing.assert_close(together.sum_B[row], alone.sum_B[0], rtol=1e-10, atol=1e-10)
        assert together.tokens_B[row] == alone.tokens_B[0]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_the_loss_is_that_of_the_whole_rows_logits(prefix: str) -> None:
    """`forward` computes every position with every layer, `row_losses` only those asked for."""
    model = RT2(replace(MINIMAL, prefix=prefix)).double().eval()  # type: ignore[arg-type]
    alone = row_of(make_batch(MINIMAL.build_text()), 1 if prefix != "prompt" else 3)
    if prefix == "prompt":  # a caption passed to forward has no prompt: only a row whose prompt is one token agrees
        alone["tokens"][:, 0], alone["answer_mask"][:] = 1, True
        alone["answer_mask"][:, 0], alone["prompt_length"][:] = False, 1
    pictures = alone["frames"][alone["image_index"][0]].permute(0, 3, 1, 2).double() / 255
    small = (
        torch.nn.functional.interpolate(pictures, (16, 16), mode="bilinear", antialias=True) if len(pictures) else None
    )
    logits = model(None if small is None else small[None], alone["tokens"])[0]
    expected = torch.nn.functional.cross_entropy(logits[:-1], alone["tokens"][0, 1:], reduction="none")
    torch.testing.assert_close(model.row_losses(alone).sum_B[0], (expected * alone["answer_mask"][0, 1:]).sum())


def test_the_loss_is_the_mean_over_rows_and_tells_each_rows_part() -> None:
    model, batch = RT2(MINIMAL).eval(), make_batch(MINIMAL.build_text())
    loss, rows = model.loss(batch), model.row_losses(batch)
    torch.testing.assert_close(loss, (rows.sum_B / rows.tokens_B).mean())
    assert model.row_losses_B is not None and not model.row_losses_B.requires_grad
    torch.testing.assert_close(model.row_losses_B.mean(), loss.detach())
    assert rows.tokens_B.tolist() == [9, 6, *batch["answer_mask"].sum(dim=1)[2:].tolist()]


def test_only_answers_are_trained_on() -> None:
    model, batch = RT2(replace(MINIMAL, prefix="causal")).eval(), make_batch(MINIMAL.build_text())
    before = model.loss(batch)
    tokens = batch["tokens"].clone()
    tokens[~batch["token_mask"]] = 1000  # padding may hold anything
    loss = model.loss({**batch, "tokens": tokens})
    assert loss == before
    loss.backward()
    used = model.embedding.weight.grad.abs().sum(dim=1) > 0  # type: ignore[union-attr]
    assert used[batch["tokens"][0, 0]] and not used[1000]


def test_every_parameter_learns_and_without_pictures_still_takes_part() -> None:
    model, batch = RT2(MINIMAL), make_batch(MINIMAL.build_text())
    model.loss(batch).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []
    model.zero_grad()
    text_only = row_of(batch, 3) | {"frames": batch["frames"][:0]}
    model.loss(text_only).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []  # no rank leaves a hole


def test_checkpointed_blocks_give_the_same_gradients() -> None:
    batch = make_batch(MINIMAL.build_text())
    gradients = []
    for activation_checkpointing in ("off", "selective", "blocks"):
        torch.manual_seed(0)
        model = RT2(replace(MINIMAL, activation_checkpointing=activation_checkpointing)).train()  # type: ignore[arg-type]
        model.loss(batch).backward()
        gradients.append([p.grad for p in model.parameters()])
    for others in gradients[1:]:
        for plain, recomputed in zip(gradients[0], others, strict=True):
            torch.testing.assert_close(plain, recomputed)


def test_crops_move_robots_in_training_only_and_leave_the_web_alone() -> None:
    model = RT2(replace(MINIMAL, picture=PictureConfig(image_size=16, robot_crop="pad")))
    batch = make_batch(MINIMAL.build_text())
    still = model.eval().row_losses(batch).sum_B
    moved = model.train().row_losses(batch).sum_B
    assert (still - moved).abs().gt(1e-6).tolist() == [True, True, False, False]
    torch.testing.assert_close(model.row_losses(batch).sum_B, moved)  # a function of the key
    alone = torch.stack([model.row_losses(row_of(batch, row)).sum_B[0] for row in range(4)])
    torch.testing.assert_close(alone, moved)


@pytest.mark.parametrize(
    ("image", "caption", "says"),
    [
        (torch.rand(1, 1, 16, 16), torch.tensor([[1]]), r"RGB \(1, 3, 16, 16\)"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), torch.tensor([[1]]), "torch.uint8"),
        (torch.rand(1, 3, 20, 16), torch.tensor([[1]]), r"\(1, 3, 20, 16\)$"),
        (torch.full((1, 3, 16, 16), torch.nan), torch.tensor([[1]]), "NaN"),
        (torch.rand(1, 3, 16, 16), torch.ones(1, 129, dtype=torch.int64), "1 to 128 tokens"),
        (torch.rand(1, 3, 16, 16), torch.tensor([[1.0]]), "int64"),
        (torch.rand(1, 3, 16, 16), torch.tensor([[1024]]), "ids from 0 to 1023"),
        (torch.rand(2, 3, 16, 16), torch.tensor([[1]]), r"\(1, 3, 16, 16\)"),
        (np.zeros((1, 3, 16, 16), np.float32), torch.tensor([[1]]), "got a ndarray"),
        (torch.rand(1, 3, 16, 16), [[1]], "got a list"),
    ],
)
def test_a_wrong_picture_or_caption_is_refused(image: Tensor, caption: Tensor, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        RT2(MINIMAL)(image, caption)


@pytest.mark.parametrize(
    ("key", "spoilt", "says"),
    [
        ("frames", lambda _: torch.zeros(3, 20, 24, 4, dtype=torch.uint8), "RGB"),
        ("frames", lambda _: torch.zeros(3, 20, 24, dtype=torch.uint8), "RGB"),
        ("frames", lambda _: torch.zeros(3, 0, 0, 3, dtype=torch.uint8), "needs a row, a token and a pixel"),
        ("frames", lambda _: [1], "expected a torch tensor"),
        ("tokens", lambda tokens: torch.full_like(tokens, 5000), "vocabulary has 1024"),
        ("tokens", lambda _: torch.ones(4, 200, dtype=torch.int64), "context holds 128"),
        ("token_mask", lambda mask: mask[:, :3], r"batch\['token_mask'\]: expected bool \(4, "),
        ("token_mask", torch.zeros_like, "a row begins with a real token"),
        ("token_mask", lambda mask: mask & (torch.arange(mask.shape[1]) != 2), "its padding stands at the right"),
        ("answer_mask", torch.ones_like, "is True on padding"),
        ("answer_mask", lambda mask: mask[:2], r"batch\['answer_mask'\]: expected bool \(4, "),
        ("prompt_length", lambda length: length[:2], r"batch\['prompt_length'\]: expected int64 \(4,"),
        ("prompt_length", torch.zeros_like, "a prompt has at least a token"),
        ("prompt_length", lambda length: length + 1, "no target stands in it"),
        ("image_index", lambda index: index + 1, "expected rows of the 3 frames, or -1, got 0 to 3"),
        ("image_index", lambda index: index - 1, "expected rows of the 3 frames, or -1, got -2 to 1"),
    ],
)
def test_a_wrong_batch_is_refused(key: str, spoilt: Callable[[Tensor], Any], says: str) -> None:
    batch = make_batch(MINIMAL.build_text())
    with pytest.raises(ValueError, match=says):
        RT2(MINIMAL).loss(batch | {key: spoilt(batch[key])})


def test_a_loss_needs_to_know_the_answers() -> None:
    batch = make_batch(MINIMAL.build_text())
    del batch["answer_mask"]
    with pytest.raises(ValueError, match="'answer_mask' is missing"):
        RT2(MINIMAL).loss(batch)


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="prefix must be one of causal, image, prompt, got 'words'"):
        replace(MINIMAL, prefix="words")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"decoder.num_heads must be a whole number and at least 1, got 0"):
        DecoderConfig(num_heads=0)
    with pytest.raises(ValueError, match="patch_size"):
        replace(MINIMAL, picture=PictureConfig(image_size=20))
    with pytest.raises(ValueError, match="num_key_value_heads"):
        DecoderConfig(num_heads=8, num_key_value_heads=3)
    with pytest.raises(ValueError, match="num_heads"):
        DecoderConfig(width=36, num_heads=8)


def test_tiny_learns_its_batch_by_heart() -> None:
    model, batch = RT2(MINIMAL).train(), make_batch(MINIMAL.build_text())
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        model.loss(batch).backward()
        optimizer.step()
    assert model.loss(batch) < 0.1

"""What RT-1 refuses, with what it expected and what it got; no torch error comes out of its depths."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rt_models.input_checks import LABELS
from rt_models.rt1 import RT1, RT1Config
from tests.support.rt1_windows import make_batch

TINY = RT1Config.tiny()
TF_MASK = replace(TINY, transformer=replace(TINY.transformer, mask="tf"))
ONE_HOT = replace(TF_MASK, previous_actions="one_hot")
MASKED = replace(TINY, image_channels="rgb+mask")


def images(batch: int = 2) -> tuple[Tensor, Tensor]:
    return torch.rand(batch, 3, 16, 16, 3, dtype=torch.float64), torch.randn(batch, 3, 512, dtype=torch.float64) / 20


BAD_IMAGES: dict[str, tuple[Callable[[Any, Any], tuple[Any, Any]], str]] = {
    "uint8": (lambda i, e: ((i * 255).to(torch.uint8), e), r"float \(B, 3, 16, 16, 3\) in \[0, 1\], got uint8 \(2, 3"),
    "0..255": (lambda i, e: (i * 255, e), r"got float64 \(2, 3, 16, 16, 3\) with values in \[.*, 25\d"),
    "NaN": (lambda i, e: (i / 0 * 0, e), r"in \[0, 1\], got float64 .* that are NaN"),
    "size": (lambda i, e: (i[:, :, :8], e), r"expected float \(B, 3, 16, 16, 3\) .* got float64 \(2, 3, 8, 16, 3\)"),
    "channels first": (lambda i, e: (i.movedim(-1, 2), e), r"got float64 \(2, 3, 3, 16, 16\)"),
    "no time": (lambda i, e: (i[:, 0], e[:, 0]), r"expected float \(B, 3, 16, 16, 3\)"),
    "steps": (lambda i, e: (i[:, :2], e[:, :2]), r"expected float \(B, 3, 16, .* got float64 \(2, 2, 16"),
    "array": (lambda i, e: (i.numpy(), e), r"image: expected a torch tensor, float .* got numpy.ndarray"),
    "embedding width": (lambda i, e: (i, e[..., :384]), r"expected float \(2, 3, 512\), got float64 \(2, 3, 384\)"),
    "embedding NaN": (lambda i, e: (i, e * math.nan), r"embedding: expected finite float \(2, 3, 512\)"),
    "embedding int": (lambda i, e: (i, e.long()), r"embedding: expected float \(2, 3, 512\), got int64"),
}


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_bad_images_are_refused_with_what_was_expected_and_got(kind: str) -> None:
    spoil, message = BAD_IMAGES[kind]
    with pytest.raises(ValueError, match=message):
        TINY.build().eval()(*spoil(*images()))


def test_image_tokens_are_made_of_any_number_of_steps_and_windows() -> None:
    model, (image, embedding) = TINY.build().double().eval(), images()
    assert model.image_tokens(image[:, :2], embedding[:, :2]).shape == (2, 2, 4, 16)
    assert model(image[:0], embedding[:0]).shape == (0, 3, 11, 256)
    with pytest.raises(ValueError, match=r"expected float \(B, T, 16, 16, 3\) in \[0, 1\], got bool"):
        model.image_tokens(image > 0.5, embedding)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda tokens: None, r"give the action tokens int64 \(2, 3, 11\)"),
        (lambda tokens: tokens.float(), r"expected int64 \(2, 3, 11\) in 0..255, got float32"),
        (lambda tokens: tokens[..., :7], r"got int64 \(2, 3, 7\)"),
        (lambda tokens: tokens[:1], r"got int64 \(1, 3, 11\)"),
        (lambda tokens: tokens - 1, r"in 0..255, got -1..-1"),
        (lambda tokens: tokens + 256, r"in 0..255, got 256..256"),
    ],
)
def test_bad_action_tokens_are_refused(spoil: Callable[[Tensor], Any], message: str) -> None:
    tokens = torch.zeros(2, 3, 11, dtype=torch.int64)
    with pytest.raises(ValueError, match=message):
        ONE_HOT.build().double().eval()(*images(), spoil(tokens))


def test_bad_image_tokens_and_step_masks_are_refused() -> None:
    model, tokens = TINY.build().eval(), torch.rand(2, 3, 4, 16)
    with pytest.raises(ValueError, match=r"image tokens: expected float \(B, 3, 4, 16\), got float32 \(2, 3, 4, 15\)"):
        model.action_logits(tokens[..., :15])
    for mask in (torch.ones(2, 3), torch.ones(2, 2, dtype=torch.bool)):
        with pytest.raises(ValueError, match=r"step mask: expected bool \(2, 3\), got"):
            model.action_logits(tokens, None, mask)


def test_frames_that_are_no_pixels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"frames: expected uint8 \(N, H, W, 3\) in 0..255, got float32"):
        TINY.build().eval().encode_frames(torch.rand(1, 20, 24, 3), torch.zeros(1, 512))


# --- batches ---


def spoilt(batch: dict[str, Tensor], key: str, how: str) -> dict[str, Tensor]:
    value = batch[key]
    if how == "missing":
        return {name: tensor for name, tensor in batch.items() if name != key}
    if how == "of another dtype":
        return batch | {key: value.long() if value.is_floating_point() else value.float()}
    return batch | {key: value[:-1] if how == "short" else value[..., :-1]}


@pytest.mark.parametrize("key", ["frame_index", "step_mask", "frames", "embedding", "crop_key", "store", *LABELS])
@pytest.mark.parametrize("how", ["missing", "of another dtype", "short", "narrow"])
def test_a_spoilt_part_of_a_batch_is_named(key: str, how: str) -> None:
    batch = make_batch(TINY, [1, 4, 8])
    bad = spoilt(batch, key, how)
    named = "batch" if how == "short" else f"batch.*{key}"  # too short, it may be the others that do not fit it
    with pytest.raises(ValueError, match=named):
        TINY.build().loss(bad)


@pytest.mark.parametrize(
    ("key", "spoil", "message"),
    [
        ("frames", lambda v: torch.zeros(9, 20, 24, 3), r"\['frames'\]: expected uint8 \(F, H, W, 3\), got float32"),
        ("frame_index", lambda v: torch.zeros(1, 6).long(), r"expected int64 \(B, 3\), got int64 \(1, 6\)"),
        ("embedding", lambda v: v[..., :384], r"expected float \(3, 3, 512\), got float32 \(3, 3, 384\)"),
        ("frame_index", lambda v: v + 50, "expected a row of the 9 frames where step_mask is True"),
        ("frame_index", lambda v: v.clamp(min=0), "and -1 elsewhere"),
        ("frame_index", lambda v: v - 5, "and -1 elsewhere"),
        ("frames", lambda v: v[:0], "expected a row of the 0 frames"),
        ("embedding", lambda v: v * math.nan, r"\['embedding'\]: expected finite float \(3, 3, 512\)"),
        ("action", lambda v: v * math.nan, r"\['action'\]: expected finite float \(3, 3, 11\)"),
        ("loss_mask", lambda v: torch.ones_like(v), r"\['loss_mask'\] is True on padding"),
        ("step", lambda v: v.numpy(), r"\['step'\]: expected a torch tensor, int64 \(3,\), got numpy.ndarray"),
    ],
)
def test_values_that_cannot_be_are_refused(key: str, spoil: Callable[[Tensor], Any], message: str) -> None:
    batch = make_batch(TINY, [1, 4, 8])
    with pytest.raises(ValueError, match=message):
        TINY.build().loss(batch | {key: spoil(batch[key])})


@pytest.mark.parametrize("ends", [[], [-1, -1]])
def test_a_batch_without_a_single_real_step_is_refused(ends: list[int]) -> None:
    with pytest.raises(ValueError, match="no window has a real step"):
        TINY.build().train().loss(make_batch(TINY, ends))


def test_labels_are_needed_for_the_loss_alone_and_masks_by_a_model_that_reads_them() -> None:
    batch = make_batch(MASKED, [4])
    unlabelled = {name: tensor for name, tensor in batch.items() if name not in LABELS}
    models: list[RT1] = [config.build().eval() for config in (TINY, MASKED)]
    assert all(model.predict(unlabelled).shape == (1, 3, 11, 256) for model in models)
    with pytest.raises(ValueError, match=r"'object_mask' is missing \(marks the objects meant"):
        models[1].predict(spoilt(unlabelled, "object_mask", "missing"))
    with pytest.raises(ValueError, match=r"object_mask.*expected uint8 \(9, 20, 24\), got uint8 \(9, 20, 23\)"):
        models[1].predict(spoilt(unlabelled, "object_mask", "narrow"))
    with pytest.raises(ValueError, match="'action' is missing"):
        ONE_HOT.build().predict(unlabelled)

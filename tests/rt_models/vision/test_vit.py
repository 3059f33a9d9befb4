"""The vision transformer as a backbone."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from rt_models.vision.vit import ViT, ViTConfig
from tests.support.rt1_windows import stirred

CONFIG = ViTConfig(patch_size=4, width=8, num_layers=2, num_heads=2, hidden=16)


CONVOLUTIONS = replace(CONFIG, stem="convolutions")


def build(in_channels: int = 3, embedding_width: int = 512, config: ViTConfig = CONFIG) -> ViT:
    return config.build(in_channels=in_channels, image_size=12, embedding_width=embedding_width).double()


def inputs(channels: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, channels, 12, 12, dtype=torch.float64), torch.randn(2, 512, dtype=torch.float64)


@pytest.mark.parametrize("config", [CONFIG, CONVOLUTIONS])
def test_a_position_for_each_patch(config: ViTConfig) -> None:
    assert build(config=config)(*inputs()).shape == (2, 8, 3, 3)


def test_film_starts_without_effect_and_then_modulates() -> None:
    model, plain, (image, embedding) = build(), build(embedding_width=0), inputs()
    plain.load_state_dict(model.state_dict(), strict=False)
    torch.testing.assert_close(model(image, embedding), plain(image, embedding))
    model = stirred(model)
    assert (model(image, embedding) - model(image, -embedding)).abs().max() > 1e-3


def test_every_patch_sees_every_other_and_knows_its_place() -> None:
    model, (image, embedding) = stirred(build()), inputs()
    features = model(image, embedding)
    changed = image.clone()
    changed[:, :, :4, :4] = 0
    assert (model(changed, embedding) - features)[:, :, 2, 2].abs().max() > 1e-6
    rolled = model(image.roll(4, dims=3), embedding)
    assert (rolled - features.roll(1, dims=3)).abs().max() > 1e-3


def test_recomputed_blocks_give_the_same_gradients() -> None:
    plain = stirred(build()).train()
    recomputing = copy.deepcopy(plain)
    recomputing.checkpointing = "blocks"
    image, embedding = inputs()
    for model in (plain, recomputing):
        model(image, embedding).square().sum().backward()
    for ours, theirs in zip(plain.parameters(), recomputing.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("config", [CONFIG, CONVOLUTIONS])
def test_a_mask_channel_has_no_effect_at_first(config: ViTConfig) -> None:
    model, (image, embedding) = build(in_channels=4, config=config), inputs(4)
    torch.testing.assert_close(
        model(image * torch.tensor([1, 1, 1, 0.0]).view(4, 1, 1), embedding), model(image, embedding)
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ViTConfig(width=10, num_heads=4), "width 10 is not a multiple of backbone.num_heads 4"),
        (lambda: replace(CONVOLUTIONS, patch_size=6), "patch_size 6 must be a power of two"),
        (lambda: CONFIG.grid(14), "image_size 14 is not a multiple of backbone.patch_size 4"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]

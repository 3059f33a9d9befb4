"""FiLM EfficientNet: padding rules, FiLM's place, stochastic depth, recomputation."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from rt_models.rt1 import RT1Config
from rt_models.vision.efficientnet import Block, Conv, EfficientNet, EfficientNetConfig, Film, MBConv, Stage, padding
from tests.support.rt1_windows import stirred

TINY = RT1Config.tiny().backbone
assert isinstance(TINY, EfficientNetConfig)


def tiny(config: EfficientNetConfig = TINY, **kwargs: object) -> EfficientNet:
    return config.build(**{"in_channels": 3, "image_size": 16, "embedding_width": 512} | kwargs).double()  # type: ignore[arg-type]


def inputs(count: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(count, 3, 16, 16, generator=generator, dtype=torch.float64)
    return image, torch.randn(count, 512, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("rule", "grid"), [("same", 10), ("tf_fixed", 9), ("torch", 10)])
def test_300_pixels_give_the_grid_of_each_release(rule: str, grid: int) -> None:
    assert EfficientNetConfig(padding=rule).grid(300) == grid  # type: ignore[arg-type]


@given(size=st.integers(1, 400), kernel=st.sampled_from([1, 3, 5]), stride=st.sampled_from([1, 2]))
def test_same_gives_ceil_of_size_over_stride_with_the_odd_pixel_after(size: int, kernel: int, stride: int) -> None:
    low, high = padding(size, kernel, stride, "same")
    assert (size + low + high - kernel) // stride + 1 == -(-size // stride)
    assert high - low in (0, 1)


def test_same_is_asymmetric_at_even_sizes_and_torch_is_not() -> None:
    assert padding(300, 3, 2, "same") == (0, 1)
    assert padding(75, 5, 2, "same") == (2, 2)
    assert padding(75, 5, 2, "tf_fixed") == (1, 2)
    assert padding(300, 3, 2, "torch") == (1, 1)


@pytest.mark.parametrize("rule", ["same", "tf_fixed", "torch"])
def test_a_convolution_pads_as_its_rule_says(rule: str) -> None:
    conv = Conv(2, 3, 5, 2, rule)  # type: ignore[arg-type]
    image = torch.randn(1, 2, 15, 16)
    (top, bottom), (left, right) = padding(15, 5, 2, rule), padding(16, 5, 2, rule)  # type: ignore[arg-type]
    expected = F.conv2d(F.pad(image, (left, right, top, bottom)), conv.weight, stride=2)
    torch.testing.assert_close(conv(image), expected)
    with torch.no_grad():  # pads the kernel instead
        torch.testing.assert_close(conv(image), expected)


def test_film_starts_as_the_identity_and_comes_after_the_residual() -> None:
    image, embedding = inputs()
    model = tiny()
    without = tiny(embedding_width=0)
    without.load_state_dict(model.state_dict(), strict=False)
    torch.testing.assert_close(model(image, embedding), without(image, embedding))

    block = stirred(model).blocks[2]
    assert block.mbconv.residual
    x = torch.randn(4, 8, 8, 8, dtype=torch.float64)
    film = block.film
    mult, add = film.mult(embedding)[:, :, None, None], film.add(embedding)[:, :, None, None]
    mbconv = block.mbconv
    branch = x + mbconv.project_norm(mbconv.branch(x, None))
    torch.testing.assert_close(block(x, embedding, None), branch * (1 + mult) + add)


def test_squeeze_excite_is_a_quarter_of_the_blocks_input_not_of_its_expanded_width() -> None:
    stage = Stage(expansion=6, kernel=3, stride=1, channels=24, num_blocks=1)
    assert MBConv(24, stage, 1, EfficientNetConfig(), 0.0).gate.reduce.out_channels == 6


def test_b3_has_26_blocks_and_its_published_size() -> None:
    with torch.device("meta"):
        model = EfficientNetConfig().build(in_channels=3, image_size=300, embedding_width=512)
    film = sum(p.numel() for part in model.modules() if isinstance(part, Film) for p in part.parameters())
    assert len(model.blocks) == 26
    assert film == 3_701_808
    assert sum(p.numel() for p in model.parameters()) - film == 10_696_232
    assert sum(b.numel() for b in model.buffers()) == 87_296


def test_stochastic_depth_drops_whole_frames_by_key_at_its_rate_and_keeps_the_mean() -> None:
    stage = Stage(expansion=2, kernel=3, stride=1, channels=4, num_blocks=1)
    block = Block(MBConv(4, stage, 1, TINY, drop_rate=0.25), None).double().eval()
    x = torch.randn(1, 4, 6, 6, dtype=torch.float64).expand(8000, -1, -1, -1)
    branch = block(x[:1], x, None) - x[:1]
    uniform_N = torch.rand(len(x), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    added = block(x, x, block.mbconv.kept(uniform_N)) - x
    dropped = uniform_N < 0.25
    assert added[dropped].abs().max() == 0
    torch.testing.assert_close(added[~dropped], (branch / 0.75).expand_as(added[~dropped]))
    assert float(dropped.double().mean()) == pytest.approx(0.25, abs=0.02)


def test_dropped_branches_follow_the_key_not_the_place_in_the_batch() -> None:
    config = replace(TINY, stochastic_depth=0.9, batch_norm=replace(TINY.batch_norm, statistics="frozen"))
    model = tiny(config).train()
    image, embedding = inputs()
    keys, order = torch.tensor([5, 6, 7, 8]), torch.tensor([2, 0, 3, 1])
    forward = model(image, embedding, keys)
    torch.testing.assert_close(model(image[order], embedding[order], keys[order]), forward[order])
    assert (model(image, embedding, keys + 100) - forward).abs().max() > 1e-3
    torch.testing.assert_close(model.eval()(image, embedding, keys), model(image, embedding))


def test_rates_grow_from_zero_at_the_first_block_to_just_below_the_asked_one() -> None:
    with torch.device("meta"):
        model = EfficientNetConfig().build(in_channels=3, image_size=300, embedding_width=512)
    rates = [block.mbconv.drop_rate for block in model.blocks]
    assert rates == pytest.approx([0.2 * number / 26 for number in range(26)])


def test_recomputed_blocks_give_the_same_gradients_and_count_each_frame_once_in_the_averages() -> None:
    plain = stirred(tiny(replace(TINY, stochastic_depth=0.5))).train()
    recomputing = copy.deepcopy(plain)
    recomputing.checkpointing = "blocks"
    image, embedding = inputs()
    keys = torch.arange(4)
    for model in (plain, recomputing):
        model(image, embedding, keys).square().sum().backward()
    for (name, ours), theirs in zip(plain.named_parameters(), recomputing.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=name)
    for (name, ours), theirs in zip(plain.named_buffers(), recomputing.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=name)


def test_a_mask_channel_has_no_effect_at_first_but_learns() -> None:
    model = tiny(in_channels=4)
    image, embedding = inputs()
    without, with_mask = (torch.cat([image, fill * torch.ones(4, 1, 16, 16)], dim=1) for fill in (0, 1))
    torch.testing.assert_close(model(with_mask, embedding), model(without, embedding))
    model(with_mask, embedding).square().sum().backward()
    assert model.stem.weight.grad is not None and model.stem.weight.grad[:, 3].abs().max() > 0

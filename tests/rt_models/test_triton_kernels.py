"""The Triton kernels without a GPU: interpreted they compute what torch computes, and they compile for one.

tests/gpu/test_kernels.py runs them on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("triton", reason="needs Triton, which is for Linux")

from rt_models.blocks.batch_norm import BatchNormConfig
from rt_models.blocks.depthwise import ConvGeometry, depthwise, tile
from rt_models.blocks.norm_functions import norm_affine, norm_silu, norm_silu_gate
from rt_models.rt1 import RT1Config
from rt_models.vision.efficientnet import DepthwiseConv, SqueezeExcite
from tests.support.rt1_windows import frames_both_ways, make_batch, training_step
from tests.support.thread_ranks import Ranks
from tests.support.triton_on_cpu import Launch, interpreted, recorded

TINY = RT1Config.tiny()
TINY = replace(TINY, backbone=replace(TINY.backbone, stochastic_depth=0.3))


@pytest.fixture
def on_cpu() -> Iterator[None]:
    with interpreted():
        yield


def channels_last(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    made = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return made.to(dtype).to(memory_format=torch.channels_last).requires_grad_()


def far(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.detach().double() - theirs.detach().double()).norm() / theirs.detach().double().norm())


SHAPES = [  # kernel, stride, zeros before and after, channels, rows, columns
    pytest.param(3, 1, (1, 1), 24, 7, 5, id="3x3"),
    pytest.param(5, 1, (2, 2), 70, 5, 6, id="5x5, more channels than a tile has"),
    pytest.param(3, 2, (0, 1), 16, 8, 9, id="3x3, stride 2, as JAX pads"),
    pytest.param(5, 2, (1, 2), 16, 9, 8, id="5x5, stride 2, as TensorFlow pads"),
    pytest.param(5, 2, (2, 2), 16, 9, 8, id="5x5, stride 2, as torch pads"),
    pytest.param(5, 1, (2, 2), 8, 1, 1, id="an image smaller than the kernel"),
    pytest.param(4, 3, (1, 2), 16, 11, 7, id="4x4, stride 3"),
]


@pytest.mark.parametrize(("kernel", "stride", "zeros", "channels", "height", "width"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_depthwise_convolution_and_its_gradients(
    on_cpu: None,
    kernel: int,
    stride: int,
    zeros: tuple[int, int],
    channels: int,
    height: int,
    width: int,
    dtype: torch.dtype,
) -> None:
    x, weight = channels_last(2, channels, height, width, dtype=dtype), torch.randn(channels, 1, kernel, kernel)
    weight.requires_grad_()
    size = [(side + sum(zeros) - kernel) // stride + 1 for side in (height, width)]
    geometry = ConvGeometry(kernel=kernel, stride=stride, top=zeros[0], left=zeros[0], height=size[0], width=size[1])
    bias = torch.randn(channels).requires_grad_() if stride == 1 else None
    y = depthwise(x, weight, bias, geometry)
    slope = channels_last(*y.shape, dtype=dtype, seed=1).detach()
    y.backward(slope)
    trained = [weight] if bias is None else [weight, bias]
    ours = [y, x.grad, *(each.grad for each in trained)]
    exact, *others = (each.detach().float().requires_grad_() for each in (x, *trained))
    expected = F.conv2d(F.pad(exact, (*zeros, *zeros)), *others, stride=stride, groups=channels)
    expected.backward(slope.float())
    theirs = [expected, exact.grad, *(each.grad for each in others)]
    assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last)
    rounding = 1e-6 if dtype == torch.float32 else 6e-3
    for mine, torchs, bound in zip(ours, theirs, (rounding, rounding, 1e-6, 1e-6), strict=False):
        assert mine is not None and torchs is not None and mine.shape == torchs.shape and far(mine, torchs) < bound


@pytest.mark.parametrize("pixels", [32, 64])
def test_tiles_cover_an_image_and_waste_little(pixels: int) -> None:
    for height in range(1, 40):
        for width in (1, 2, 10, 19, 38, 75, 150, 151):
            rows, columns = tile(height, width, pixels)
            covered = -(-height // rows) * -(-width // columns) * pixels
            assert 1 <= rows * columns <= pixels
            assert covered <= max(2 * height * width, pixels), (height, width)


def test_depthwise_convolutions_in_cudnn_are_torchs() -> None:
    def launches(**settings: Any) -> int:
        conv = DepthwiseConv(8, 8, 3, 1, "same", groups=8)
        for name, value in settings.items():
            setattr(conv, name, value)
        with recorded() as found:
            conv(channels_last(1, 8, 6, 6))
        return len(found)

    bias = torch.nn.Parameter(torch.zeros(8))
    assert [launches(), launches(bias=bias), launches(kernels="cudnn")] == [1, 1, 0]


@pytest.mark.parametrize("size", [16, 30])
def test_frames_are_cropped_resized_and_normalised_as_in_torch(on_cpu: None, size: int) -> None:
    frames = torch.randint(256, (3, 20, 24, 3), dtype=torch.uint8)
    made, expected = frames_both_ways(frames, torch.tensor([2, 0, 1, 1]), size)
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-4)


def step(precision: Any, padding: int = 0) -> list[Tensor]:
    config = replace(TINY, compute=replace(TINY.compute, precision=precision))
    return training_step(config, make_batch(TINY, [0, 4]), padding=padding)


def test_a_training_step_in_float32_is_torchs() -> None:
    theirs = step("as_is")
    with interpreted():
        ours = step("as_is", padding=2)
    assert [far(mine, torchs) < 1e-5 for mine, torchs in zip(ours, theirs, strict=True)] == [True] * 3


def normalised(x: Tensor, num_real: int) -> list[Tensor]:
    """What the three functions make of x, with all their gradients and running averages."""
    torch.manual_seed(1)
    norms = [BatchNormConfig().build(x.shape[1]).train() for _ in range(3)]
    gate = SqueezeExcite(x.shape[1], 4)
    scale, add = (torch.randn(len(x), x.shape[1]).requires_grad_() for _ in range(2))
    x = x.detach().clone().requires_grad_()
    real = torch.tensor([num_real])
    y = norm_silu(norms[0], x, real)
    y = norm_silu_gate(norms[1], gate.reduce, gate.expand, y, real)
    kept = torch.linspace(0.5, 1.5, len(x), dtype=torch.float64)
    y = norm_affine(norms[2], y, real, residual_NCHW=x, kept_N=kept, scale_NC=scale, add_NC=add)
    (y[:num_real] * torch.linspace(-1, 2, x.shape[1])[:, None, None]).sum().backward()
    trained = [*(p for norm in norms for p in norm.parameters()), *gate.parameters()]
    gradients = [each.grad for each in (x, scale, add, *trained)]
    return [y[:num_real].detach(), *gradients, *(b for norm in norms for b in norm.buffers())]  # type: ignore[list-item]


def test_the_statistics_of_two_ranks_are_joined() -> None:
    """Two threads as ranks, against torch's operations on two threads."""
    of_ranks = (channels_last(5, 24, 4, 3).detach(), 5), (channels_last(5, 24, 4, 3, seed=1).detach() + 2, 3)
    theirs = Ranks(2).run(lambda rank: normalised(*of_ranks[rank]))
    with interpreted():
        ours = Ranks(2).run(lambda rank: normalised(*of_ranks[rank]))
    for mine, torchs in zip(ours, theirs, strict=True):
        for one, other in zip(mine, torchs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours[0][-2:], ours[1][-2:])


def test_a_batch_without_images_leaves_the_averages_and_gives_no_gradient(on_cpu: None) -> None:
    norm = BatchNormConfig().build(16).train()
    x = channels_last(2, 16, 3, 3)
    norm_silu(norm, x, torch.tensor([0])).sum().backward()
    assert x.grad is not None and not x.grad.any()
    assert not norm.running_mean.any() and bool((norm.running_var == 1).all())


def test_a_batch_that_is_not_finite_leaves_the_averages(on_cpu: None) -> None:
    norm = BatchNormConfig().build(16).train()
    x = channels_last(2, 16, 3, 3).detach()
    x[0, 3], x[1, 5] = torch.nan, torch.inf
    norm_silu(norm, x, torch.tensor([2]))
    still = torch.zeros(16, dtype=torch.bool)
    still[[3, 5]] = True
    assert torch.equal(norm.running_mean == 0, still) and torch.equal(norm.running_var == 1, still)


def test_every_kernel_of_a_training_step_in_bf16_compiles_for_a_gpu(tmp_path: Path) -> None:
    x = channels_last(2, 16, 3, 3, dtype=torch.bfloat16).detach()
    with recorded() as launches:
        step("bf16")
        Ranks(2).run(lambda _: norm_silu(BatchNormConfig().build(16).train(), x))
    distinct: dict[str, Launch] = {}
    for launch in launches:
        kinds = [value.dtype if isinstance(value, Tensor) else type(value) for value in launch.arguments]
        distinct[f"{launch.kernel.fn.__name__} {kinds} {launch.constants}"] = launch
    assert len({name.split()[0] for name in distinct}) == 19
    for launch in distinct.values():
        assert launch.compiled(90, tmp_path).asm["cubin"]

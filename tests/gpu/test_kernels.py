"""The Triton kernels compute what torch computes: in float32 to rounding, in bf16 no further from that than torch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from cluster.graph_replay import CudaRecorder
from rt_models.blocks.triton_kernels import run_kernels
from rt_models.rt1 import RT1, RT1Config
from rt_models.vision.efficientnet import DepthwiseConv
from rt_models.vision.image_plan import plan_images
from tests.support.rt1_windows import frames_both_ways, make_batch, training_step

SMALL = RT1Config.small()
SMALL = replace(SMALL, backbone=replace(SMALL.backbone, stochastic_depth=0.3))
ENDS = [0, 4, 5, 6, 7, 8]


def windows() -> dict[str, Tensor]:
    return make_batch(SMALL, ENDS, frame_size=(96, 96))


def step(*, triton: bool, precision: str, padding: int = 0, compile: str = "off") -> list[Tensor]:
    compute: Any = replace(SMALL.compute, precision=precision, compile=compile)  # type: ignore[arg-type]
    with run_kernels("auto" if triton else "off", device="cuda"):
        return training_step(replace(SMALL, compute=compute), windows(), padding=padding, device="cuda")


def far(ours: list[Tensor], theirs: list[Tensor]) -> list[float]:
    return [float((a - b).norm() / b.norm()) for a, b in zip(ours, theirs, strict=True)]


def built() -> RT1:
    return SMALL.build().cuda().to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]


def planned(images: int) -> dict[str, Tensor]:
    """A batch on the GPU, padded to so many images."""
    batch = plan_images(windows(), crops=True, capacities=(images,))
    return {key: value.cuda() for key, value in batch.items()}


@pytest.mark.parametrize("padding", [0, 5])
def test_in_float32_they_are_torchs(padding: int) -> None:
    theirs = step(triton=False, precision="as_is")
    loss, gradient, averages = far(step(triton=True, precision="as_is", padding=padding), theirs)
    assert loss < 1e-4 and gradient < 1e-3 and averages < 1e-5  # cuDNN chooses other algorithms for other numbers


def test_compiled_blocks_are_torchs_in_float32() -> None:
    theirs = step(triton=False, precision="as_is")
    ours = step(triton=False, precision="as_is", padding=5, compile="inductor")
    loss, gradient, averages = far(ours, theirs)
    assert loss < 1e-4 and gradient < 1e-3 and averages < 1e-5


def test_in_bf16_they_are_as_near_to_float32_as_torchs() -> None:
    exact = step(triton=False, precision="as_is")
    ours = far(step(triton=True, precision="bf16"), exact)
    theirs = far(step(triton=False, precision="bf16"), exact)
    print("ours", ours, "torch's", theirs)
    assert ours[1] < 1.2 * theirs[1] and ours[2] < 1.2 * theirs[2] and ours[0] < theirs[0] + 1e-3


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (5, 1), (3, 2), (5, 2)])
def test_a_depthwise_convolution_is_cudnns(kernel: int, stride: int, precision: torch.dtype) -> None:
    torch.manual_seed(0)
    conv = DepthwiseConv(144, 144, kernel, stride, "same", groups=144).cuda()
    sides = {}
    for kernels in ("auto", "cudnn"):
        conv.kernels = kernels  # type: ignore[assignment]
        conv.zero_grad()
        generator = torch.Generator("cuda").manual_seed(1)
        x = torch.randn(3, 144, 75, 38, device="cuda", generator=generator, dtype=precision)
        x = x.to(memory_format=torch.channels_last).requires_grad_()
        y = conv.to(precision)(x)
        y.backward(torch.ones_like(y) * x.detach()[..., : y.shape[2], : y.shape[3]])
        assert x.grad is not None and conv.weight.grad is not None
        sides[kernels] = [each.detach().double() for each in (y, x.grad, conv.weight.grad)]
    bound = 1e-4 if precision == torch.float32 else 2e-2
    assert [distance < bound for distance in far(sides["auto"], sides["cudnn"])] == [True] * 3


@pytest.mark.parametrize("size", [64, 150])
def test_frames_are_cropped_resized_and_normalised_as_in_torch(size: int) -> None:
    frames = torch.randint(256, (5, 96, 128, 3), dtype=torch.uint8).cuda()
    made, expected = frames_both_ways(frames, torch.tensor([4, 0, 2, 2]).cuda(), size)
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-4)


def test_a_planned_step_does_not_wait_for_the_device() -> None:
    model = built()
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    batch = planned(40)
    for number in range(6):
        if number == 2:  # constants are on the device, kernels are compiled
            torch.cuda.set_sync_debug_mode("error")
        try:
            optimizer.zero_grad(set_to_none=True)
            model.loss(batch).backward()
            optimizer.step()
        finally:
            if number == 5:
                torch.cuda.set_sync_debug_mode("default")


def test_a_step_replayed_as_a_graph_is_the_step() -> None:
    losses = {}
    for name in ("eager", "graph"):
        torch.manual_seed(0)
        model = built()
        optimizer, batch = torch.optim.SGD(model.parameters(), lr=0.1), planned(40)

        def run(model=model, optimizer=optimizer, batch=batch) -> Tensor:  # type: ignore[no-untyped-def]
            optimizer.zero_grad(set_to_none=False)
            loss = model.loss(batch)
            loss.backward()
            optimizer.step()
            return loss

        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            for _ in range(3):
                run()
        torch.cuda.synchronize()
        if name == "eager":
            losses[name] = [float(run().detach()) for _ in range(4)]
            continue
        loss, replay = CudaRecorder()(run)
        losses[name] = []
        for _ in range(4):
            replay()
            losses[name].append(float(loss.detach()))
    assert losses["graph"] == pytest.approx(losses["eager"], rel=1e-3)

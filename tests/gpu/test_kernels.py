"""The Triton kernels compute what torch computes: in float32 to rounding, in bf16 no further from that than torch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rt_models.blocks import norm_functions
from rt_models.rt1 import RT1Config
from rt_models.vision.efficientnet import DepthwiseConv
from rt_models.vision.image_inputs import crop_offsets, pad_crop, resize
from rt_models.vision.image_plan import plan_images
from tests.support.rt1_windows import make_batch

SMALL = RT1Config.small()
SMALL = replace(SMALL, backbone=replace(SMALL.backbone, stochastic_depth=0.3))
ENDS = [0, 4, 5, 6, 7, 8]


def step(
    monkeypatch: pytest.MonkeyPatch, *, triton: bool, precision: str, padding: int = 0, compile: str = "off"
) -> list[Tensor]:
    """Loss, all gradients and all running averages of one training step on the GPU."""
    monkeypatch.setattr(norm_functions, "_has_triton", lambda: triton)
    compute = replace(SMALL.compute, precision=precision, compile=compile)  # type: ignore[arg-type]
    torch.manual_seed(0)
    model = replace(SMALL, compute=compute).build().cuda().to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    batch = make_batch(SMALL, ENDS, frame_size=(96, 96))
    images = int((batch["frame_index"] >= 0).sum())
    planned = plan_images(batch, crops=True, capacities=(images + padding,))
    loss = model.loss({key: value.cuda() for key, value in planned.items()})
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    averages = torch.cat([b.flatten() for name, b in model.named_buffers() if "running" in name])
    return [loss.detach().double().reshape(1), gradient.double(), averages.double()]


def far(ours: list[Tensor], theirs: list[Tensor]) -> list[float]:
    return [float((a - b).norm() / b.norm()) for a, b in zip(ours, theirs, strict=True)]


@pytest.mark.parametrize("padding", [0, 5])
def test_in_float32_they_are_torchs(monkeypatch: pytest.MonkeyPatch, padding: int) -> None:
    theirs = step(monkeypatch, triton=False, precision="as_is")
    loss, gradient, averages = far(step(monkeypatch, triton=True, precision="as_is", padding=padding), theirs)
    assert loss < 1e-4 and gradient < 1e-3 and averages < 1e-5  # cuDNN chooses other algorithms for other numbers


def test_compiled_blocks_are_torchs_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = step(monkeypatch, triton=False, precision="as_is")
    ours = step(monkeypatch, triton=False, precision="as_is", padding=5, compile="inductor")
    loss, gradient, averages = far(ours, theirs)
    assert loss < 1e-4 and gradient < 1e-3 and averages < 1e-5


def test_in_bf16_they_are_as_near_to_float32_as_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = step(monkeypatch, triton=False, precision="as_is")
    ours = far(step(monkeypatch, triton=True, precision="bf16"), exact)
    theirs = far(step(monkeypatch, triton=False, precision="bf16"), exact)
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
    from rt_models.vision.image_kernels import frames_to_images

    frames = torch.randint(256, (5, 96, 128, 3), dtype=torch.uint8).cuda()
    frame_N, key_N = torch.tensor([4, 0, 2, 2]).cuda(), torch.tensor([9, 8, 7, 6]).cuda()
    mean, std = torch.tensor([0.4, 0.5, 0.6]).cuda(), torch.tensor([0.2, 0.3, 0.4]).cuda()
    down_N, right_N = crop_offsets(96, key_N, seed=3)
    moved = pad_crop(frames[frame_N], key_N, seed=3)
    expected = (resize(moved.float() / 255, size) - mean) / std
    options = {"size": size, "mean_C": mean, "std_C": std, "dtype": torch.float32}
    made = frames_to_images(frames, frame_N, down_N, right_N, **options)
    torch.testing.assert_close(made.permute(0, 2, 3, 1), expected, rtol=1e-4, atol=1e-4)


def test_a_planned_step_does_not_wait_for_the_device() -> None:
    model = SMALL.build().cuda().to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    planned = plan_images(make_batch(SMALL, ENDS, frame_size=(96, 96)), crops=True, capacities=(40,))
    batch = {key: value.cuda() for key, value in planned.items()}
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
        model = SMALL.build().cuda().to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        planned = plan_images(make_batch(SMALL, ENDS, frame_size=(96, 96)), crops=True, capacities=(40,))
        batch = {key: value.cuda() for key, value in planned.items()}

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
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = run()
        losses[name] = []
        for _ in range(4):
            graph.replay()
            losses[name].append(float(loss.detach()))
    assert losses["graph"] == pytest.approx(losses["eager"], rel=1e-3)

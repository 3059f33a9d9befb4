"""RT-1 here against two PyTorch ports of it, where their checkouts are given: one training window, one control step.

Ports run as published, under the same autocast as ours. What differs by their own design stays and is printed: model,
image size, what a step includes. The ports' pretrained parts are left out, which changes values and not times:
rt1-pytorch's ImageNet weights are not downloaded, the other port's text encoder is not built and it gets embeddings, as
ours does. rt1-pytorch imports torchvision; where torchvision's compiled operators do not load beside this torch, the
two names it wants to see are declared, and nothing that runs here calls them.

`--packages` is a folder with what the ports import and this project does not have (benchmarks/README.md).
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import math
import statistics
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch
import torch.nn.functional as F
from measure import Side, in_turn, parser, positive, print_json, ratio, start
from torch import Tensor, nn
from workload import PRESETS, RT1_FRAME_SIZE, accumulate, batch, frames

from rt_models.policy import Policy
from rt_models.spec import EMBEDDING_WIDTH

NUM_STEPS = 6
T5_BASE_WIDTH = 768  # of the text embeddings that robotic-transformer-pytorch takes by default
Precision = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One implementation, ready to run."""

    settings: str
    train: Side
    """Forward and backward of one window."""
    control: Side
    """From the newest frame, or the window that ends with it, to an action."""


def main() -> None:
    arguments = _arguments()
    sys.path += [str(arguments.packages)] if arguments.packages else []
    start(arguments)
    under = partial(torch.autocast, "cpu", torch.bfloat16) if arguments.precision == "bf16" else nullcontext
    contenders = {"ours": ours(arguments.preset, under)}
    if arguments.rt1_pytorch:
        contenders["rt1-pytorch"] = rt1_pytorch(arguments.rt1_pytorch, under)
    if arguments.robotic_transformer_pytorch:
        contenders["robotic-transformer-pytorch"] = robotic_transformer(arguments.robotic_transformer_pytorch, under)
    for name, contender in contenders.items():
        print(f"{name}: {contender.settings}", flush=True)

    size = arguments.segment
    training = {name: contender.train for name, contender in contenders.items()}
    training["ours, a window of a segment"] = segment(arguments.preset, size, under)
    seconds = in_turn(training, arguments.rounds)
    seconds["ours, a window of a segment"] = [each / size for each in seconds["ours, a window of a segment"]]
    results = {"train": _report(f"forward and backward of one window (segments have {size})", seconds)}
    control = {name: contender.control for name, contender in contenders.items()}
    results["control"] = _report("control step", in_turn(control, arguments.control_rounds))
    settings = {name: contender.settings for name, contender in contenders.items()}
    print_json("against_ports", arguments, {"contenders": settings, **results})


def ours(preset: str, under: Precision) -> Contender:
    model = PRESETS[preset]().build()
    window = batch(preset, num_segments=1, windows_per_segment=1)
    acting, embedding_D = PRESETS[preset]().build(), torch.randn(EMBEDDING_WIDTH)
    policy = Policy(acting)
    frame_HWC = frames(preset, 1)[0]
    return Contender(
        settings=f"{preset}, {_millions(model)}, uint8 {_size(RT1_FRAME_SIZE)} cropped and resized to 300x300; "
        "the control step keeps image tokens and takes the likeliest action",
        train=partial(_train, model.train(), lambda: model.loss(window), under),
        control=partial(_act, lambda: policy.act(frame_HWC, embedding_D), under),
    )


def segment(preset: str, size: int, under: Precision) -> Side:
    """Forward and backward of one segment of `size` windows."""
    model = PRESETS[preset]().build().train()
    windows = batch(preset, num_segments=1, windows_per_segment=size)
    return partial(_train, model, lambda: model.loss(windows), under)


def rt1_pytorch(checkout: Path, under: Precision) -> Contender:
    """Rohan138/rt1-pytorch through its own policy class: `loss(...)` and `act(...)` on NumPy observations."""
    _declare_torchvision_operators()
    sys.path.insert(0, str(checkout))
    importlib.import_module("torchvision.models._api").WeightsEnum.get_state_dict = lambda *_, **__: {}
    gym = importlib.import_module("gymnasium")
    actions = _rt1_pytorch_actions(gym)
    observations = gym.spaces.Dict(
        image=gym.spaces.Box(low=0, high=255, shape=(*RT1_FRAME_SIZE, 3), dtype=np.uint8),
        context=gym.spaces.Box(low=0.0, high=1.0, shape=(EMBEDDING_WIDTH,), dtype=np.float32),
    )
    policy = importlib.import_module("rt1_pytorch.rt1_policy").RT1Policy(observations, actions, device="cpu")
    seen = {
        "image": frames("rt1", NUM_STEPS)[None].numpy(),
        "context": np.random.default_rng(0).random((1, NUM_STEPS, EMBEDDING_WIDTH), np.float32),
    }
    target = {key: np.stack([[space.sample() for _ in range(NUM_STEPS)]]) for key, space in actions.items()}
    return Contender(
        settings=f"commit {_commit(checkout)}, {_millions(policy.model)}, torchvision {_version('torchvision')}, its "
        f"defaults; uint8 {_size(RT1_FRAME_SIZE)}, its own resize to 300x300; the control step is act(), in eval mode",
        train=lambda: _train(policy.model.train(), lambda: policy.loss(seen, target), under),
        control=lambda: policy.model.eval() and _act(lambda: policy.act(seen), under),
    )


def robotic_transformer(checkout: Path, under: Precision) -> Contender:
    """lucidrains/robotic-transformer-pytorch, built as its README does."""
    for name in ("transformers", "open_clip"):  # imported for text encoders, which are not used here
        sys.modules.setdefault(name, MagicMock())
    guidance = importlib.import_module("classifier_free_guidance_pytorch.classifier_free_guidance_pytorch")
    guidance.CONDITION_CONFIG["t5"] = lambda *_, **__: argparse.Namespace(dim_latent=T5_BASE_WIDTH)
    sys.path.insert(0, str(checkout))
    package = importlib.import_module("robotic_transformer_pytorch")
    vit = package.MaxViT(
        num_classes=1000,
        dim_conv_stem=64,
        dim=96,
        dim_head=32,
        depth=(2, 2, 5, 2),
        window_size=7,
        mbconv_expansion_rate=4,
        mbconv_shrinkage_rate=0.25,
        dropout=0.1,
    )
    model = package.RT1(vit=vit, num_actions=11, depth=6, heads=8, dim_head=64, cond_drop_prob=0.2)
    video_BCTHW, embedding_BD = torch.rand(1, 3, NUM_STEPS, 224, 224), torch.randn(1, T5_BASE_WIDTH)
    target_BTA = torch.randint(256, (1, NUM_STEPS, 11))

    def loss() -> Tensor:
        return F.cross_entropy(model(video_BCTHW, text_embeds=embedding_BD).flatten(0, 2), target_BTA.flatten())

    return Contender(
        settings=f"commit {_commit(checkout)}, {_millions(model)}, classifier-free-guidance-pytorch "
        f"{_version('classifier-free-guidance-pytorch')}, its README's settings; float 224x224 images, no resize; it has "
        "no loss (cross-entropy is added) and no policy: its control step is one forward in eval mode, no guidance",
        train=lambda: _train(model.train(), loss, under),
        control=lambda: _act(lambda: model.eval()(video_BCTHW, text_embeds=embedding_BD)[:, -1].argmax(-1), under),
    )


def _train(model: nn.Module, loss: Callable[[], Tensor], under: Precision) -> None:
    model.zero_grad(set_to_none=True)
    with under():
        value = loss()
    value.backward()


@torch.no_grad()
def _act(act: Side, under: Precision) -> None:
    with under():
        act()


def _report(title: str, seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Print each side's median and, of each port, how many times as long it takes as ours."""
    print(f"\n{title}")
    mine = [name for name in seconds if name.startswith("ours")]
    report: dict[str, Any] = {}
    for name, times in seconds.items():
        median_ms = 1e3 * statistics.median(times)
        against = {} if name in mine else {own: ratio(times, seconds[own]) for own in mine}
        listed = "".join(f", {measured} times {own}" for own, measured in against.items())
        print(f"  {name:27} {median_ms:9.1f} ms{listed}", flush=True)
        ratios = {own: measured.to_json() for own, measured in against.items()}
        report[name] = {"median_ms": round(median_ms, 2), "times": ratios, "seconds": times}
    return report


def _rt1_pytorch_actions(gym: Any) -> Any:
    """RT-1's action space as that port's `main.py` names it."""

    def box(size: int, limit: float) -> Any:
        return gym.spaces.Box(low=-limit, high=limit, shape=(size,), dtype=np.float32)

    return gym.spaces.Dict(
        world_vector=box(3, 1.0),
        base_displacement_vertical_rotation=box(1, math.pi / 2),
        gripper_closedness_action=box(1, 1.0),
        terminate_episode=gym.spaces.Discrete(3),
        base_displacement_vector=box(2, 1.0),
        rotation_delta=box(3, math.pi / 2),
    )


def _declare_torchvision_operators() -> None:
    """Let torchvision's Python half be imported without its compiled half; what it then lacks, no EfficientNet needs."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    importlib.import_module("torchvision")
    _kept_alive.append(library)


_kept_alive: list[torch.library.Library] = []  # a Library takes its operators with it


def _commit(checkout: Path) -> str:
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    found = subprocess.run(command, check=False, capture_output=True, text=True)
    return found.stdout.strip() or "unknown"


def _version(package: str) -> str:
    return importlib.metadata.version(package)


def _millions(model: nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters"


def _size(height_width: tuple[int, int]) -> str:
    return f"{height_width[0]}x{height_width[1]}"

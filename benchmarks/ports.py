"""Two public PyTorch ports of RT-1, made ready to run as published from a checkout of each.

Their pretrained parts are left out, which changes values and not times: rt1-pytorch's ImageNet weights are not
downloaded, robotic-transformer-pytorch's text encoder is not built and it gets embeddings, as ours does.

Axes: B windows, T steps, C colours, HW pixels, D embedding, A actions.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from workload import RT1_FRAME_SIZE, frames

from rt_models.spec import EMBEDDING_WIDTH

NUM_STEPS = 6
T5_BASE_WIDTH = 768  # of the text embeddings that robotic-transformer-pytorch takes by default


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One implementation, ready to run."""

    model: nn.Module
    about: str
    """What it is and what its steps include."""
    loss: Callable[[], Tensor]
    """Of some windows, with a graph."""
    control: Callable[[], object]
    """From the newest frame, or the window that ends with it, to an action."""


def rt1_pytorch(checkout: Path, num_windows: int, device: str = "cpu") -> Contender:
    """Rohan138/rt1-pytorch through its own policy class: `loss(...)` and `act(...)` on NumPy observations."""
    _import_torchvision()
    sys.path.insert(0, str(checkout))
    importlib.import_module("torchvision.models._api").WeightsEnum.get_state_dict = lambda *_, **__: {}
    gym = importlib.import_module("gymnasium")
    actions = _rt1_pytorch_actions(gym)
    observations = gym.spaces.Dict(
        image=gym.spaces.Box(low=0, high=255, shape=(*RT1_FRAME_SIZE, 3), dtype=np.uint8),
        context=gym.spaces.Box(low=0.0, high=1.0, shape=(EMBEDDING_WIDTH,), dtype=np.float32),
    )
    policy = importlib.import_module("rt1_pytorch.rt1_policy").RT1Policy(observations, actions, device=device)
    seen, now = _rt1_pytorch_observations(num_windows), _rt1_pytorch_observations(1)
    target = {
        key: np.stack([[space.sample() for _ in range(NUM_STEPS)] for _ in range(num_windows)])
        for key, space in actions.items()
    }
    return Contender(
        model=policy.model,
        about=f"commit {_commit(checkout)}, torchvision {importlib.metadata.version('torchvision')}, its defaults; "
        "uint8 256x320 frames, its own resize to 300x300; its control step, act(), encodes the whole window",
        loss=lambda: policy.loss(seen, target),
        control=lambda: policy.act(now),
    )


def robotic_transformer_pytorch(checkout: Path, num_windows: int) -> Contender:
    """lucidrains/robotic-transformer-pytorch, built as its README does."""
    for name in ("transformers", "open_clip"):  # imported for text encoders, which are not used here
        sys.modules.setdefault(name, MagicMock())
    guidance = importlib.import_module("classifier_free_guidance_pytorch.classifier_free_guidance_pytorch")
    guidance.CONDITION_CONFIG["t5"] = lambda *_, **__: SimpleNamespace(dim_latent=T5_BASE_WIDTH)
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
    video_BCTHW = torch.rand(num_windows, 3, NUM_STEPS, 224, 224)
    embedding_BD = torch.randn(num_windows, T5_BASE_WIDTH)
    target_BTA = torch.randint(256, (num_windows, NUM_STEPS, 11))

    def loss() -> Tensor:
        logits_BTAV = model(video_BCTHW, text_embeds=embedding_BD)
        return F.cross_entropy(logits_BTAV.flatten(0, 2), target_BTA.flatten())

    version = importlib.metadata.version("classifier-free-guidance-pytorch")
    return Contender(
        model=model,
        about=f"commit {_commit(checkout)}, classifier-free-guidance-pytorch {version}, its README's settings; float "
        "224x224 images, no resize; it has no loss (cross-entropy is added) and no policy: its control step is one "
        "forward pass of the whole window, without guidance",
        loss=loss,
        control=lambda: model(video_BCTHW[:1], text_embeds=embedding_BD[:1])[:, -1].argmax(-1),
    )


def _import_torchvision() -> None:
    """Import it even where its compiled operators do not load: EfficientNet and resizing need none of them.

    Its Python half insists that two detection operators exist; they are then declared, without a kernel.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        _declared.append(torch.library.Library("torchvision", "FRAGMENT"))
        for name in ("nms", "qnms"):
            _declared[-1].define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        importlib.import_module("torchvision")


_declared: list[torch.library.Library] = []  # a Library that is collected takes its operators with it


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


def _rt1_pytorch_observations(num_windows: int) -> dict[str, np.ndarray]:
    frame_FHWC = frames("rt1", num_windows * NUM_STEPS).numpy()
    return {
        "image": frame_FHWC.reshape(num_windows, NUM_STEPS, *frame_FHWC.shape[1:]),
        "context": np.random.default_rng(0).random((num_windows, NUM_STEPS, EMBEDDING_WIDTH), np.float32),
    }


def _commit(checkout: Path) -> str:
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    found = subprocess.run(command, check=False, capture_output=True, text=True)
    return found.stdout.strip() or "unknown"

"""The tokens of one step before its actions: [state] [K tokens of each camera], for RT-1.

A camera that the data set does not have gives learned tokens, and so does each value of the state that it does not
have. They are part of every forward pass, so that on every rank every parameter has a gradient.

Axes: B windows, T steps, M cameras, K tokens of an image, P values of a state, D width, J tokens of a step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from rt_models.blocks.keyed_random import mix, uniform
from rt_models.blocks.linear import LecunLinear
from rt_models.camera_roles import MAIN_CAMERA
from rt_models.robot_inputs import StateInput

_NOISE, _DROPOUT = 3, 4  # streams of random numbers, beside those of the crops


class RobotTokens(nn.Module):
    """Tokens of cameras and a state -> the tokens of their steps, float (B, T, J, D). `state_size` 0: no state."""

    def __init__(self, cameras: Sequence[str], num_image_tokens: int, state_size: int, width: int) -> None:
        super().__init__()
        self.cameras = tuple(cameras)
        for role in cameras:  # of this module itself: ZeRO-3 gathers what a module owns when it is called
            if role != MAIN_CAMERA:
                self.register_parameter(_absent(role), nn.Parameter(torch.zeros(num_image_tokens, width)))
        self.state = LecunLinear(state_size, width) if state_size else None
        self.absent_state = nn.Parameter(torch.zeros(state_size, width)) if state_size else None

    def forward(self, tokens_BTMKD: Tensor, present_BTM: Tensor | None, state: tuple[Tensor, Tensor] | None) -> Tensor:
        """`present_BTM` bool: False where a step has no picture of the camera, None: all have each. `state`:
        float (B, T, P), and bool (B, P) False where the robot has no such value, which then is 0."""
        parts = []
        for place, role in enumerate(self.cameras):
            tokens_BTKD = tokens_BTMKD[:, :, place]
            if present_BTM is not None and role != MAIN_CAMERA:
                learnt_KD = self.get_parameter(_absent(role)).to(tokens_BTKD.dtype)
                tokens_BTKD = torch.where(present_BTM[:, :, place, None, None], tokens_BTKD, learnt_KD)
            parts.append(tokens_BTKD)
        if self.state is not None and self.absent_state is not None:
            assert state is not None
            state_BTP, mask_BP = state
            weight = self.absent_state
            token_BTD = self.state(state_BTP.to(weight.dtype)) + ((~mask_BP).to(weight.dtype) @ weight)[:, None]
            parts.insert(0, token_BTD[:, :, None].to(parts[0].dtype))
        return torch.cat(parts, dim=2)


def _absent(role: str) -> str:
    """The name of the parameter that stands for a camera that is not there."""
    return f"absent_camera_{role}"


def augmented_state(
    batch: Mapping[str, Tensor], config: StateInput, *, augment: bool, stride: int = 1
) -> tuple[Tensor, Tensor]:
    """(state (B, T, P), state_mask (B, P)) of a batch whose windows hold each `stride`th step; in training with noise,
    and absent in some windows.

    What is drawn is a function of the window and its steps, the same on any rank and in any batch.
    """
    state_BTP, mask_BP = batch["state"], batch["state_mask"]
    if augment and config.noise:
        steps_T = stride * torch.arange(1 - state_BTP.shape[1], 1, device=state_BTP.device)
        step_BT = batch["step"][:, None] + steps_T
        key_BT = mix(*(batch[name][:, None] for name in ("crop_key", "store", "episode")), step_BT)
        noise_BTP = config.noise * normal(key_BT, state_BTP.shape[-1]).to(state_BTP.dtype)
        state_BTP = state_BTP + noise_BTP * (mask_BP[:, None] & batch["step_mask"][..., None])
    if augment and config.dropout:
        kept_B = uniform(mix(*(batch[name] for name in ("crop_key", "store", "episode", "step"))), _DROPOUT)
        mask_BP = mask_BP & (kept_B >= config.dropout)[:, None]
        state_BTP = state_BTP * mask_BP[:, None]
    return state_BTP, mask_BP


def normal(key: Tensor, size: int) -> Tensor:
    """float64 (..., size): independent standard normal numbers of each key, by Box and Muller (1958)."""
    place = torch.arange(size, device=key.device)
    first, second = (uniform(key[..., None], place, _NOISE, half) for half in (0, 1))
    return (-2 * (1 - first).log()).sqrt() * (2 * math.pi * second).cos()

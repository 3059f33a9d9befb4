"""The loss of windows: cross-entropy of the actions of trained steps, each window's by itself.

Axes: B windows, T trained steps, A actions, V bins.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from rt_models.action_space import ActionSpec
from rt_models.action_tokens import encode


def window_losses(logits_BTAV: Tensor, batch: Mapping[str, Tensor], spec: ActionSpec) -> Tensor:
    """(B,): sum over (t, a) of each window's masked cross-entropies / (trained steps T x dimensions it has).

    The denominators do not depend on how many steps are padding, so every step weighs the same, and the mean of
    equal-sized rank batches is the loss of the whole batch. `logits_BTAV` are those of the batch's last T steps.
    """
    trained_steps = logits_BTAV.shape[1]
    target_BTA = encode(batch["action"][:, -trained_steps:], spec)
    wide = logits_BTAV if logits_BTAV.dtype == torch.float64 else logits_BTAV.float()
    ce_BTA = F.cross_entropy(wide.permute(0, 3, 1, 2), target_BTA, reduction="none")
    weight_BTA = batch["loss_mask"][:, -trained_steps:, None] & batch["action_mask"][:, None, :]
    dims_B = batch["action_mask"].sum(dim=1).clamp(min=1)
    return (ce_BTA * weight_BTA).sum(dim=(1, 2)) / (trained_steps * dims_B)

"""A third kind of model, the smallest that acts: an MLP on pooled pixels and the instruction's vector.

Stands as rt_models/pixel_mlp.py in the checkout that tests/pipelines/families/test_third_kind.py makes.

Axes: B rows, A actions, V bins, HWC pixels, D embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rt_models.action_space import ActionSpec, rt1_action_spec
from rt_models.action_tokens import decode, encode
from rt_models.control.action import Action, ActionOutlet
from rt_models.control.constrained_decoding import choose_tokens
from rt_models.robot_model import RobotModel
from rt_models.spec import EMBEDDING_WIDTH, DatasetContract


@dataclass(frozen=True, kw_only=True)
class PixelMLPConfig:
    """Sizes of a PixelMLP."""

    num_steps: int = 1
    pooled: int = 4
    """Rows and columns that a frame is pooled to."""
    hidden: int = 32
    bins: int = 256

    def action_spec(self) -> ActionSpec:
        return rt1_action_spec(bins=self.bins, world_vector_limit=1.0, binning="truncate")

    def build(self) -> PixelMLP:
        return PixelMLP(self)


class PixelMLP(RobotModel):
    config: PixelMLPConfig

    def __init__(self, config: PixelMLPConfig) -> None:
        super().__init__()
        self.config, self.spec = config, config.action_spec()
        self.hidden = nn.Linear(3 * config.pooled**2 + EMBEDDING_WIDTH, config.hidden)
        self.output = nn.Linear(config.hidden, self.spec.size * config.bins)

    def forward(self, frames_BHWC: Tensor, embedding_BD: Tensor) -> Tensor:
        """float (B, A, V) logits from uint8 frames."""
        pooled = F.adaptive_avg_pool2d(frames_BHWC.permute(0, 3, 1, 2).float() / 255, self.config.pooled)
        hidden = F.relu(self.hidden(torch.cat([pooled.flatten(1), embedding_BD], dim=1)))
        return self.output(hidden).unflatten(1, (self.spec.size, self.config.bins))

    def last_logits(self, batch: Mapping[str, Tensor]) -> Tensor:
        """float (B, A, V) of the last steps of windows (`rt_models.spec.BATCH`)."""
        return self(batch["frames"][batch["frame_index"][:, -1]], batch["embedding"][:, -1])

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        target_BA = encode(batch["action"][:, -1], self.spec)
        ce_BA = F.cross_entropy(self.last_logits(batch).permute(0, 2, 1), target_BA, reduction="none")
        trained_BA = batch["action_mask"] & batch["loss_mask"][:, -1:]
        loss_B = (ce_BA * trained_BA).sum(dim=1) / batch["action_mask"].sum(dim=1).clamp(min=1)
        self.row_losses_B = loss_B.detach()
        return loss_B.mean()


class PixelMLPPolicy:
    """Acts on the newest frame alone."""

    def __init__(self, model: PixelMLP, dataset: DatasetContract) -> None:
        self._model, self._outlet = model, ActionOutlet(model.spec, dataset)

    @torch.no_grad()
    def act(self, frame: np.ndarray, instruction: np.ndarray) -> Action:
        logits_BAV = self._model(torch.from_numpy(np.array(frame))[None], torch.from_numpy(instruction)[None].float())
        tokens_BA = self._outlet.tokens(choose_tokens(logits_BAV, self._model.spec))
        values_BA = decode(tokens_BA, self._model.spec)
        return self._outlet.action(values_BA, tokens_BA, torch.ones(1, dtype=torch.int64), single=True)

    def reset(self) -> None:
        """Nothing is remembered."""

    def for_another_robot(self) -> PixelMLPPolicy:
        return self

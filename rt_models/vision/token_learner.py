"""TokenLearner: the few tokens that stand for a frame (RT-1, section 5.1; Ryoo et al., 2021).

Axes: N images, P positions, K tokens, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rt_models.blocks.linear import GlorotLinear
from rt_models.blocks.transformer import LAYER_NORM_EPS


class TokenLearner(nn.Module):
    """float (N, P, D) features -> (N, K, D): each token a convex combination of positions (Ryoo et al., 2021; v1.1)."""

    def __init__(self, width: int, num_tokens: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.hidden = GlorotLinear(width, 64)
        self.scores = GlorotLinear(64, num_tokens)

    def forward(self, x_NPD: Tensor) -> Tensor:
        scores_NPK = self.scores(F.gelu(self.hidden(self.norm(x_NPD)), approximate="tanh"))
        # The weights come from normalised features, what they weigh does not.
        return torch.einsum("npk,npd->nkd", scores_NPK.softmax(dim=1), x_NPD)

"""RT-2's loss: next-token prediction on answers only, for any model that can score them row by row.

Axes: B rows, L tokens, R answered places of a row, M answered tokens of a batch, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rt_models.input_checks import require_answers
from rt_models.robot_model import RobotModel

ANSWER_MULTIPLE = 8
"""A planned batch has places for so many targets in each row, or a multiple, so that its logits have few shapes."""


@dataclass(frozen=True, kw_only=True)
class RowLosses:
    """Cross-entropy of each row's answer."""

    sum_B: Tensor
    tokens_B: Tensor
    """int64: tokens of the answer that are trained on."""


class AnswerModel(RobotModel):
    """A model with `row_losses`; this gives it `loss`."""

    def row_losses(self, batch: Mapping[str, Tensor]) -> RowLosses:
        """What the loss is made of, row by row."""
        raise NotImplementedError

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Scalar cross-entropy of a batch's answers; crops in training mode only.

        The mean over rows of a row's mean over its tokens. Every row weighs the same, so a mixture's declared share is
        its share of the gradient, and the mean over equal-sized rank batches is the loss of the whole batch.
        """
        losses = self.row_losses(batch)
        loss_B = losses.sum_B / losses.tokens_B.clamp(min=1)
        self.row_losses_B = loss_B.detach()
        return loss_B.mean()


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Where the answers of different lengths stand, side by side."""

    place_BR: Tensor
    """int64: token of the row."""
    real_BR: Tensor
    """bool: False where a row has fewer targets than the longest."""
    prompt_B: Tensor
    """int64: tokens before the answer, whose first need not be a target."""
    is_planned: bool
    """Whether the places were found on the host. Then logits are computed for all of them, padding too: choosing the
    real ones would make the host wait for the device."""

    @staticmethod
    def of(batch: Mapping[str, Tensor]) -> Targets:
        """Of a batch with "answer_mask", and with "answer_place" if `plan_answers` has planned it."""
        require_answers(batch)
        planned = "answer_place" in batch
        place_BR = batch["answer_place"] if planned else answer_places(batch["answer_mask"], multiple=1)
        real_BR, place_BR = place_BR >= 0, place_BR.clamp(min=0)
        prompt_B = batch.get("prompt_length", place_BR[:, 0])
        return Targets(place_BR=place_BR, real_BR=real_BR, prompt_B=prompt_B, is_planned=planned)

    def chosen(self, x_BRD: Tensor) -> Tensor:
        """(M, D): what logits are computed from, row after row."""
        return x_BRD.flatten(0, 1) if self.is_planned else x_BRD[self.real_BR]

    def losses(self, logits_MV: Tensor, tokens_BL: Tensor) -> RowLosses:
        """From the logits of what is `chosen`; in float32 or wider."""
        wide_MV = logits_MV if logits_MV.dtype == torch.float64 else logits_MV.float()
        ce_M = F.cross_entropy(wide_MV, self.chosen(tokens_BL.gather(1, self.place_BR)), reduction="none")
        if self.is_planned:
            ce_BR = ce_M.view_as(self.real_BR).where(self.real_BR, 0)
        else:
            ce_BR = ce_M.new_zeros(self.real_BR.shape).masked_scatter(self.real_BR, ce_M)
        return RowLosses(sum_B=ce_BR.sum(dim=1), tokens_B=self.real_BR.sum(dim=1))


def answer_places(answer_mask_BL: Tensor, *, multiple: int) -> Tensor:
    """int64 (B, R): the places of each row's targets in order, then -1. R holds the longest answer and is a multiple of
    `multiple`."""
    count_B = answer_mask_BL.sum(dim=1)
    order_BL = (~answer_mask_BL).to(torch.uint8).argsort(dim=1, stable=True)
    longest = max(1, int(count_B.max()))
    length = -(-longest // multiple) * multiple
    place_BR = F.pad(order_BL, (0, max(0, length - order_BL.shape[1])))[:, :length]
    return place_BR.where(torch.arange(length, device=place_BR.device) < count_B[:, None], -1)


def plan_answers(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The batch (of `rt_models.spec.RT2_BATCH`, on the host) with "answer_place": a training step then need not ask the
    device where its targets stand."""
    return {**batch, "answer_place": answer_places(batch["answer_mask"], multiple=ANSWER_MULTIPLE)}


def packing_order(real_BS: Tensor, *, cut: bool = True) -> Tensor:
    """int64 (B, S'): the real positions of each row moved to its front, in order, and with `cut` no longer than the
    longest row."""
    order_BS = (~real_BS).to(torch.uint8).argsort(dim=1, stable=True)
    return order_BS[:, : int(real_BS.sum(dim=1).max())] if cut else order_BS


def gathered(x_BSD: Tensor, order_BR: Tensor) -> Tensor:
    """float (B, R, D): the positions named by each row."""
    return x_BSD.gather(1, order_BR[..., None].expand(-1, -1, x_BSD.shape[-1]))

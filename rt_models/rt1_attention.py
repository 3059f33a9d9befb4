"""Where an RT-1 looks in the present frame: TokenLearner's maps, and the attention of its outputs (RT-1, Fig. 13).

With TokenLearner a token is a weighted sum of positions, so attention to tokens becomes attention to positions by these
weights. Attention is the mean over heads and over the outputs of the present step; what it pays to earlier steps is
left out.

Axes: B windows, K tokens of an image, P positions of the feature map, H heads, R rows asked, S keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import cast

import torch
from einops import rearrange
from torch import Tensor, nn

from rt_models.blocks.transformer import Attention, TransformerBlock
from rt_models.rt1 import RT1
from rt_models.vision.image_inputs import Preparation, prepare

TOKEN_LEARNER = "TokenLearner"


@torch.no_grad()
def frame_attention(model: RT1, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By name, "TokenLearner" and "layer 1" and on: float (B, h, w) over the first camera's present frame, sum 1.

    `batch` is one of `rt_models.spec.BATCH`; the model is in evaluation mode. Windows have a frame of the first camera
    at their last step.
    """
    blocks = [cast(TransformerBlock, block).attention for block in model.transformer.blocks]
    seen: dict[nn.Module, tuple[Tensor, ...]] = {}
    learner = model.tokenizer.learner

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen[module] = (*inputs, output)

    with ExitStack() as hooks:
        for module in (*blocks, *([] if learner is None else [learner.scores])):
            hooks.callback(module.register_forward_hook(keep).remove)
        model.predict(batch, output_steps="last")
    weight_BKP = _token_weights(model, batch, None if learner is None else seen[learner.scores][-1])
    maps = {} if learner is None else {TOKEN_LEARNER: weight_BKP.mean(dim=1)}
    for number, attention in enumerate(blocks, 1):
        queries, keys, mask, _ = seen[attention]
        paid_BK = _paid_to_frame(model, attention_weights(attention, queries, keys, mask))
        maps[f"layer {number}"] = torch.einsum("bk,bkp->bp", paid_BK, weight_BKP)
    side = model.config.backbone.grid(model.config.input.image_size)
    return {name: rearrange(each, "b (h w) -> b h w", h=side) for name, each in maps.items()}


def attention_weights(attention: Attention, queries_BRD: Tensor, keys_BSD: Tensor, mask: Tensor | None) -> Tensor:
    """float (B, H, R, S): what `attention` computes with, from what it was called with; rows sum to 1."""
    q, k = (
        rearrange(part, "b n (h k) -> b h n k", h=attention.num_heads)
        for part in (attention.query(queries_BRD), attention.key(keys_BSD))
    )
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.float().softmax(dim=-1)


def _token_weights(model: RT1, batch: Mapping[str, Tensor], scores_NPK: Tensor | None) -> Tensor:
    """float (B, K, P): of which positions each token of the present frame is made; rows sum to 1."""
    config, (tokenizer, roles) = model.config, model.cameras_of_tokenizers()[0]
    if scores_NPK is None:
        count = config.num_image_tokens
        return torch.eye(count, device=batch["step"].device).expand(len(batch["step"]), -1, -1)
    preparation = Preparation(
        config=config.input,
        pixels=tokenizer.pixels(torch.float32),
        augment=False,
        object_mask=config.image_channels == "rgb+mask",
    )
    place = prepare(batch, preparation, roles).place[:, -1]
    place_B = place if place.dim() == 1 else place[:, 0]
    return rearrange(scores_NPK.float().softmax(dim=1)[place_B], "b p k -> b k p")


def _paid_to_frame(model: RT1, weights_BHRS: Tensor) -> Tensor:
    """float (B, K): the share of each token of the first camera's present frame in what all of them get."""
    plan, layout = model.transformer.plan_last, model.transformer.layout
    first = layout.size - layout.step_size + (model.config.state is not None)
    position_S = plan.rows_R[plan.keys_S]
    is_frame_S = (position_S >= first) & (position_S < first + model.config.num_image_tokens)
    asked = weights_BHRS if weights_BHRS.shape[2] == len(plan.outputs_O) else weights_BHRS[:, :, plan.outputs_O]
    paid_BK = asked[..., is_frame_S].mean(dim=(1, 2))
    return paid_BK / paid_BK.sum(dim=1, keepdim=True).clamp_min(torch.finfo(paid_BK.dtype).tiny)

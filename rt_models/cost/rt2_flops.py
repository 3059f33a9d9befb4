"""What an RT-2 costs, from its configuration: parameters, and floating-point operations by hand count.

As in flops.py a multiply-add is two operations and attention counts all pairs, as torch's flop counter does (a test
compares the two). A training step is three forward passes: one forward, two for the gradients. On a pretrained model
weights that are frozen need no gradient of their own, and a frozen vision encoder none at all.

Axes: B rows, I image places, S positions of a row, R answered places of a row, M answered tokens of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rt_models.cost.rt1_flops import vit_multiply_adds
from rt_models.rt2 import RT2Config
from rt_models.rt2_vlm import RT2VLMConfig


@dataclass(frozen=True, kw_only=True)
class RT2Cost:
    """Forward operations of the parts of a model, and its size."""

    config: RT2Config
    parameters: int
    picture_flops: int
    """One picture to patches."""
    token_flops: int
    """The logits of one token."""

    def row_flops(self, positions: int, answered: int) -> int:
        """One row through the decoder, of which so many places are answered; all S positions are keys."""
        decoder = self.config.decoder
        shared = decoder.num_key_value_heads * decoder.head_width
        keys = positions * 2 * decoder.width * shared
        query = decoder.width * (2 * decoder.width + 2 * positions + 3 * decoder.hidden)
        inner = (decoder.num_layers - 1) * (keys + positions * query)
        return 2 * (inner + keys + answered * query)

    def training_flops(self, batch: Mapping[str, Tensor], pictures: int | None = None) -> float:
        """Forward and backward of a batch, nothing counted twice that checkpointing computes twice.

        `pictures` where crops make more of them than the batch has frames.
        """
        pictures = _num_pictures(batch) if pictures is None else pictures
        count_B = batch["answer_mask"].sum(dim=1)
        positions = _positions(batch, self.config.num_patches())
        rows = len(count_B) * self.row_flops(positions, int(count_B.max()))
        return 3.0 * (pictures * self.picture_flops + rows + int(count_B.sum()) * self.token_flops)

    def action_flops(self, prompt_tokens: int, *, cached: bool = True) -> int:
        """One action after one picture of each camera: the prompt once and then a token at a time, or all of it for
        every token."""
        fields, cameras = len(self.config.text.said_fields()), len(self.config.cameras)
        start = cameras * self.config.num_patches() + prompt_tokens
        if not cached:
            rows = sum(self.row_flops(start + number, 1) for number in range(fields))
            return fields * (cameras * self.picture_flops + self.token_flops) + rows
        decoder = self.config.decoder
        size = start + fields
        shared = decoder.num_key_value_heads * decoder.head_width
        token = decoder.width * (2 * decoder.width + 2 * shared + 2 * size + 3 * decoder.hidden)
        steps = (fields - 1) * 2 * decoder.num_layers * token
        return cameras * self.picture_flops + self.row_flops(start, 1) + steps + fields * self.token_flops


def cost(config: RT2Config) -> RT2Cost:
    """The cost of a configuration; nothing of the model is held in memory."""
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in config.build().parameters())
    width = config.decoder.width
    picture = vit_multiply_adds(config.vision, config.picture.image_size, 3, False)
    picture += config.num_patches() * config.vision.out_channels() * width
    return RT2Cost(
        config=config, parameters=parameters, picture_flops=2 * picture, token_flops=2 * width * config.vocab_size
    )


@dataclass(frozen=True, kw_only=True)
class VLMCost:
    """Operations of a training step on a pretrained model, forward and backward, and its size."""

    parameters: int
    image_positions: int
    """Of a row, for one picture."""
    picture_flops: int
    position_flops: int
    """Of one position of a row through the linear layers of all blocks."""
    pair_flops: int
    """Of one position's attention to one other, in all blocks."""
    token_flops: int
    """The logits of one token."""

    def training_flops(self, batch: Mapping[str, Tensor], pictures: int | None = None) -> float:
        """Of a batch; `pictures` where crops make more of them than it has frames."""
        pictures = _num_pictures(batch) if pictures is None else pictures
        positions = _positions(batch, self.image_positions)
        row = positions * (self.position_flops + positions * self.pair_flops)
        answered = int(batch["answer_mask"].sum())
        return float(pictures * self.picture_flops + len(batch["tokens"]) * row + answered * self.token_flops)


def vlm_cost(config: RT2VLMConfig) -> VLMCost:
    """The cost of a configuration: its folder's sizes are read, no weights."""
    with torch.device("meta"):
        model = config.build()
    text = model.vlm.config.get_text_config()
    head = model.vlm.get_output_embeddings()
    head_width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    encoder, beside = model.family.encoder(model.vlm.config)
    picture = vit_multiply_adds(encoder, model.picture.image_size, 3, False) + beside
    is_vision_trained = any(parameter.requires_grad for parameter in model.family.vision(model.vlm).parameters())
    return VLMCost(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        image_positions=len(model.image_ids),
        picture_flops=2 * (3 if is_vision_trained else 1) * picture,
        position_flops=sum(map(_linear_flops, model.language_layers())),
        pair_flops=3 * 4 * text.num_hidden_layers * text.num_attention_heads * head_width,
        token_flops=_linear_flops(head),
    )


def _linear_flops(layer: nn.Module) -> int:
    """Forward, the input's gradient, and the weight's where it is trained."""
    assert isinstance(layer, nn.Linear)
    return 2 * (3 if layer.weight.requires_grad else 2) * layer.in_features * layer.out_features


def _positions(batch: Mapping[str, Tensor], image_positions: int) -> int:
    """Pictures and tokens of the longest row."""
    pictures_B = sum((batch[key] >= 0).sum(dim=1) for key in batch if key.startswith("image_index"))
    return int((pictures_B * image_positions + batch["token_mask"].sum(dim=1)).max())


def _num_pictures(batch: Mapping[str, Tensor]) -> int:
    """Distinct ones, of all cameras."""
    return sum(len(batch[key]) for key in batch if key.startswith("frames"))

"""Trained rows for a few tokens of a language model whose embeddings are frozen, as LoRA leaves them.

Action tokens that are added, or that overwrite others, mean nothing to a pretrained model, and frozen rows never will:
added ones are all alike, so that the loss cannot fall below ln(bins). Here each such token's row is the frozen one plus
a trained difference, which starts at 0. The other rows stay as they are, and need neither gradients nor optimizer
state, and under any ZeRO stage the differences are parameters like others.

Axes: V vocabulary, C chosen tokens, D width, M rows of logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rt_models.language.vlm_families import VlmModel


def train_rows(vlm: VlmModel, ids: Sequence[int]) -> None:
    """Give a model of transformers' form trained differences, "new_rows", for the input and output rows of `ids`.

    Tied embeddings share one.
    """
    embedding, head = vlm.get_input_embeddings(), vlm.get_output_embeddings()
    place_V = torch.full((embedding.num_embeddings,), -1)
    place_V[list(ids)] = torch.arange(len(ids))
    embedding.register_parameter("new_rows", _zeros(embedding, len(ids)))
    embedding.register_buffer("new_row_of", place_V, persistent=False)
    embedding.register_forward_hook(_add_to_embeddings)
    is_tied = head.weight is embedding.weight
    head.register_parameter("new_rows", embedding.new_rows if is_tied else _zeros(embedding, len(ids)))
    head.register_buffer("new_ids", torch.tensor(list(ids)), persistent=False)
    head.register_forward_hook(_add_to_logits)


def _zeros(embedding: nn.Embedding, count: int) -> nn.Parameter:
    weight = embedding.weight
    return nn.Parameter(torch.zeros(count, embedding.embedding_dim, dtype=weight.dtype, device=weight.device))


def _add_to_embeddings(embedding: Any, inputs: tuple[Tensor, ...], embedded: Tensor) -> Tensor:
    place = embedding.new_row_of[inputs[0]]
    rows = F.embedding(place.clamp(min=0), embedding.new_rows) * (place >= 0)[..., None]
    scale = getattr(embedding, "embed_scale", 1.0)  # Gemma's embeddings multiply their rows by the root of their width
    return embedded + (rows * scale).to(embedded.dtype)


def _add_to_logits(head: Any, inputs: tuple[Tensor, ...], logits_MV: Tensor) -> Tensor:
    difference_MC = F.linear(inputs[0], head.new_rows)
    return logits_MV.index_add_(
        -1, head.new_ids, difference_MC.to(logits_MV.dtype)
    )  # no second copy of so wide a thing

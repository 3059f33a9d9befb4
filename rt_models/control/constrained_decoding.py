"""From logits to tokens that mean something: a discrete dimension only ever gets one of its classes.

Unconstrained, a class token of 3 or more would be read as "terminate" by the TensorFlow release and as "base mode" by
the JAX example (google-research/robotics_transformer 4569641b `tokenizers/action_tokenizer.py:142`;
google-deepmind/open_x_embodiment 9eeb68b9 `models/rt1_inference_example.py`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from rt_models.action_space import ActionSpec


def allowed_tokens(spec: ActionSpec, device: torch.device | None = None) -> Tensor:
    """bool (A, V): which tokens each dimension may take."""
    counts = [dimension.num_classes or spec.bins for dimension in spec.dimensions]
    return torch.arange(spec.bins, device=device) < torch.tensor(counts, device=device)[:, None]


def choose_tokens(logits_xAV: Tensor, spec: ActionSpec) -> Tensor:
    """int64 (..., A): the likeliest allowed token of each dimension, from logits (..., A, V), of which a model may have
    set some to -inf. Raises ValueError where the largest is not finite: argmax takes NaN for the largest, and its token
    looks like an action."""
    if logits_xAV.shape[-2:] != (spec.size, spec.bins):
        raise ValueError(
            f"logits of {spec.name} end in ({spec.size}, {spec.bins}), got shape {tuple(logits_xAV.shape)}"
        )
    allowed_xAV = logits_xAV.masked_fill(~allowed_tokens(spec, logits_xAV.device), -torch.inf)
    largest_xA = torch.stack((logits_xAV.amax(dim=-1), allowed_xAV.amax(dim=-1)))
    if not bool(largest_xA.isfinite().all()):
        raise ValueError(
            "the model's logits are not finite: its weights have diverged or are damaged, or what it was told is far "
            "from all that it was trained on"
        )
    return allowed_xAV.argmax(dim=-1)

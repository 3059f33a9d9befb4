"""Action values <-> tokens, as an ActionSpec says (RT-1, section 5.1: every dimension into one of 256 bins).

All arithmetic is float32, as in both official codes: float64 puts about one value in 100,000 into the neighbouring bin.
Never encode decoded values of the "truncate" rule: for a fifth of the bins that gives the bin below.

Axes: A actions.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from rt_models.action_space import ActionSpec


def encode(values: Tensor, spec: ActionSpec) -> Tensor:
    """int64 (..., A) tokens of float (..., A) model values; values beyond a dimension's bounds go to its end bins."""
    _require_size(values, spec)
    values = values.float()
    low_A, high_A = _bounds(spec, values.device)
    classes_A = _num_classes(spec, values.device)
    share = (values.clamp(low_A, high_A) - low_A) / (high_A - low_A)
    if spec.binning == "truncate":
        bins = (share * (spec.bins - 1)).long()
    else:
        bins = (share * spec.bins).long().clamp(max=spec.bins - 1)
    class_numbers = torch.minimum(values.round().long().clamp(min=0), (classes_A - 1).clamp(min=0))
    return torch.where(classes_A > 0, class_numbers, bins)


def decode(tokens: Tensor, spec: ActionSpec) -> Tensor:
    """float32 (..., A) model values of int64 (..., A) tokens. A token that is no class decodes to the last class."""
    _require_size(tokens, spec)
    low_A, high_A = _bounds(spec, tokens.device)
    classes_A = _num_classes(spec, tokens.device)
    if spec.binning == "truncate":
        values = tokens.float() / (spec.bins - 1) * (high_A - low_A) + low_A
    else:
        values = (tokens.float() + 0.5) / spec.bins * (high_A - low_A) + low_A
    return torch.where(classes_A > 0, torch.minimum(tokens, classes_A - 1).float(), values)


def _require_size(array: Tensor, spec: ActionSpec) -> None:
    if not array.dim() or array.shape[-1] != spec.size:
        raise ValueError(
            f"actions of {spec.name} end in an axis of {spec.size} dimensions, got shape {tuple(array.shape)}"
        )


@functools.cache  # on a GPU a copy from the host would make every step wait
def _bounds(spec: ActionSpec, device: torch.device) -> tuple[Tensor, Tensor]:
    low, high = spec.bounds()
    return torch.from_numpy(low).to(device), torch.from_numpy(high).to(device)


@functools.cache
def _num_classes(spec: ActionSpec, device: torch.device) -> Tensor:
    return torch.tensor([dimension.num_classes for dimension in spec.dimensions], device=device)

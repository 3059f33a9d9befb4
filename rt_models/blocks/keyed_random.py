"""Random numbers that are a function of a key, not of a generator's history.

A crop or a dropped branch drawn this way is the same on any rank, in any order and in any batch, so a run does not
depend on its number of workers. The mixing function is SplitMix64's finaliser (Steele, Lea and Flood, 2014).
"""

from __future__ import annotations

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64


def mix(*keys: Tensor | int) -> Tensor:
    """int64: one well mixed number from several keys (tensors that broadcast, and integers), in order."""
    device = next((key.device for key in keys if isinstance(key, Tensor)), None)
    mixed = torch.zeros((), dtype=torch.int64, device=device)
    for key in keys:
        mixed = _finalise((mixed ^ key) + _GOLDEN)
    return mixed


def integers(bound: int, *keys: Tensor | int) -> Tensor:
    """int64 in [0, bound): uniform up to a bias of bound / 2^63."""
    return _shifted(mix(*keys), 1) % bound


def uniform(*keys: Tensor | int) -> Tensor:
    """float64 in [0, 1), 53 bits."""
    return _shifted(mix(*keys), 11).double() * 2.0**-53


def _finalise(value: Tensor) -> Tensor:
    value = (value ^ _shifted(value, 30)) * _MIX_1
    value = (value ^ _shifted(value, 27)) * _MIX_2
    return value ^ _shifted(value, 31)


def _shifted(value: Tensor, bits: int) -> Tensor:
    """Logical right shift: torch's int64 shift would copy the sign bit."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)

"""Batches with shapes and no memory, that training steps are counted with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from preprocessing.loading.reader import Batch
from rt_models.batch_fields import EMBEDDING_WIDTH, BatchField, axes_of
from rt_models.spec import of_role


def on_meta(
    fields: Mapping[str, BatchField],
    lengths: Mapping[str, int],
    cameras: Sequence[str],
    frame_sizes: Mapping[str, tuple[int, int]],
) -> Batch:
    """A batch of these fields (rt_models/batch_fields.py) with shapes and no memory. `lengths` of axes; one that a
    camera has of its own, such as "F_wrist", where it differs from that of the others."""
    known = {"C": 3, "D": EMBEDDING_WIDTH, "S": 1, **lengths}
    for role, (height, width) in frame_sizes.items():
        known |= {of_role("H", role): height, of_role("W", role): width}
    batch = {}
    for key, field in fields.items():
        shape = [known.get(axis, known.get(axis.partition("_")[0], 0)) for axis in axes_of(key, field, cameras)]
        batch[key] = torch.empty(shape, dtype=getattr(torch, field.dtype), device="meta")
    return batch

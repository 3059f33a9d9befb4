"""Windows with marks of their objects (MOO): `object_mask` beside the frames, and instructions that are verbs alone.

Episodes without a mark are read as others are, and not trained on. Axes: B windows, T steps, F frames, HW pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from preprocessing.loading.reader import Batch, LoaderConfig
from preprocessing.loading.window_reader import WindowReader
from preprocessing.masks.overlay import Overlay
from preprocessing.store.episode_store import EpisodeStore
from rt_models.spec import AffineTransform


class MaskedWindowReader(WindowReader):
    """A `WindowReader` of stores that have an overlay each (`rtp mask`)."""

    def __init__(
        self,
        stores: Sequence[EpisodeStore],
        transforms: Sequence[AffineTransform],
        *,
        overlays: Sequence[Overlay],
        config: LoaderConfig,
        **settings: Any,
    ) -> None:
        """`settings` are those of `WindowReader`."""
        if config.frames == "pool":
            raise ValueError("loader.frames pool holds no object masks: choose distinct or windows")
        self._overlays = overlays
        super().__init__(stores, transforms, config=config, **settings)

    def read(
        self,
        sample_ids: np.ndarray,
        rows: np.ndarray,
        crop_keys: np.ndarray | None = None,
        *,
        capacity: int | None = None,
    ) -> Batch:
        batch = super().read(sample_ids, rows, crop_keys, capacity=capacity)
        frame_BT, real_BT = batch["frame_index"].numpy(), batch["step_mask"].numpy()
        mask_FHW = np.zeros(tuple(batch["frames"].shape[:3]), np.uint8)
        embedding_BTD, trained_BT = batch["embedding"].numpy(), batch["loss_mask"].numpy()
        places = zip(batch["store"].tolist(), batch["episode"].tolist(), strict=True)
        for window, (store, episode) in enumerate(places):
            overlay, real_T = self._overlays[store], real_BT[window]
            if not real_T.any():
                continue  # a window of padding is of no episode
            marks = overlay.marks(episode)
            if marks is None:
                trained_BT[window] = False
                continue
            frames = np.unique(frame_BT[window, real_T])
            marked = mask_FHW[frames]
            marks.draw(marked)
            mask_FHW[frames] = marked
            embedding_BTD[window, real_T] = overlay.vectors_VD[overlay.verb_E[episode]]
        return batch | {"object_mask": torch.from_numpy(mask_FHW)}

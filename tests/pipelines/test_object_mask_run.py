"""A model that reads object masks (MOO) is trained from Python, with a reader that adds them to each batch."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from itertools import islice

import numpy as np
import torch

from preprocessing.loading.loader import Batch, Loader, LoaderConfig, WindowReader
from preprocessing.store.episode_store import EpisodeStore
from rt_models.rt1 import RT1Config
from rt_models.spec import Quantiles, check_batch


class MarkedReader(WindowReader):
    """Marks what is bright; a detector would stand here."""

    def read(self, sample_ids: np.ndarray, rows: np.ndarray, crop_keys: np.ndarray | None = None) -> Batch:
        batch = super().read(sample_ids, rows, crop_keys)
        return batch | {"object_mask": (batch["frames"].amax(dim=-1) > 200).to(torch.uint8) * 255}


def test_a_reader_that_adds_masks_trains_the_channel_that_started_at_zero(store: str) -> None:
    opened, config = EpisodeStore.open(store), replace(RT1Config.tiny(), image_channels="rgb+mask")
    contract = opened.contract.trained_with(config.action_spec(), Quantiles())
    torch.manual_seed(0)
    model = config.build().train()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    assert model.tokenizer.backbone.stem.weight[:, 3].abs().max() == 0
    transforms, losses = [contract.dataset().transform], []
    with closing(MarkedReader([opened], transforms, num_steps=config.num_steps, config=LoaderConfig())) as reader:
        loader = Loader(reader, seed=0, lanes=4, global_batch=16, micro_batch=16)
        for batch in islice(loader, 40):
            check_batch(batch, action_size=model.spec.size)
            loss = model.loss(batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.7 * losses[0]
    assert model.tokenizer.backbone.stem.weight[:, 3].abs().max() > 1e-3

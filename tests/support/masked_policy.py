"""An untrained policy that reads object masks, on which a mark has a visible effect."""

from __future__ import annotations

from dataclasses import replace

import torch

from pipelines.publishing.folder import TrainedModel
from pipelines.publishing.instructions import Instructions
from preprocessing.store.episode_store import EpisodeStore
from rt_models.rt1 import RT1
from tests.support.policy_server import untrained

VERBS = ("pick", "move near")


def masked(store: EpisodeStore) -> TrainedModel:
    """It is told `VERBS`; `untrained`'s weights, and a strong fourth channel."""
    trained = untrained(store)
    assert isinstance(trained.model, RT1)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = replace(trained.model.config, image_channels="rgb+mask").build().eval()
        weights = trained.model.state_dict()
        stem = "tokenizer.backbone.stem.weight"
        weights[stem] = torch.cat([weights[stem], 100 * torch.randn_like(weights[stem][:, :1])], dim=1)
        model.load_state_dict(weights)
    vectors = dict(zip(VERBS, store.embeddings, strict=False))
    return replace(trained, model=model, instructions=Instructions(trained.contract.encoder, vectors))

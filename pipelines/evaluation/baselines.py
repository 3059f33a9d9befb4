"""Baselines that look at no image: the most frequent bin, the mean action and the previous action."""

from __future__ import annotations

import numpy as np
import torch

from pipelines.evaluation.predictions import Predictions
from pipelines.families.models import Model
from rt_models.action_tokens import decode, encode

BASELINES = ("most_frequent_token", "mean_action", "previous_action")


def baseline_tokens(name: str, predictions: Predictions, model: Model) -> np.ndarray:
    targets = predictions.target_tokens_NA
    commonest = np.array([np.bincount(column).argmax() for column in targets.T])
    if name == "most_frequent_token":
        return np.broadcast_to(commonest, targets.shape)
    if name == "mean_action":
        mean = decode(torch.from_numpy(targets), model.spec).double().mean(dim=0)
        return np.broadcast_to(encode(mean.float(), model.spec).numpy(), targets.shape)
    previous = np.roll(targets, 1, axis=0)
    return np.where(predictions.first_N[:, None], commonest, previous)

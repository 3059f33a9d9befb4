"""A policy that reads object masks in a simulator: the object's own place in the first picture, and the verb alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipelines.evaluation.actors import PolicyActor
from pipelines.evaluation.closed_loop import Episode
from pipelines.publishing.inference import InferenceModel, named
from preprocessing.simulation.environment import Observation
from preprocessing.simulation.metaworld_environment import MetaWorldConfig
from preprocessing.store.episode_store import EpisodeStore
from rt_models.object_marks import ObjectMarks
from tests.support.masked_policy import masked

EPISODE = Episode(
    environment=MetaWorldConfig(task="pick-place-v3", camera=None, control_hz=10), seed=1, instruction="pick the cup"
)


def test_the_object_is_marked_where_it_was_at_first(store: str) -> None:
    opened = EpisodeStore.open(store)
    frames = opened.read_rows(0, 0, ["image"])["image"].to_pylist()[:2]
    model = InferenceModel(masked(opened))
    dataset = model.contract.dataset()
    actor, policy = PolicyActor(model, dataset), model.episode(dataset)
    model.mark(policy, ObjectMarks(first=(0.1, 0.2)))
    actor.begin(EPISODE)
    for frame, place in zip(frames, [(0.1, 0.2), (0.8, 0.9)], strict=True):
        (action,) = model.act([policy], [model.frame(frame)], [model.instruction("pick")])
        expected = named(action, model.contract, dataset).values
        acted = actor.act(Observation(frame=frame, state_S=np.zeros(4, np.float32), object_place=place))
        assert acted is None or acted == {name: value for name, value in expected.items() if value is not None}
    actor.begin(EPISODE)
    with pytest.raises(ValueError, match="this simulator does not say where its object is"):
        actor.act(Observation(frame=frames[0], state_S=np.zeros(4, np.float32)))
    with pytest.raises(ValueError, match="instruction 'wait' names no object"):
        actor.begin(replace(EPISODE, instruction="wait"))

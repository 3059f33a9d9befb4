"""A policy that reads object masks, in a simulator and on a store: the object's place and the verb, and neither."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from pipelines.evaluation.actors import PolicyActor
from pipelines.evaluation.closed_loop import Episode
from pipelines.evaluation.config import EvaluationConfig
from pipelines.evaluation.predictions import Perturbation, predict_store
from pipelines.evaluation.scoring import evaluate, perturbations_of
from pipelines.evaluation.tables import print_tables
from pipelines.families.rt1 import RT1Family
from pipelines.publishing.inference import InferenceModel, named
from preprocessing.conversion.embeddings import embed_texts
from preprocessing.loading.reader import Batch
from preprocessing.masks.overlay import MARKS_SCHEMA, write_overlay
from preprocessing.simulation.environment import Observation
from preprocessing.simulation.metaworld_environment import MetaWorldConfig
from preprocessing.store.episode_store import EpisodeStore
from rt_models.object_marks import ObjectMarks
from rt_models.rt1 import RT1
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


def test_a_blind_policy_is_not_told_where_the_object_is(store: str) -> None:
    opened = EpisodeStore.open(store)
    model = InferenceModel(masked(opened))
    actor = PolicyActor(model, model.contract.dataset(), blank_images=True)
    frame, acted = opened.read_rows(0, 0, ["image"])["image"][0].as_py(), []
    for place in ((0.1, 0.2), (0.8, 0.9), (0.5, 0.5)):
        actor.begin(EPISODE)
        acted.append(actor.act(Observation(frame=frame, state_S=np.zeros(4, np.float32), object_place=place)))
    assert acted[0] == acted[1] == acted[2]


Marked = Callable[..., EpisodeStore]


@pytest.fixture
def marked(store: str, tmp_path: Path) -> Marked:
    """Copies the store and marks its episodes, which are told the given verbs in turn."""

    def copy(*verbs: str) -> EpisodeStore:
        opened = EpisodeStore.open(str(shutil.copytree(store, tmp_path / Path(store).name)))
        nowhere = {"second_x": None, "second_y": None, "problem": None}
        marks = [
            {"episode": episode, "verb": verbs[episode % len(verbs)], "x": 0.1, "y": 0.9, **nowhere}
            for episode in range(opened.num_episodes)
        ]
        vectors = embed_texts(opened.manifest.encoder, list(verbs))
        table = pa.Table.from_pylist(marks, schema=MARKS_SCHEMA)
        write_overlay(opened, table, dict(zip(verbs, vectors, strict=True)), {})
        return opened

    return copy


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    """What models are given; they answer nothing but zeros."""
    batches: list[Batch] = []

    def last_logits(family: RT1Family, model: RT1, batch: Batch) -> Tensor:
        batches.append(batch)
        return torch.zeros(len(batch["step"]), model.spec.size, model.spec.bins)

    monkeypatch.setattr(RT1Family, "last_logits", last_logits)
    return batches


@pytest.mark.parametrize(
    ("perturbation", "rewording", "expected"),
    [
        ("none", {"open": "pull apart"}, ("pull apart", "close")),
        ("swapped_instructions", None, ("close", "open")),
    ],
)
def test_verbs_are_swapped_and_reworded(
    marked: Marked,
    seen: list[Batch],
    perturbation: Perturbation,
    rewording: dict[str, str] | None,
    expected: tuple[str, str],
) -> None:
    opened = marked("open", "close")
    trained = masked(opened)
    predict_store(trained.model, trained.contract, opened, batch=64, perturbation=perturbation, rewording=rewording)
    vectors_2D = torch.from_numpy(embed_texts(opened.manifest.encoder, list(expected)))
    for batch in seen:
        real_BT = batch["step_mask"]
        told_BTD = vectors_2D[batch["episode"] % 2][:, None].expand_as(batch["embedding"])
        torch.testing.assert_close(batch["embedding"][real_BT], told_BTD[real_BT].to(batch["embedding"]))


def test_blank_frames_are_marked_in_the_middle(marked: Marked, seen: list[Batch]) -> None:
    opened = marked("open")
    trained = masked(opened)
    predict_store(trained.model, trained.contract, opened, batch=64, perturbation="blank_images")
    for batch in seen:
        assert not batch["frames"].any()
        _, row, column = batch["object_mask"].nonzero().T
        assert set(row.tolist()) == {opened.contract.image.height // 2}
        assert set(column.tolist()) == {opened.contract.image.width // 2}


def test_a_single_verb_is_not_swapped_and_the_report_says_so(
    marked: Marked, seen: list[Batch], capsys: pytest.CaptureFixture[str]
) -> None:
    opened = marked("open")
    trained = masked(opened)
    assert perturbations_of(trained.model, trained.contract, opened) == ("blank_images",)
    report = evaluate(trained.model, trained.contract, opened, EvaluationConfig(bootstrap_samples=5))
    assert list(report.perturbed or {}) == ["blank_images"]
    print_tables(report)
    assert "Swapped instructions are not scored: the model is told verbs alone" in capsys.readouterr().out

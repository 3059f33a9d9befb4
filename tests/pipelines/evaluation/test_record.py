"""The scores that a model's card may show: of the very weights, of each store the newest."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.evaluation.record import EvaluatedModel, kept
from pipelines.publishing.folder import TrainedModel, read_bundle
from pipelines.publishing.model_card import model_card
from pipelines.publishing.model_origin import ModelOrigin
from tests.support.untrained import write_untrained


@pytest.fixture(scope="module")
def averaged(store: str, tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    """The averaged weights of a training that kept an average."""
    trained = read_bundle(write_untrained(store, tmp_path_factory.mktemp("untrained") / "bundle"))
    origin = ModelOrigin(weights="averaged", document={"experiment": {"engine": {"ema_decay": 0.5}}})
    return replace(trained, origin=origin)


def score(trained: TrainedModel, mean: float, **changes: Any) -> dict[str, Any]:
    accuracy = {"mean": mean, "low": mean, "high": mean}
    told = {"contract": trained.contract.id, "dataset": "d", "split": "val", "token_accuracy": accuracy}
    return told | changes


def save(folder: Path, name: str, record: dict[str, Any]) -> None:
    (folder / "evaluations").mkdir(parents=True, exist_ok=True)
    (folder / "evaluations" / name).write_text(json.dumps(record))


def dated(trained: TrainedModel, time: str, *scores: dict[str, Any]) -> dict[str, Any]:
    """As `rtp evaluate` writes it, at another time."""
    made = EvaluatedModel.of(trained, "run", kind="evaluations", scores=list(scores))
    assert made.time > "2026"
    return replace(made, time=time).to_json()


def shown(folder: Path, trained: TrainedModel) -> list[float]:
    return sorted(each["token_accuracy"]["mean"] for each in kept(str(folder), trained))


def test_scores_of_other_weights_or_another_contract_are_not_shown(averaged: TrainedModel, tmp_path: Path) -> None:
    last = replace(averaged, origin=replace(averaged.origin, weights="last"))
    save(tmp_path, "a.json", dated(averaged, "2026-01-01", score(averaged, 0.5, manifest="1")))
    save(tmp_path, "b.json", dated(averaged, "2026-01-02", score(averaged, 0.9, manifest="2", contract="other")))
    save(tmp_path, "c.json", dated(replace(averaged, step=1), "2026-01-02", score(averaged, 0.9, manifest="3")))
    save(tmp_path, "d.json", dated(averaged, "2026-01-02", {"manifest": []}))
    save(tmp_path, "e.json", {"step": 0, "evaluations": 3})
    assert shown(tmp_path, averaged) == [0.5] and shown(tmp_path, last) == []


def test_of_each_store_the_newest_is_shown_and_versions_stand_side_by_side(
    averaged: TrainedModel, tmp_path: Path
) -> None:
    save(tmp_path, "z.json", dated(averaged, "2026-01-01", score(averaged, 0.1, manifest="1")))
    save(tmp_path, "a.json", dated(averaged, "2026-01-02", score(averaged, 0.2, manifest="1")))
    save(tmp_path, "m.json", dated(averaged, "2025-01-01", score(averaged, 0.3, manifest="2")))
    assert shown(tmp_path, averaged) == [0.2, 0.3]
    card = model_card(averaged, kept(str(tmp_path), averaged), name="m")
    assert "| d val, manifest 1 | token accuracy | 0.2 " in card and "| d val, manifest 2 |" in card


def test_older_records_are_shown_only_where_they_can_mean_one_thing(averaged: TrainedModel, tmp_path: Path) -> None:
    last = replace(averaged, origin=replace(averaged.origin, weights="last"))
    alone = replace(last, origin=replace(last.origin, document={"experiment": {"engine": {"ema_decay": 0}}}))
    save(tmp_path, "a.json", {"step": 0, "evaluations": [score(averaged, 0.1)]})
    assert shown(tmp_path, averaged) == [0.1] == shown(tmp_path, alone)
    assert shown(tmp_path, last) == []  # rtp evaluate scored the averaged ones
    save(tmp_path, "b.json", {"step": 0, "evaluations": [score(averaged, 0.1), score(averaged, 0.3, split="test")]})
    assert shown(tmp_path, averaged) == [0.1, 0.3]
    save(tmp_path, "c.json", {"step": 0, "evaluations": [score(averaged, 0.2)]})
    assert shown(tmp_path, averaged) == [0.3]  # two versions of d val, and nothing says which is which
    save(tmp_path, "d.json", dated(averaged, "2026-01-01", score(averaged, 0.4, manifest="1", split="test")))
    assert shown(tmp_path, averaged) == [0.4]

"""Scores under other words: who hears them, who does not, and how they read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.demo import paraphrase_shortfalls
from pipelines.evaluation.config import EvaluationConfig
from pipelines.evaluation.paraphrases import OPPOSITES, PARAPHRASES, paraphrase_rows, score_paraphrases
from pipelines.publishing.folder import TrainedModel
from pipelines.publishing.instructions import Instructions
from pipelines.publishing.model_origin import ModelOrigin
from preprocessing.conversion.embeddings import embed_texts
from preprocessing.convert import ConvertConfig, convert
from preprocessing.store.episode_store import EpisodeStore
from rt_models.rt1 import RT1, RT1Config

SAMPLE = Path(__file__).resolve().parents[3] / "examples/metaworld_sample/1.0.0"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EpisodeStore:
    out = tmp_path_factory.mktemp("paraphrases")
    convert(str(SAMPLE), str(out), ConvertConfig(split="val", workers=0))
    return EpisodeStore.open(str(out))


def test_wordings_are_distinct_and_go_with_their_own_task() -> None:
    wordings = [text for texts in PARAPHRASES.values() for text in texts]
    assert len({*wordings, *PARAPHRASES}) == len(wordings) + len(PARAPHRASES)
    assert all(OPPOSITES[OPPOSITES[text]] == text for text in OPPOSITES)
    original_ND, wording_ND = (embed_texts("use-multilingual", list(texts)) for texts in (PARAPHRASES, wordings))
    nearest = (wording_ND @ original_ND.T).argmax(axis=1)
    assert nearest.tolist() == np.repeat(np.arange(len(PARAPHRASES)), 3).tolist()


def _trained(store: EpisodeStore, *, hears: bool) -> TrainedModel:
    torch.manual_seed(0)
    model: RT1 = RT1Config.tiny().build().eval()
    if hears:  # FiLM starts at zero: an instruction has no effect until it is trained
        for name, parameter in model.named_parameters():
            if "film" in name:
                torch.nn.init.normal_(parameter, std=3.0)
    instructions = Instructions.of_stores(store.contract.encoder, [store])
    return TrainedModel(
        model=model, contract=store.contract, step=0, source="", origin=ModelOrigin(), instructions=instructions
    )


def test_a_policy_without_ears_scores_the_same_whatever_is_said(store: EpisodeStore) -> None:
    scores = score_paraphrases(_trained(store, hears=False), store, EvaluationConfig(bootstrap_samples=50))
    assert scores.ratio == 1 and scores.opposite_instruction == scores.own_instruction
    assert any("opposite task" in missing for missing in paraphrase_shortfalls(scores))
    head, rows = paraphrase_rows({"use-multilingual": scores})
    assert head == ["instruction", "", "use-multilingual"] and len(rows) == 6 * 4 + 3
    assert rows[0][1] == "trained on" and rows[1][1] == ""


def test_a_policy_that_hears_answers_other_words_otherwise(store: EpisodeStore) -> None:
    scores = score_paraphrases(_trained(store, hears=True), store, EvaluationConfig(bootstrap_samples=50))
    assert set(scores.per_task) == set(PARAPHRASES)
    assert any(len(set(accuracies)) > 1 for accuracies in scores.per_task.values())


def test_foreign_instructions_are_refused(store: EpisodeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(PARAPHRASES, "press the button")
    with pytest.raises(ValueError, match="instructions without paraphrases here, such as 'press the button'"):
        score_paraphrases(_trained(store, hears=False), store, EvaluationConfig())

"""The scoreboard of image-text examples, with a model that knows and one that does not look."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.catalogue import load_recipe
from pipelines.evaluation.config import EvaluationConfig, WebScoreConfig
from pipelines.evaluation.scoring import evaluate
from pipelines.evaluation.statistics import Bootstrap
from pipelines.evaluation.tables import print_tables
from pipelines.evaluation.web_scores import _question_only, score_web
from pipelines.training.data import resolved, training_contract
from preprocessing.loading.web_reader import WebText
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.web_store import WebStore
from preprocessing.web.convert_web import WebConvertConfig, convert_web
from rt_models.rt1 import RT1
from rt_models.rt2 import RT2, RT2Config
from rt_models.spec import Contract

NAMES, PIXELS = ("red", "green", "blue", "white"), [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)]


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> WebStore:
    """Sixteen plain pictures, each with a question about its colour, one about nothing, and a caption."""
    folder = tmp_path_factory.mktemp("web") / "colours"
    folder.mkdir()
    lines: list[dict[str, Any]] = []
    for number in range(16):
        kind = number // 4
        Image.new("RGB", (40, 40), PIXELS[kind]).save(folder / f"{number}.png")
        lines.append({"image": f"{number}.png", "question": "which colour is it?", "answer": NAMES[kind]})
        lines.append({"image": f"{number}.png", "question": "is it a picture?", "answer": "yes"})
        lines.append({"image": f"{number}.png", "caption": f"a picture that is {NAMES[kind]} and empty"})
    (folder / "test.jsonl").write_text("\n".join(map(json.dumps, lines)))
    config = WebConvertConfig(format="jsonl", split="test", workers=0)
    return WebStore.open(convert_web(str(folder), str(folder.parent / "stores"), config).store)


@pytest.fixture(scope="module")
def robot(store: str) -> EpisodeStore:
    return EpisodeStore.open(store)


@pytest.fixture(scope="module")
def config(robot: EpisodeStore, web: WebStore) -> RT2Config:
    model = resolved(load_recipe("rt2_tiny"), [robot, web]).model
    assert isinstance(model, RT2Config)
    return model


@pytest.fixture(scope="module")
def contract(robot: EpisodeStore, web: WebStore) -> Contract:
    return training_contract(load_recipe("rt2_tiny"), [robot, web])


class Knows(RT2):
    """Says word by word what is asked for, from the colour of the picture's middle."""

    def start(self, batch: Mapping[str, torch.Tensor], *, max_new_tokens: int) -> tuple[torch.Tensor, Any]:
        text, rows = self.config.build_text(), []
        for row, index in enumerate(batch["image_index"][:, -1].tolist()):
            prompt = text.decode(batch["tokens"][row][batch["token_mask"][row]].tolist())
            colour = NAMES[PIXELS.index(tuple(batch["frames"][index, 48, 48].tolist()))]
            answer = {"which": colour, "is it": "yes"}.get(prompt[3:8].strip(), f"a picture that is {colour} and empty")
            rows.append([*text.tokenizer.encode(" " + answer), text.tokenizer.eos_id])
        return self._next(rows), rows

    def advance(self, tokens_B: torch.Tensor, cache: Any, active_B: torch.Tensor) -> torch.Tensor:
        return self._next(cache)

    def _next(self, rows: list[list[int]]) -> torch.Tensor:
        said = torch.tensor([row.pop(0) if row else self.config.build_text().tokenizer.eos_id for row in rows])
        return torch.nn.functional.one_hot(said, self.vocab_size).float()


def test_a_model_that_looks_is_right_and_falls_with_shuffled_images(
    config: RT2Config, contract: Contract, web: WebStore
) -> None:
    scores = score_web(Knows(config), contract, web, WebScoreConfig(), batch=10, bootstrap=Bootstrap(samples=50))
    report = scores.to_json()
    assert (report["examples"], report["questions"]) == (48, 32)
    assert report["vqa_accuracy"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert report["lazy"]["most_frequent_answer"]["mean"] == 0.5
    assert 0.5 <= report["lazy"]["question_only"]["mean"] < 0.8
    assert report["perturbed"]["shuffled_images"]["vqa_accuracy"]["mean"] < 0.8
    assert report["captions"]["images"] == 16
    assert report["captions"]["cider_d"]["mean"] == pytest.approx(10)
    assert report["captions"]["shuffled_images"]["cider_d"]["mean"] < 9
    print_tables(scores)


def test_an_untrained_rt2_is_scored_on_robot_steps(config: RT2Config, contract: Contract, robot: EpisodeStore) -> None:
    torch.manual_seed(0)
    scores = evaluate(
        config.build().eval(), contract, robot, EvaluationConfig(bootstrap_samples=20, perturbations=False)
    )
    assert scores.steps == 254 and scores.token_accuracy.mean < 0.2
    assert scores.decoding is not None and 0 < scores.decoding.valid_token_mass < 1
    assert 0 <= scores.decoding.invalid_rate_without_mask <= 1


def test_scored_examples_are_spread_evenly(config: RT2Config, contract: Contract, web: WebStore) -> None:
    few = WebScoreConfig(examples=12)
    report = score_web(Knows(config), contract, web, few, batch=5, bootstrap=Bootstrap(samples=5))
    assert report.examples == 12


def test_an_rt1_has_nothing_to_say(contract: Contract, web: WebStore) -> None:
    with pytest.raises(ValueError, match="an RT-1 says actions only"):
        score_web(RT1(load_recipe("rt1_tiny").model), contract, web, WebScoreConfig(), batch=4, bootstrap=Bootstrap())  # type: ignore[arg-type]


def test_intervals_resample_images_not_questions() -> None:
    values = np.repeat([0.0, 1.0], 50)
    by_image = Bootstrap(samples=500).over(np.repeat([0, 1], 50))(values)
    by_question = Bootstrap(samples=500).over(np.arange(100))(values)
    assert (by_image.low, by_image.high) == (0.0, 1.0)
    assert by_question.low > 0.3


def test_references_decide(config: RT2Config, contract: Contract, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    Image.new("RGB", (40, 40), PIXELS[0]).save(tmp_path / "s" / "a.png")
    line = {"image": "a.png", "question": "which colour is it?", "answers": ["crimson"] * 8 + ["Red"] * 2}
    (tmp_path / "s" / "test.jsonl").write_text(json.dumps(line))
    made = convert_web(str(tmp_path / "s"), str(tmp_path), WebConvertConfig(format="jsonl", split="test", workers=0))
    store = WebStore.open(made.store)
    report = score_web(Knows(config), contract, store, WebScoreConfig(), batch=4, bootstrap=Bootstrap(samples=5))
    assert report.headlines()["vqa_accuracy"].mean == pytest.approx(0.6)


def test_the_fixture_is_what_training_resolves(config: RT2Config) -> None:
    assert config.tokenizer.merges and replace(config, tokenizer=type(config.tokenizer)()) == RT2Config.tiny()


def test_the_question_only_answer_never_comes_from_the_same_image() -> None:
    texts = [WebText(prompt=f"question {n}?", answer=str(n), references=(), images=((0, 0, n, 0),)) for n in range(8)]
    said = _question_only(texts, np.arange(8))
    assert all(answer != text.answer for answer, text in zip(said, texts, strict=True))

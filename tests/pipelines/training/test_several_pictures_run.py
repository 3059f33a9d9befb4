"""RT-2 on a mixture whose web examples have several pictures: what a batch holds, two steps of training, and scores."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cluster.context import LocalContext
from cluster.engine import TorchEngineConfig
from pipelines.capacity.step_memory import count_step, model_on_meta
from pipelines.catalogue import load_recipe
from pipelines.evaluation.config import WebScoreConfig
from pipelines.evaluation.statistics import Bootstrap
from pipelines.evaluation.web_scores import score_web
from pipelines.train_loop import train
from pipelines.training.co_fine_tuning import CoFineTuningConfig
from pipelines.training.data import open_reader, resolved, training_contract
from pipelines.training.job import TrainJob
from pipelines.training.run_files import METRICS, read_metrics
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.web_store import WebStore
from preprocessing.web.convert_web import WebConvertConfig, convert_web
from rt_models.rt2 import RT2Config
from rt_models.spec import check_rt2_batch

COLOURS = {"red": [255, 0, 0], "green": [0, 255, 0], "blue": [0, 0, 255]}


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("web") / "pages"
    folder.mkdir()
    for name, colour in COLOURS.items():
        Image.new("RGB", (20, 20), tuple(colour)).save(folder / f"{name}.png")
    pages = (["red", "green", "blue"], ["blue", "red"], ["green"], [])
    lines = [
        {"images": [f"{n}.png" for n in page], "question": "which colours?", "answer": " ".join(page) or "none"}
        for page in pages
    ]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    config = WebConvertConfig(format="jsonl", pictures=3, workers=0)
    return convert_web(str(folder), str(folder.parent / "stores"), config).store


def test_a_batch_has_all_pictures_in_order_and_a_robots_frame_last(store: str, web: str) -> None:
    stores = [EpisodeStore.open(store), WebStore.open(web)]
    experiment = resolved(load_recipe("rt2_tiny"), stores)
    first = stores[0].num_steps  # type: ignore[union-attr]
    with closing(open_reader(experiment, stores, training_contract(experiment, stores))) as reader:
        rows = np.array([3, *range(first, first + 4)])
        batch = reader.read(np.arange(5), rows)
    check_rt2_batch(batch, action_size=11)
    seen = [[int(i) for i in places if i >= 0] for places in batch["image_index"]]
    assert batch["image_index"].shape == (5, 3) and batch["image_index"][0, :2].tolist() == [-1, -1]
    middles = [[batch["frames"][i, 48, 48].tolist() for i in places] for places in seen[1:]]
    named = [[COLOURS[name] for name in page] for page in (["red", "green", "blue"], ["blue", "red"], ["green"], [])]
    assert middles == named and len(batch["frames"]) == 1 + 3 + 2 + 1


def test_two_steps_are_trained_with_and_without_fixed_shapes_and_scored(store: str, web: str, tmp_path: Path) -> None:
    losses = {}
    for fixed in ("on", "off"):
        recipe = load_recipe("rt2_tiny")
        loop = replace(recipe.loop, steps=2, global_batch=6, micro_batch=3, log_every=1, fixed_shapes=fixed)
        job = TrainJob(
            experiment=replace(recipe, loop=loop, engine=TorchEngineConfig()),
            stores=(store, web),
            output=str(tmp_path / fixed),
            tracking_uri=f"sqlite:///{tmp_path}/mlflow.db",
        )
        train(LocalContext("cpu"), job)
        losses[fixed] = [line["loss"] for line in read_metrics(tmp_path / fixed / METRICS) if "loss" in line]
    assert len(losses["on"]) == 2 and np.isfinite(losses["on"]).all()
    assert losses["on"] == pytest.approx(losses["off"], rel=1e-5)
    stores = [EpisodeStore.open(store), WebStore.open(web)]
    experiment = resolved(load_recipe("rt2_tiny"), stores)
    assert isinstance(experiment.model, RT2Config)
    torch.manual_seed(0)
    contract, options = training_contract(experiment, stores), {"batch": 3, "bootstrap": Bootstrap(samples=5)}
    report = score_web(
        experiment.model.build().eval(), contract, WebStore.open(web), WebScoreConfig(answer_tokens=2), **options
    )
    assert report.questions is not None and report.questions.questions == 4


def test_the_memory_of_every_picture_is_estimated(store: str, web: str) -> None:
    robots, questions = EpisodeStore.open(store), WebStore.open(web)
    experiment = resolved(load_recipe("rt2_tiny"), [robots, questions])
    alone = replace(experiment, co_fine_tuning=CoFineTuningConfig(robot_share=1.0))
    one = count_step(alone, [robots], model_on_meta(alone), on_gpu=True)
    three = count_step(experiment, [robots, questions], model_on_meta(experiment), on_gpu=True)
    assert questions.most_pictures == 3 and one is not None and three is not None
    assert three.activations > 1.5 * one.activations

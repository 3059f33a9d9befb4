from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from cluster.context import LocalContext
from pipelines.catalogue import load_recipe
from pipelines.config.experiment import Experiment
from pipelines.families.base import BatchCost
from pipelines.families.models import family_of
from pipelines.training.speed import peak_flops, verdict
from pipelines.training.step_metrics import StepMetrics
from preprocessing.loading.loader import Batch, LoaderConfig, WindowReader
from preprocessing.store.episode_store import EpisodeStore
from rt_models.cost.rt1_flops import cost
from rt_models.rt1 import RT1Config
from rt_models.rt2 import RT2Config
from rt_models.spec import Identity
from rt_models.vision.image_inputs import distinct_images
from rt_models.vision.rt2_image_inputs import pictures

TINY = RT1Config.tiny()


def batch_cost(config: RT1Config | RT2Config) -> BatchCost:
    return family_of(config).batch_cost(config)


def batch_of(store: str, rows: list[int], crop_keys: list[int]) -> Batch:
    opened = EpisodeStore.open(store)
    dataset = opened.contract.dataset()
    transform = Identity().fit(opened.contract.action, dataset.statistics)
    reader = WindowReader([opened], [transform], num_steps=TINY.num_steps, config=LoaderConfig())
    ids = np.arange(len(rows))
    batch = reader.read(ids, np.array(rows), np.array(crop_keys))
    reader.close()
    return batch


@pytest.mark.parametrize("crop", ["pad", "none"])
@pytest.mark.parametrize("crop_keys", [[0, 1, 2, 3], [5, 5, 5, 9]])
def test_frames_are_counted_as_the_model_encodes_them(crop, crop_keys: list[int], store: str) -> None:
    config = replace(TINY, input=replace(TINY.input, crop=crop))
    batch = batch_of(store, [0, 1, 2, 40], crop_keys)
    _, _, first_N, _ = distinct_images(batch, crops=crop == "pad")
    assert batch_cost(config).frames(batch) == len(first_N)


@pytest.mark.parametrize("robot_crop", ["pad", "none"])
def test_rt2s_pictures_are_counted_as_the_model_encodes_them(robot_crop) -> None:
    config = replace(RT2Config.tiny(), picture=replace(RT2Config.tiny().picture, robot_crop=robot_crop))
    batch = {
        "frames": torch.zeros(4, 8, 8, 3, dtype=torch.uint8),
        "image_index": torch.tensor([[0], [0], [1], [2], [2], [-1], [3]]),
        "is_robot": torch.tensor([True, True, True, False, False, False, False]),
        "crop_key": torch.tensor([7, 8, 8, 9, 10, 11, 12]),
    }
    encoded, _ = pictures(batch, config.picture, augment=True, dtype=torch.float32)
    assert batch_cost(config).frames(batch) == len(encoded)


def test_operations_are_those_that_the_model_is_known_to_need(store: str) -> None:
    batch = batch_of(store, [10, 20, 30, 40], [0, 1, 2, 3])
    counted = batch_cost(TINY)
    frames = counted.frames(batch)
    assert counted.training_flops(batch, frames) == 4 * cost(TINY).training_flops(frames / 4)


def test_counting_draws_none_of_the_runs_random_numbers() -> None:
    before = torch.get_rng_state()
    StepMetrics(load_recipe("rt2_tiny"), LocalContext("cpu"), ["arm"])
    assert torch.equal(before, torch.get_rng_state())


def test_trained_tokens_leave_out_padding_and_absent_dimensions(store: str) -> None:
    batch = batch_of(store, [0, 1, 2], [0, 1, 2])
    dims = int(batch["action_mask"][0].sum())
    assert batch_cost(TINY).trained_tokens(batch).tolist() == [dims, 2 * dims, 3 * dims]
    assert batch_cost(replace(TINY, loss_on="last")).trained_tokens(batch).tolist() == [dims] * 3


def experiment() -> Experiment:
    return load_recipe("rt1_tiny")


def test_a_mixture_is_told_apart_by_store(store: str) -> None:
    meter = StepMetrics(experiment(), LocalContext("cpu"), ["arm", "hand"])
    batch = batch_of(store, [10, 20, 30], [0, 1, 2]) | {"store": torch.tensor([0, 1, 1])}
    for _ in range(2):
        meter.count(batch)
        meter.add(batch, torch.tensor(2.0), torch.tensor([1.0, 2.0, 3.0]))
    metrics = meter.metrics(0.0)
    tokens = batch_cost(TINY).trained_tokens(batch).tolist()
    assert (metrics["samples/arm"], metrics["samples/hand"]) == (2, 4)
    assert (metrics["loss/arm"], metrics["loss/hand"]) == (1.0, 2.5)
    assert metrics["tokens/arm"] == 2 * tokens[0] and metrics["loss"] == 2.0
    meter.add(batch | {"store": torch.tensor([1, 1, 1])}, torch.tensor(2.0), None)
    assert meter.metrics(0.0)["samples/arm"] == 0  # each line begins anew


def test_rates_and_waiting(store: str) -> None:
    meter = StepMetrics(experiment(), LocalContext("cpu"), ["arm"])
    batch = batch_of(store, [10, 20, 30], [0, 1, 2])
    meter.count(batch)
    meter.add(batch, torch.tensor(1.0), None)
    metrics = meter.metrics(waited_s=0.0)
    frames = batch_cost(TINY).frames(batch)
    assert metrics["frames_per_s"] == pytest.approx(frames / 3 * metrics["samples_per_s"])
    assert 0 < metrics["flops_utilisation"] < 1 and metrics["memory_gb"] > 0.05
    assert "samples/arm" not in metrics


@pytest.mark.parametrize(
    ("planned", "frames", "padding"),
    [
        ({"num_images": 3, "num_images_wrist": 2, "image_frame": 4, "image_frame_wrist": 4}, 5, 3 / 8),
        ({"num_images": 5, "frames": 4, "frames_wrist": 4}, 5, 3 / 8),
        ({"num_images": 5, "image_frame": 8}, 5, 3 / 8),
    ],
    ids=["separate tokenizers", "prompts", "one tokenizer"],
)
def test_images_of_fixed_shapes_are_those_of_all_cameras(
    planned: dict[str, int], frames: int, padding: float, store: str
) -> None:
    meter, batch = StepMetrics(experiment(), LocalContext("cpu"), ["arm"]), batch_of(store, [10, 20], [0, 1])
    sizes = {key: torch.tensor([n]) if key.startswith("num") else torch.zeros(n) for key, n in planned.items()}
    meter.count(batch | sizes)
    meter.add(batch, torch.tensor(1.0), None)
    metrics = meter.metrics(waited_s=0.0)
    assert metrics["image_padding_share"] == pytest.approx(padding)
    assert metrics["frames_per_s"] == pytest.approx(frames / 2 * metrics["samples_per_s"])


def test_a_skipped_steps_loss_does_not_spoil_the_mean(store: str) -> None:
    meter = StepMetrics(experiment(), LocalContext("cpu"), ["arm"])
    batch = batch_of(store, [10], [0])
    for loss in (1.0, math.nan, 3.0):
        meter.count(batch)
        meter.add(batch, torch.tensor(loss), None)
    assert meter.metrics(0.0)["loss"] == 2.0


def test_the_machines_peak_is_measured_in_plausible_units() -> None:
    assert 1e9 < peak_flops(torch.device("cpu"), "fp32") < 1e14
    assert verdict(0.5) == "input-bound" and verdict(0.02) == "compute-bound"

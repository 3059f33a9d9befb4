"""Robot steps and web examples in one batch, over real stores."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.context import LocalContext
from pipelines.catalogue import load_recipe
from pipelines.config.experiment import Experiment
from pipelines.training.co_fine_tuning import CoFineTuningConfig, sample_shares
from pipelines.training.data import build_loader, open_reader, resolved, training_contract
from preprocessing.loading.loader import Batch, Loader
from preprocessing.loading.prompt_reader import PromptReader
from preprocessing.mixture import MixtureConfig
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.web_store import WebStore
from rt_models.action_space import ARM
from rt_models.language.prompts import RT2TextConfig
from rt_models.spec import ContractMismatch, check_rt2_batch
from tests.support.rt2_rows import bins_of
from tests.support.tiny_web import colours_store


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> WebStore:
    return colours_store(tmp_path_factory.mktemp("web"))


@pytest.fixture(scope="module")
def robot(store: str) -> EpisodeStore:
    return EpisodeStore.open(store)


def experiment(**mix: Any) -> Experiment:
    recipe = load_recipe("rt2_tiny")
    assert recipe.co_fine_tuning is not None
    loop = replace(recipe.loop, global_batch=12, micro_batch=2)
    return replace(recipe, co_fine_tuning=replace(recipe.co_fine_tuning, **mix), loop=loop)


@pytest.fixture(scope="module")
def reader(robot: EpisodeStore, web: WebStore) -> Iterator[PromptReader]:
    with closing(opened(experiment(), robot, web)) as reader:
        yield reader


def opened(chosen: Experiment, *stores: EpisodeStore | WebStore) -> PromptReader:
    chosen = resolved(chosen, stores)
    reader = open_reader(chosen, stores, training_contract(chosen, stores))
    assert isinstance(reader, PromptReader)
    return reader


def read(reader: PromptReader, rows: list[int]) -> Batch:
    batch = reader.read(np.arange(len(rows)), np.array(rows))
    check_rt2_batch(batch, action_size=11)
    return batch


def said(reader: PromptReader, batch: Batch, row: int) -> tuple[str, str]:
    """(all of a row's text, what of it is trained on)."""
    ids, answer = batch["tokens"][row][batch["token_mask"][row]], batch["tokens"][row][batch["answer_mask"][row]]
    text = reader.text
    return text.decode(ids.tolist()), text.decode(answer.tolist())


def test_a_batch_of_everything(reader: PromptReader, robot: EpisodeStore, web: WebStore) -> None:
    first = robot.num_steps
    batch = read(reader, [3, first, first + 1, first + 6, 4])
    assert batch["store"].tolist() == [0, 1, 1, 1, 0] and batch["is_robot"].tolist() == [
        True,
        False,
        False,
        False,
        True,
    ]
    assert batch["image_index"].tolist() == [[0], [2], [2], [-1], [1]]  # one image for its question and its caption
    assert batch["frames"].shape == (3, 96, 96, 3) and batch["frames"].dtype == torch.uint8
    middle, above = batch["frames"][2, 48, 48].tolist(), batch["frames"][2, 2, 48].tolist()
    assert (middle, above) == ([255, 0, 0], [0, 0, 0])  # padded with black, its aspect ratio kept
    assert said(reader, batch, 1) == ("Q: which colour is it? A: red", "red")
    assert said(reader, batch, 2)[1] == "a red picture, wider than it is high"
    assert said(reader, batch, 3) == ("Q: what is two and two? A: four", "four")


def test_a_robot_step_is_its_prompt_and_its_bins(reader: PromptReader, robot: EpisodeStore) -> None:
    table = robot.read_rows(0, 0, ["instruction", "action", "is_terminal"])
    batch, text = read(reader, list(range(table.num_rows))), reader.text
    bins = text.field_bins(batch["action"])
    for row, known in enumerate(table.to_pylist()):
        place = list(robot.instruction_ids).index(known["instruction"])
        expected = text.config.robot_prompt.format(instruction=robot.instruction_texts[place])
        ids = batch["tokens"][row][batch["token_mask"][row]].tolist()
        assert text.decode(ids).startswith(expected)
        assert bins_of(text, ids) == bins[row].tolist()
        assert int(batch["answer_mask"][row].sum()) == (0 if known["is_terminal"] else len(text.field_dims) + 1)


def test_a_dataset_without_terminate_teaches_no_step_to_stop(robot: EpisodeStore, web: WebStore) -> None:
    dataset = robot.dataset
    lacking = replace(dataset, action_mask=(False, *dataset.action_mask[1:]))
    bridge = replace(robot, contract=replace(robot.contract, datasets=(lacking,)))
    with closing(opened(experiment(), bridge, web)) as reader:
        rows = np.arange(robot.num_steps)
        batch, text = reader.read(rows, rows), reader.text
    first_B = batch["prompt_length"]
    assert (batch["tokens"][rows, first_B] == text.action_ids[ARM]).all()
    assert not batch["answer_mask"][rows, first_B].any()
    trained = batch["answer_mask"].any(1)
    present = [bool(lacking.action_mask[dim]) for dim in text.field_dims]
    assert trained.any() and (batch["answer_mask"].sum(1)[trained] == sum(present) + 1).all()


def test_a_dataset_without_any_field_of_the_model_is_refused(robot: EpisodeStore, web: WebStore) -> None:
    dataset, chosen = robot.dataset, experiment()
    lacking = replace(dataset, action_mask=(False,) * 8 + dataset.action_mask[8:])
    store = replace(robot, contract=replace(robot.contract, datasets=(lacking,)))
    with pytest.raises(ValueError, match=r"has none of the dimensions in model.text.fields \(terminate_episode, "):
        resolved(chosen, [store, web])


def test_costs_are_the_lengths(reader: PromptReader) -> None:
    rows = np.arange(sum(reader.store_rows))
    lengths = np.concatenate([read(reader, piece.tolist())["token_mask"].sum(1) for piece in np.array_split(rows, 3)])
    assert (reader.cost(rows) == lengths).all()


def test_two_frames_go_before_a_prompt(robot: EpisodeStore, web: WebStore) -> None:
    chosen = experiment()
    text = replace(chosen.model.text, frames=2)
    with closing(opened(replace(chosen, model=replace(chosen.model, text=text)), robot, web)) as reader:  # type: ignore[arg-type]
        batch = read(reader, [0, 1, 2, sum(reader.store_rows) - 1, sum(reader.store_rows) - 3])
    index = batch["image_index"].tolist()
    assert index[0] == [-1, 0] and index[1] == [0, 1] and index[2] == [1, 2]
    assert index[3] == [-1, -1] and index[4][0] == -1 and index[4][1] >= 0


def test_a_plan_comes_before_the_action(robot: EpisodeStore, web: WebStore, tmp_path: Path) -> None:
    instruction = robot.instruction_texts[0]
    (tmp_path / "plans.json").write_text(json.dumps({instruction: "find it, then do it"}))
    chosen = experiment(plans=str(tmp_path / "plans.json"), plan_share=0.5)
    chosen = replace(chosen, model=replace(chosen.model, max_tokens=128))  # type: ignore[arg-type]
    with closing(opened(chosen, robot, web)) as reader:
        rows = np.arange(robot.num_steps)
        mine = np.array([line == instruction for line in reader.instructions(rows)])
        batch = reader.read(rows, rows)
        answers = [said(reader, batch, row)[1] for row in rows]
    trained = batch["answer_mask"].any(1).numpy()
    planned = np.array(["find it, then do it. Action:" in answer for answer in answers])
    assert not planned[~mine].any()
    assert 0.2 < planned[mine & trained].mean() < 0.8
    texts = [said(reader, batch, row)[0] for row in np.flatnonzero(planned)]
    assert all(text.startswith(f"Instruction: {instruction}. Plan: find it") for text in texts)


def test_a_step_without_an_instruction_is_not_trained_on(
    robot: EpisodeStore, web: WebStore, caplog: pytest.LogCaptureFixture
) -> None:
    lines = list(robot.instruction_texts)
    unlabelled = replace(robot, instruction_texts=[" ", *lines[1:]])
    with closing(opened(experiment(), unlabelled, web)) as reader:
        rows = np.arange(robot.num_steps)
        trained = reader.read(rows, rows)["answer_mask"].any(1)
        nameless = np.array([line == "" for line in reader.instructions(rows)])
        reader.cost(rows)
    assert "has steps without an instruction" in caplog.text
    assert nameless.any() and not trained[nameless].any() and trained[~nameless].any()


@pytest.mark.parametrize(
    ("text", "message"), [("{", "is no JSON"), ("[" * 10_000, "is no JSON"), ("[1]", "must hold one JSON object")]
)
def test_plans_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "plans.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        CoFineTuningConfig(plans=str(tmp_path / "plans.json")).read_plans()


@pytest.mark.parametrize(("share", "stores"), [(0.5, 2), (0.66, 2), (0.66, 3)])
@settings(max_examples=6, deadline=None)
@given(world=st.sampled_from([1, 2, 3]), stop=st.integers(0, 5))
def test_the_robot_share_is_kept_in_every_prefix(
    robot: EpisodeStore, web: WebStore, share: float, stores: int, world: int, stop: int
) -> None:
    chosen = experiment(robot_share=share)
    given_stores = [robot, web, renamed(web)][:stores]
    with closing(opened(chosen, *given_stores)) as reader:
        before = drawn(chosen, reader, range(world), 0, stop)
        resumed = drawn(chosen, reader, range(world), stop * 12, 6 - stop)
    robots = [is_robot for _, is_robot in sorted(before + resumed)]
    assert len(robots) == 6 * 12
    counts = np.cumsum(robots)
    assert (np.abs(counts - share * np.arange(1, len(robots) + 1)) <= 1).all()


def renamed(store: WebStore) -> WebStore:
    return replace(store, manifest=replace(store.manifest, dataset="another"))


def drawn(chosen: Experiment, reader: PromptReader, ranks: range, position: int, steps: int) -> list[tuple[int, bool]]:
    """(sample, whether a robot's) of so many global batches, over all ranks."""
    found: list[tuple[int, bool]] = []
    for rank in ranks:
        context = rank_of(rank, len(ranks))
        loader: Loader = build_loader(chosen, reader, context, {"sample": position})
        with closing(iter(loader)) as batches:  # type: ignore[type-var]
            for batch in itertools.islice(batches, steps * 12 // (2 * len(ranks))):
                found += zip(batch["sample_id"].tolist(), batch["is_robot"].tolist(), strict=True)
    return found


class _Rank(LocalContext):
    def __init__(self, rank: int, world_size: int) -> None:
        super().__init__()
        self.rank, self.world_size = rank, world_size


def rank_of(rank: int, world_size: int) -> LocalContext:
    return _Rank(rank, world_size)


def test_ordering_by_cost_makes_padding_small(reader: PromptReader) -> None:
    rng, total = np.random.default_rng(0), sum(reader.store_rows)
    rows = rng.permutation(np.concatenate([np.arange(64), np.arange(total - 8, total).repeat(8)]))
    by_cost = rows[np.argsort(reader.cost(rows), kind="stable")]
    masks = {
        name: [read(reader, piece.tolist())["token_mask"] for piece in np.split(order, 8)]
        for name, order in (("drawn", rows), ("by cost", by_cost))
    }
    padding = {name: 1 - sum(m.sum() for m in found) / sum(m.numel() for m in found) for name, found in masks.items()}
    assert padding["by cost"] < 0.1 < padding["drawn"]


def test_shares_within_a_part(robot: EpisodeStore, web: WebStore) -> None:
    stores = [robot, web, renamed(web)]
    mix, mixture = (
        CoFineTuningConfig(robot_share=0.6),
        MixtureConfig(weights={"metaworld_sample": 9, "colours": 3, "another": 1}),
    )
    assert sample_shares(mix, mixture, stores) == pytest.approx([0.6, 0.3, 0.1])
    assert sample_shares(mix, MixtureConfig(), stores) == pytest.approx([0.6, 0.2, 0.2])
    assert sample_shares(CoFineTuningConfig(robot_share=1.0), MixtureConfig(), [robot]) == [1.0]


@pytest.mark.parametrize(
    ("mix", "kinds", "message"),
    [
        ({}, "r", "robot_share is 0.5, but no store of web data is given"),
        ({"robot_share": 1.0}, "rw", "robot_share is 1, so web data would never be drawn"),
        ({}, "w", "no store of robot episodes is given"),
    ],
)
def test_a_mixture_that_cannot_be(
    robot: EpisodeStore, web: WebStore, mix: dict[str, Any], kinds: str, message: str
) -> None:
    stores = [{"r": robot, "w": web}[kind] for kind in kinds]
    with pytest.raises(ValueError, match=message):
        training_contract(experiment(**mix), stores)


@pytest.mark.parametrize("mix", [{"robot_share": 1.5}, {"plan_share": -0.1}])
def test_numbers_out_of_range(mix: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"co_fine_tuning\."):
        CoFineTuningConfig(**mix)


def test_a_text_longer_than_the_context_is_refused_before_training(robot: EpisodeStore, web: WebStore) -> None:
    chosen = experiment()
    with pytest.raises(ValueError, match=r"has \d+ tokens and the context holds 16: shorten it or raise"):
        resolved(replace(chosen, model=replace(chosen.model, max_tokens=16)), [robot, web])  # type: ignore[arg-type]


def test_an_rt1_takes_no_web_data(robot: EpisodeStore, web: WebStore) -> None:
    with pytest.raises(ValueError, match="rt1_tiny trains on robot episodes alone"):
        training_contract(load_recipe("rt1_tiny"), [robot, web])


def test_another_contract_is_refused(robot: EpisodeStore, web: WebStore) -> None:
    chosen = resolved(experiment(), [robot, web])
    contract = replace(training_contract(chosen, [robot, web]), encoder="another")
    with pytest.raises(ContractMismatch):
        open_reader(chosen, [robot, web], contract)


def test_language_table_has_two_frames() -> None:
    assert RT2TextConfig.language_table().frames == 2

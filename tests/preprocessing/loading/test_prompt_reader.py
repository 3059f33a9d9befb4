"""PromptReader with texts that are not RT-2's: all that it asks of them is `PromptText`.

What it reads for an RT-2 is tested in tests/pipelines/training/test_co_fine_tuning.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from preprocessing.convert import ConvertConfig, convert
from preprocessing.loading.prompt_reader import NO_INSTRUCTION, PromptReader
from preprocessing.loading.reader import LoaderConfig
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.robot_inputs import store_inputs
from rt_models.action_space import ActionSpec, rt1_action_spec
from rt_models.spec import Contract, Identity, StateColumns, merge_contracts, rt2_batch_fields
from tests.support import two_cameras
from tests.support.command_line import SAMPLE


@dataclass(frozen=True, kw_only=True)
class Row:
    ids: Sequence[int]


class Letters:
    """A token per byte; an answer is the sign of each field, after its plan. The state is the sign of each of its
    values, with 2 for one that is absent, and each camera its first letter."""

    def __init__(self, spec: ActionSpec) -> None:
        self.spec, self.field_dims = spec, [1, 2]

    def robot_prompt(
        self, instruction: str, *, state: np.ndarray | None = None, cameras: Sequence[str] = ()
    ) -> Sequence[int]:
        values = [] if state is None else [2 if np.isnan(value) else int(value > 0) for value in state]
        return [*instruction.encode(), *values, *(ord(role[0]) for role in cameras)]

    def robot(self, instruction: str, action_A: np.ndarray, mask_A: np.ndarray, plan: str = "", **beside: Any) -> Row:
        signs = [int(action_A[dim] > 0) for dim in self.field_dims]
        return Row(ids=[*self.robot_prompt(instruction, **beside), *plan.encode(), *signs, 0])

    def perturbed(self, state: np.ndarray, *, key: int) -> np.ndarray:
        return -state if key % 2 else state

    def web(self, question: str, answer: str) -> Row:
        return Row(ids=list((question + answer).encode()))

    def collate(self, examples: Sequence[Any]) -> dict[str, torch.Tensor]:
        lengths = torch.tensor([len(row.ids) for row in examples])
        tokens_BL = torch.nn.utils.rnn.pad_sequence([torch.tensor(row.ids) for row in examples], batch_first=True)
        mask_BL = torch.arange(tokens_BL.shape[1]) < lengths[:, None]
        return {"tokens": tokens_BL, "token_mask": mask_BL, "answer_mask": mask_BL.clone()}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EpisodeStore:
    config = ConvertConfig(split="val", encoder="hash", workers=0)
    return EpisodeStore.open(convert(str(SAMPLE), str(tmp_path_factory.mktemp("store")), config).store)


@pytest.fixture(scope="module")
def contract(store: EpisodeStore) -> Contract:
    spec = rt1_action_spec(bins=256, world_vector_limit=1.0, binning="truncate")
    return store.contract.trained_with(spec, Identity())


@pytest.fixture(scope="module")
def reader(store: EpisodeStore, contract: Contract) -> Iterator[PromptReader]:
    plans = dict.fromkeys(store.instruction_texts, "look")
    text = Letters(contract.action)
    options: dict[str, Any] = {"num_frames": 2, "config": LoaderConfig(), "plans": plans, "plan_share": 0.5}
    with closing(PromptReader([store], contract, text, **options)) as reader:
        yield reader


def test_rows_are_the_texts_own(reader: PromptReader, store: EpisodeStore) -> None:
    rows = np.arange(reader.store_rows[0])
    batch, lines = reader.read(rows, rows), reader.instructions(rows)
    assert batch["image_index"].shape == (len(rows), 2) and set(lines) == set(store.instruction_texts)
    planned = 0
    for row, line in enumerate(lines):
        ids = batch["tokens"][row][batch["token_mask"][row]].tolist()
        signs = (batch["action"][row][[1, 2]] > 0).long().tolist()
        assert ids[:-3] in ([*line.encode()], [*line.encode(), *b"look"]) and ids[-3:] == [*signs, 0]
        planned += len(ids[:-3]) > len(line.encode())
    assert 0.3 < planned / len(rows) < 0.7


def test_the_cost_of_a_row_is_its_length_without_a_plan(reader: PromptReader) -> None:
    rows = np.arange(20)
    lengths = [len(line or NO_INSTRUCTION) + len(reader.text.field_dims) + 1 for line in reader.instructions(rows)]
    assert reader.cost(rows).tolist() == lengths


def test_rows_show_each_camera_and_say_the_state(tmp_path: Path) -> None:
    stores = [
        two_cameras.store(tmp_path / "full"),
        two_cameras.store(tmp_path / "bare", name="bare", hand=None, state=False, shards=((7,),)),
    ]
    cameras = ("wrist", "image")
    inputs = [store_inputs(store, cameras=cameras, state=True) for store in stores]
    sides = tuple(each.state for each in inputs)
    assert sides[0] is not None
    contract = merge_contracts([store.contract for store in stores])
    options: dict[str, Any] = {"num_frames": 2, "config": LoaderConfig(), "perturbs_state": True}
    recipes = {recipe.camera: recipe for recipe in inputs[0].cameras}
    columns = StateColumns(names=sides[0].names, sides=sides)
    text, rows = Letters(contract.action), np.arange(26)
    with closing(
        PromptReader(stores, contract, text, cameras=cameras, recipes=recipes, state=columns, **options)
    ) as reader:
        batch, lines = reader.read(rows, rows), reader.instructions(rows)
        fields = set(rt2_batch_fields(cameras)) - {"num_images", "answer_place", "prompt_length"}
        assert set(batch) == fields
        assert batch["frames_wrist"].shape == (19, 8, 8, 3) and batch["frames"].shape == (26, 16, 24, 3)
        first, second = (batch[key] for key in ("image_index_wrist", "image_index"))
        assert first[:19].tolist() == second[:19].tolist() and (first[19:] == -1).all()
        state_NP = np.concatenate(
            [np.stack(stores[0].read_shard(n, ["proprio"])["proprio"].to_pylist()) for n in (0, 1)]
        )
        for row, line in enumerate(lines):
            ids = batch["tokens"][row][batch["token_mask"][row]].tolist()[len(line) :]
            seen = sides[0].normalised(state_NP[row]) * (-1) ** row if row < 19 else []
            said = [int(value > 0) for value in seen] or [2] * 4
            assert ids[:-3] == [*said, *map(ord, "wi" if row < 19 else "i")]
        assert reader.cost(rows).tolist() == batch["token_mask"].sum(dim=1).tolist()

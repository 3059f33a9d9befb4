"""The validation loss does not know how many workers it was shared among."""

from __future__ import annotations

import json
import math
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from cluster.context import LocalContext, WorkerContext
from cluster.engine import DeepSpeedEngineConfig
from cluster.zero import ZeroConfig
from pipelines.catalogue import load_recipe
from pipelines.config.experiment import Experiment
from pipelines.training.data import open_reader, resolved, training_contract
from pipelines.training.validation import spread_rows, validation_loss
from preprocessing.loading.reader import LoaderConfig, Reader
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.web_store import open_store
from preprocessing.web.convert_web import WebConvertConfig, convert_web
from tests.support.ranks import run_ranks

WORLD_SIZES = [1, 2, 3, 5, 48]


class _InTurn(LocalContext):
    """Ranks that run one after the other in one process: the last of them hears what all have said."""

    def __init__(self, rank: int, world_size: int, said: list[Any]) -> None:
        super().__init__("cpu")
        self.rank, self.world_size, self._said = rank, world_size, said

    def gather(self, value: Any) -> list[Any]:
        self._said.append(value)
        return self._said


def loss_on(world_size: int, model: Any, reader: Any, *, windows: int, micro_batch: int) -> float:
    said: list[Any] = []
    contexts = [_InTurn(rank, world_size, said) for rank in range(world_size)]
    sizes = {"windows": windows, "micro_batch": micro_batch}
    with torch.no_grad():
        return [validation_loss(model, reader, context, **sizes) for context in contexts][-1]


class _Rows(Reader):
    """A reader whose batches are row numbers, and a model whose loss of a row grows with it."""

    config = LoaderConfig()
    row_losses_B: Tensor

    def __init__(self, *store_rows: int) -> None:
        self.store_rows = store_rows
        self.seen: list[int] = []
        self.calls = 0

    def read(self, sample_ids: np.ndarray, rows: np.ndarray, crop_keys: np.ndarray | None = None) -> dict[str, Tensor]:
        return {"row": torch.from_numpy(rows)}

    def close(self) -> None:
        pass

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        self.seen += batch["row"].tolist()
        self.calls += 1
        self.row_losses_B = batch["row"].double().square()
        return self.row_losses_B.mean()


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize(("windows", "micro_batch"), [(512, 8), (512, 7), (100, 64), (5, 2)])
def test_every_window_counts_once_on_any_number_of_workers(world_size: int, windows: int, micro_batch: int) -> None:
    both, rows = _Rows(700, 300), spread_rows([700, 300], windows)
    found = loss_on(world_size, both, both, windows=windows, micro_batch=micro_batch)
    assert found == pytest.approx(np.square(rows.astype(float)).mean(), rel=1e-12)
    assert set(both.seen) == set(rows.tolist()) and len(rows) == windows
    pieces = math.ceil(windows / micro_batch)
    assert both.calls == world_size * math.ceil(pieces / world_size)  # every rank takes part in every round


def test_all_rows_of_a_small_store_are_taken() -> None:
    assert spread_rows([3, 2], 512).tolist() == [0, 1, 2, 3, 4]


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("web") / "colours"
    folder.mkdir()
    Image.new("RGB", (20, 20), "red").save(folder / "red.png")
    lines = [{"image": "red.png", "question": f"is it {n}?", "answer": "yes " * n} for n in range(1, 6)]
    (folder / "all.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return convert_web(str(folder), str(folder.parent / "stores"), WebConvertConfig(format="jsonl", workers=0)).store


def chosen(name: str) -> Experiment:
    recipe = load_recipe(name.removesuffix("_segments"))
    segments = 4 if name.endswith("_segments") else 1
    return replace(recipe, loop=replace(recipe.loop, segment_windows=segments, micro_batch=4))


@pytest.mark.parametrize("name", ["rt1_tiny", "rt1_tiny_segments", "rt2_tiny"])
def test_real_models_lose_the_same_to_the_last_bit(name: str, store: str, web: str) -> None:
    """RT-1, RT-1 trained by segments, and RT-2 with rows of robots and of the web, of which some are terminal."""
    stores = [open_store(path) for path in ([store, web] if name == "rt2_tiny" else [store])]
    experiment = resolved(chosen(name), stores)
    torch.manual_seed(0)
    model = experiment.model.build().eval()
    with closing(open_reader(experiment, stores, training_contract(experiment, stores))) as reader:
        found = {w: loss_on(w, model, reader, windows=26, micro_batch=4) for w in (1, 2, 3)}
        rows = spread_rows(reader.store_rows, 26)
        with torch.no_grad():
            alone = [float(model.loss(reader.read(row, row))) for row in rows[:, None]]
    assert found[1] == found[2] == found[3]
    assert found[1] == pytest.approx(np.mean(alone), rel=1e-5)


def zero_3_loss(context: WorkerContext, path: str) -> float:
    stores: list[Any] = [EpisodeStore.open(path)]
    experiment = resolved(chosen("rt1_tiny"), stores)
    engine = DeepSpeedEngineConfig(zero=ZeroConfig(stage=3)).build(context, micro_batch=4, accumulation=1)
    torch.manual_seed(0)

    def optimizer(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam(model.parameters())

    engine.build(experiment.model.build, optimizer)
    with (
        closing(open_reader(experiment, stores, training_contract(experiment, stores))) as reader,
        engine.evaluate_mode() as model,
    ):
        found = validation_loss(model, reader, context, windows=12, micro_batch=4)
    engine.close()
    return found


def test_two_ranks_of_zero_3_of_which_one_has_nothing_left(store: str, tmp_path: Path) -> None:
    """Three micro-batches on two ranks: both hear the loss that one process finds."""
    ranks = run_ranks(zero_3_loss, 2, tmp_path / "ranks", store)
    stores: list[Any] = [EpisodeStore.open(store)]
    experiment = resolved(chosen("rt1_tiny"), stores)
    torch.manual_seed(0)
    model = experiment.model.build().eval()
    with closing(open_reader(experiment, stores, training_contract(experiment, stores))) as reader:
        alone = loss_on(1, model, reader, windows=12, micro_batch=4)
    assert ranks[0] == ranks[1] == pytest.approx(alone, rel=1e-5)

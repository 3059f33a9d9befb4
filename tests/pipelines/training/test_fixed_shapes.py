"""With padding forced on a CPU: few shapes from every mode of the loader, and the same training as without."""

from __future__ import annotations

import itertools
import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cluster.context import LocalContext
from cluster.engine import TorchEngineConfig
from pipelines.catalogue import load_recipe
from pipelines.config.experiment import Experiment
from pipelines.families.models import family_of
from pipelines.train_loop import train
from pipelines.training.data import build_loader, open_reader, resolved, training_contract
from pipelines.training.fixed_shapes import training_loader, training_shapes, validation_shapes
from pipelines.training.job import TrainJob
from pipelines.training.run_files import METRICS, final_samples, read_metrics
from pipelines.training.validation import mean_loss
from preprocessing.loading.loader import Batch, Loader
from preprocessing.loading.window_reader import WindowReader
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.web_store import WebStore
from rt_models.spec import AffineTransform, check_batch, check_rt2_batch
from tests.support.ranks import run_ranks
from tests.support.tiny_web import colours_store

IDENTITY = AffineTransform(name="same", scale=(1.0,) * 11, offset=(0.0,) * 11)
MODES = list(itertools.product(("distinct", "windows", "pool"), (1, 4)))


class _Rank(LocalContext):
    """One of several ranks that are run in turn; `sizes`: those that all of them have counted."""

    def __init__(self, rank: int, world_size: int, sizes: list[Any]) -> None:
        super().__init__("cpu")
        self.rank, self.world_size, self._sizes = rank, world_size, sizes

    def gather(self, value: Any) -> list[Any]:
        return self._sizes or [value]


def experiment(recipe: str = "rt1_tiny", *, fixed: str = "on", frames: Any = "distinct", **loop: Any) -> Experiment:
    found = load_recipe(recipe)
    settings = {"fixed_shapes": fixed, "micro_batch": 8, "global_batch": 48, "log_every": 1}
    return replace(found, loader=replace(found.loader, frames=frames), loop=replace(found.loop, **(settings | loop)))


def opened(made: Experiment, stores: list[Any]) -> Any:
    return open_reader(made, stores, training_contract(made, stores))


def loader_of(made: Experiment, reader: Any, context: LocalContext | None = None) -> Loader:
    return training_loader(made, reader, context or LocalContext("cpu"))


def first(loader: Loader, count: int) -> list[Batch]:
    with closing(iter(loader)) as stream:  # type: ignore[type-var]
        return list(itertools.islice(stream, count))


@pytest.fixture(scope="module")
def robot(store: str) -> EpisodeStore:
    return EpisodeStore.open(store)


@pytest.fixture(scope="module")
def two_stores(store: str, tmp_path_factory: pytest.TempPathFactory) -> list[EpisodeStore]:
    """The sample, and it once more under another name."""
    copy = tmp_path_factory.mktemp("other") / "store"
    shutil.copytree(store, copy)
    manifest = copy / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"metaworld_sample"', '"other_sample"'))
    return [EpisodeStore.open(store), EpisodeStore.open(str(copy))]


# --- shapes ---


@pytest.mark.parametrize(("frames", "segment"), MODES)
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_few_shapes_over_a_thousand_micro_batches(frames: str, segment: int, world_size: int, robot: Any) -> None:
    """The sizes are counted, and some batches read: those hold what was counted."""
    made = experiment(frames=frames, segment_windows=segment, global_batch=96)
    with closing(opened(made, [robot])) as reader:
        sizes = [size for rank in range(world_size) for size in counted(made, reader, rank, world_size)]
        context = _Rank(0, world_size, [sizes])
        loader = loader_of(made, reader, context)
        assert loader.shapes is not None
        capacities = loader.shapes.capacities
        shapes = {capacities.holding(size) for size in sizes}
        assert len(sizes) >= 1000 and shapes <= set(capacities.sizes) and len(capacities.sizes) <= 3
        for batch, size in zip(first(loader, 4), counted(made, reader, 0, world_size), strict=False):
            check_batch(batch, action_size=11)
            assert int(batch["num_images"]) == size and len(batch["image_frame"]) == capacities.holding(size)
            assert frames == "pool" or len(batch["frames"]) == capacities.holding(size)


def counted(made: Experiment, reader: WindowReader, rank: int, world_size: int) -> list[int]:
    loader = build_loader(made, reader, _Rank(rank, world_size, []), None)
    samples = loader.first_samples(1000 // world_size + 1)
    return [reader.size(rows, keys, crops=True) for rows, keys in samples]


RECIPES = ("rt1_metaworld", "rt1_metaworld_mt6", "rt1_fractal", "rt1_bridge_overfit", "rt1_tiny", "rt1_vd4rl")


@pytest.mark.parametrize(("recipe", "most"), [*((name, 0.07) for name in RECIPES), ("rt1x_finetune", 0.17)])
def test_little_is_wasted_on_the_sample_by_the_shipped_recipes(recipe: str, most: float, robot: EpisodeStore) -> None:
    """Its episodes have 9 to 14 steps, fewer than RT-1-X's window of 15; longer ones waste less
    (tests/preprocessing/loading/test_loader_shapes.py). The recipes of MT10 and MT50 have the batches of rt1_fractal.
    """
    found = load_recipe(recipe)
    made = replace(found, loop=replace(found.loop, fixed_shapes="on"))
    with closing(WindowReader([robot], [IDENTITY], num_steps=made.model.num_steps, config=made.loader)) as reader:  # type: ignore[union-attr]
        loader = build_loader(made, reader, LocalContext("cpu"), None)
        sizes = [reader.size(rows, keys, crops=True) for rows, keys in loader.first_samples(1000)]
        shapes = training_shapes(made, LocalContext("cpu"), reader, loader)
    assert shapes is not None and len(shapes.capacities.sizes_seen) == reader.counted
    padded = [shapes.capacities.holding(size) for size in sizes]
    assert len(set(padded)) <= 3 and 1 - sum(sizes) / sum(padded) < most


def test_a_convolution_sees_three_shapes_at_most_in_each_phase(robot: EpisodeStore, two_stores: list[Any]) -> None:
    """A hook on every convolution, over a mixture, with episode starts and ends and a short last piece."""
    made = experiment(segment_windows=4)
    made = replace(made, mixture=replace(made.mixture, weights={"metaworld_sample": 2.0, "other_sample": 1.0}))
    model = made.model.build()
    seen: dict[str, set[tuple[int, ...]]] = {}
    for name, part in model.named_modules():
        if isinstance(part, nn.Conv2d):
            seen[name] = set()
            part.register_forward_hook(lambda _, inputs, __, name=name: seen[name].add(tuple(inputs[0].shape)))
    with closing(opened(made, two_stores)) as reader:
        loader = loader_of(made, reader)
        for batch in first(loader, 40):
            model.loss(batch)
        assert seen and all(1 < len(shapes) <= 3 for shapes in seen.values())
        for shapes in seen.values():
            shapes.clear()
        rows = np.arange(4, 4 + 8 * 9 + 3)  # nine pieces of eight and one of three
        pieces = [rows[at : at + 8] for at in range(0, len(rows), 8)]
        fixed = validation_shapes(made, LocalContext("cpu"), reader, pieces)
        with torch.no_grad():
            padded = mean_loss(model.eval(), reader, LocalContext("cpu"), rows, micro_batch=8, shapes=fixed)
            assert all(len(shapes) <= 3 for shapes in seen.values())
            alone = mean_loss(model, reader, LocalContext("cpu"), rows, micro_batch=8, shapes=None)
    assert padded == pytest.approx(alone, rel=1e-6)


# --- the same training ---


def wide(batch: Batch) -> Batch:
    return {key: value.double() if value.dtype == torch.float32 else value for key, value in batch.items()}


def trained(model: Any, batch: Batch) -> list[Tensor]:
    """Loss, what each sample counted in it, gradients and running averages of one training step."""
    model.zero_grad()
    loss = model.loss(wide(batch))
    loss.backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    averages = [buffer.clone() for buffer in model.buffers()]
    return [loss.detach(), model.row_losses_B, *gradients, *averages]


def assert_equal_steps(made: Experiment, reader: Any, context: LocalContext, steps: int) -> None:
    with_padding = first(loader_of(made, reader, context), steps)
    off = replace(made, loop=replace(made.loop, fixed_shapes="off"))
    without = first(loader_of(off, reader, context), steps)
    results = []
    for batches in (without, with_padding):
        torch.manual_seed(0)
        model = made.model.build().double().train()
        results.append([value for batch in batches for value in trained(model, batch)])
    for theirs, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    for padded, alone in zip(with_padding, without, strict=True):
        assert "num_images" in padded and "num_images" not in alone
        assert padded["sample_id"].tolist() == alone["sample_id"].tolist()
        counted = [family_of(made.model).batch_cost(made.model).trained_tokens(b) for b in (padded, alone)]  # type: ignore[arg-type]
        assert counted[0].tolist() == counted[1].tolist()


@pytest.mark.parametrize(("frames", "segment"), MODES)
def test_a_padded_step_is_the_step(frames: str, segment: int, robot: EpisodeStore) -> None:
    made = experiment(frames=frames, segment_windows=segment)
    with closing(opened(made, [robot])) as reader:
        assert_equal_steps(made, reader, LocalContext("cpu"), 3)


def on_each_rank(context: Any, store: str) -> None:
    made = experiment(segment_windows=4)
    with closing(opened(made, [EpisodeStore.open(store)])) as reader:
        assert_equal_steps(made, reader, context, 2)


def test_it_is_on_two_ranks_too(store: str, tmp_path: Path) -> None:
    run_ranks(on_each_rank, 2, tmp_path, store)


@pytest.mark.parametrize("crop", ["none", "pad"])
def test_prompts_have_rows_of_few_lengths_and_the_same_loss(crop: str, robot: Any, web: WebStore) -> None:
    made = experiment("rt2_tiny", micro_batch=4)
    made = replace(made, model=replace(made.model, picture=replace(made.model.picture, robot_crop=crop)))  # type: ignore[union-attr]
    made = resolved(made, [robot, web])
    with closing(opened(made, [robot, web])) as reader:
        loader = loader_of(made, reader)
        batches = first(loader, 24)
        for batch in batches:
            check_rt2_batch(batch, action_size=11)
        assert len({(tuple(b["tokens"].shape), len(b["frames"])) for b in batches}) <= 3
        assert_equal_steps(made, reader, LocalContext("cpu"), 3)


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> WebStore:
    return colours_store(tmp_path_factory.mktemp("web"))


def test_a_run_says_what_it_pads(store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    losses = {}
    for fixed in ("on", "off"):
        made = experiment(fixed=fixed, steps=3, log_samples=True, checkpoint_every=3, global_batch=16)
        made = replace(made, engine=TorchEngineConfig())
        job = TrainJob(
            experiment=made,
            stores=(store,),
            validation=(store,),
            output=str(tmp_path / fixed),
            tracking_uri=f"sqlite:///{tmp_path}/mlflow.db",
        )
        train(LocalContext("cpu"), job)
        lines = read_metrics(tmp_path / fixed / METRICS)
        losses[fixed] = [line.get("loss", line.get("validation_loss")) for line in lines]
        shares = [line["image_padding_share"] for line in lines if "image_padding_share" in line]
        assert len(shares) == (3 if fixed == "on" else 0) and all(0 <= share < 0.25 for share in shares)
    assert losses["on"] == pytest.approx(losses["off"], rel=1e-5)
    assert final_samples(tmp_path / "on") == final_samples(tmp_path / "off")
    said = capsys.readouterr().err
    assert "training: batches are padded to " in said and "validation: batches are padded to " in said


def test_a_reader_that_cannot_pad_is_named(robot: EpisodeStore) -> None:
    class Marked(WindowReader):
        def read(self, sample_ids: Any, rows: Any, crop_keys: Any = None) -> Batch:  # type: ignore[override]
            return super().read(sample_ids, rows, crop_keys)

    made = experiment()
    with closing(Marked([robot], [IDENTITY], num_steps=3, config=made.loader)) as reader:
        with pytest.raises(ValueError, match=r"loop\.fixed_shapes on: Marked cannot pad its batches"):
            loader_of(made, reader)
        off = replace(made, loop=replace(made.loop, fixed_shapes="auto"))
        assert loader_of(off, reader).shapes is None

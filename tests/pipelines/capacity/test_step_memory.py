"""What a training step holds: estimated on the meta device, counted while one runs, and measured on a GPU before."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cluster.context import LocalContext
from cluster.engine import TorchEngineConfig
from pipelines.capacity.estimate import estimate_resources
from pipelines.capacity.live_bytes import LiveBytes
from pipelines.capacity.step_memory import count_step, model_on_meta, take_step
from pipelines.catalogue import load_recipe
from pipelines.config.experiment import Experiment, InProcess
from pipelines.families.models import family_of
from pipelines.training.data import open_reader, resolved, training_contract
from pipelines.training.fixed_shapes import training_loader
from pipelines.training.initial_weights import model_factory
from preprocessing.loading.fixed_shapes import is_sized
from preprocessing.loading.reader import Batch
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.web_store import Store, WebStore
from rt_models.blocks.activation_checkpointing import ActivationCheckpointing, checkpointed
from rt_models.rt1 import RT1Config
from rt_models.rt2_vlm import FullTuning, LoRA, RT2VLMConfig
from tests.support.tiny_web import colours_store

MODES: tuple[ActivationCheckpointing, ...] = ("off", "selective", "blocks")


@pytest.fixture(scope="module")
def robot(store: str) -> EpisodeStore:
    return EpisodeStore.open(store)


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> WebStore:
    return colours_store(tmp_path_factory.mktemp("web"))


def in_process(
    recipe: str, model: Any = None, *, fixed: str = "on", precision: Any = "fp32", **loop: Any
) -> Experiment:
    found = load_recipe(recipe)
    settings = {"fixed_shapes": fixed, "micro_batch": 8, "global_batch": 16} | loop
    return replace(
        found,
        model=model or found.model,
        engine=TorchEngineConfig(precision=precision, ema_decay=0.9),
        launch=InProcess(),
        loop=replace(found.loop, **settings),
    )


def counted_peak(experiment: Experiment, stores: list[Store]) -> int:
    """The most that tensors hold while the engine takes two steps on a CPU, of a batch of the size that is counted
    with: the batch, weights, and all that operations make."""
    context, accumulation = LocalContext("cpu"), experiment.accumulation(1)
    engine = experiment.engine.build(context, micro_batch=experiment.loop.micro_batch, accumulation=accumulation)
    model = engine.build(model_factory(experiment, None), experiment.optimizer.build)
    engine.set_learning_rate(1e-4)
    weights = sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))
    batch = batch_of_most(experiment, stores)
    live = LiveBytes(model, batch.values())
    with live:
        for _ in range(2 * accumulation):
            engine.forward_backward(batch)
            engine.step()
    return sum(value.numel() * value.element_size() for value in batch.values()) + weights + live.peak


def batch_of_most(experiment: Experiment, stores: list[Store]) -> Batch:
    """Of the first micro-batches the one with the most images, or tokens."""
    contract = training_contract(experiment, stores)
    with closing(open_reader(experiment, stores, contract, is_training=True)) as reader:
        loader = training_loader(experiment, reader, LocalContext("cpu"))
        assert is_sized(reader)
        rows, keys = max(loader.first_samples(reader.counted), key=lambda found: reader.size(*found, crops=True))
        ids = np.arange(len(rows))
        return (loader.shapes or reader).read(ids, rows, keys)


def assert_estimated(experiment: Experiment, stores: list[Store], within: float = 0.1) -> None:
    experiment = resolved(experiment, stores)
    estimate = estimate_resources(experiment, stores, on_gpu=False).worker_bytes(0)
    assert estimate == pytest.approx(counted_peak(experiment, stores), rel=within)


@pytest.mark.parametrize(
    ("mode", "precision", "segment"), [("off", "fp32", 1), ("selective", "bf16", 4), ("blocks", "bf16", 1)]
)
def test_rt1(mode: ActivationCheckpointing, precision: str, segment: int, robot: EpisodeStore) -> None:
    small = RT1Config.small()
    model = replace(small, compute=replace(small.compute, activation_checkpointing=mode))
    made = in_process("rt1_metaworld", model, precision=precision, segment_windows=segment)
    assert_estimated(made, [robot], within=0.03)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_rt1_without_padding_as_on_a_cpu(accumulation: int, robot: EpisodeStore) -> None:
    assert_estimated(in_process("rt1_metaworld", fixed="off", global_batch=8 * accumulation), [robot])


def test_a_model_whose_backbone_is_frozen(robot: EpisodeStore) -> None:
    made = replace(in_process("rt1_metaworld"), freeze=("tokenizer.",))
    assert_estimated(made, [robot])


@pytest.mark.parametrize(("mode", "precision"), [("off", "fp32"), ("selective", "fp32"), ("blocks", "bf16")])
def test_rt2(mode: ActivationCheckpointing, precision: str, robot: EpisodeStore, web: WebStore) -> None:
    found: Any = load_recipe("rt2_tiny").model
    made = in_process("rt2_tiny", replace(found, activation_checkpointing=mode), precision=precision)
    assert_estimated(made, [robot, web])


@pytest.mark.parametrize("tuning", [FullTuning(), LoRA(rank=4)], ids=["full", "lora"])
@pytest.mark.parametrize(("precision", "mode"), [("fp32", "off"), ("bf16", "blocks")])
def test_a_vlm(
    tuning: Any, precision: str, mode: ActivationCheckpointing, robot: EpisodeStore, web: WebStore, tmp_path: Path
) -> None:
    pytest.importorskip("transformers", reason="needs the extra vlm")
    from tests.support.rt2_folders import save_paligemma

    folder = str(save_paligemma(tmp_path / "model", num_hidden_layers=6, intermediate_size=512))
    dtype = "bfloat16" if precision == "bf16" and isinstance(tuning, LoRA) else "float32"
    model = RT2VLMConfig.paligemma(folder, tuning=tuning, dtype=dtype, activation_checkpointing=mode)
    assert_estimated(in_process("rt2_tiny", model, precision=precision), [robot, web])


MEASURED_GB = [  # an H200 by benchmarks/gpu.py, docs/measured.md: windows, windows a segment, whose kernels, graph
    (32, 1, "ours", "on", 19.5),
    (32, 1, "torch", "off", 31.5),
    (96, 12, "ours", "off", 15.8),
    (96, 12, "ours", "on", 16.0),
    (96, 12, "torch", "off", 24.5),
]


@pytest.mark.parametrize(("windows", "segment", "kernels", "graph", "measured"), MEASURED_GB)
def test_what_an_h200_held(windows: int, segment: int, kernels: str, graph: Any, measured: float) -> None:
    """The preset rt1 in bf16. Convolutions in contiguous format leave the norms to torch."""
    preset = RT1Config.rt1()
    compute = replace(preset.compute, memory_format="contiguous" if kernels == "torch" else "channels_last")
    sizes: Any = {"micro_batch": windows, "global_batch": windows, "segment_windows": segment}
    made = in_process("rt1_fractal", replace(preset, compute=compute), **sizes)
    made = replace(made, engine=TorchEngineConfig(precision="bf16", cuda_graphs=graph))
    estimate = estimate_resources(made, [], on_gpu=True).worker_bytes(0)
    assert estimate / 1e9 == pytest.approx(measured, rel=0.1)


class _Outer(nn.Module):
    """relu(V silu(Wx)), the outer relu outside the block."""

    def __init__(self, mode: ActivationCheckpointing) -> None:
        super().__init__()
        self.mode: ActivationCheckpointing = mode
        self.block = nn.Sequential(nn.Linear(128, 256, bias=False), nn.SiLU(), nn.Linear(256, 384, bias=False))

    def loss(self, batch: Batch) -> torch.Tensor:
        return checkpointed(self.block, self.mode, batch["x"]).relu().sum()


@pytest.mark.parametrize(("mode", "held"), [("off", 256 + 256 + 384), ("selective", 256 + 384 + 384), ("blocks", 384)])
def test_what_forward_keeps_by_mode_of_checkpointing(mode: ActivationCheckpointing, held: int) -> None:
    """In numbers for each row of x, which is there anyway; "selective" keeps both products, though nothing needs the
    second."""
    with torch.device("meta"):
        model, x = _Outer(mode).train(), torch.zeros(64, 128, requires_grad=True)
    live = LiveBytes(model, [x])
    with live:
        loss = model.loss({"x": x})
    assert live.live == 64 * 4 * held + 512  # the loss, as an allocator rounds it up
    del loss
    assert live.live == 0


@pytest.mark.parametrize("error", [ValueError, TypeError, AssertionError, NotImplementedError])
def test_a_model_that_cannot_be_computed_without_values_is_not_counted(
    error: type[Exception], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = in_process("rt1_tiny")
    model = model_on_meta(experiment)

    def loss(batch: Batch) -> torch.Tensor:
        raise error("a value is needed")

    monkeypatch.setattr(model, "loss", loss)
    with caplog.at_level("DEBUG", logger="pipelines.capacity.step_memory"):
        assert count_step(experiment, [], model, on_gpu=False) is None
    assert "is not counted" in caplog.text and "a value is needed" in caplog.text


def test_gradients_are_counted_apart() -> None:
    with torch.device("meta"):
        model, x = _Outer("off").train(), torch.zeros(64, 128)
    live = take_step(model, {"x": x}, on_gpu=False, autocast=False)
    assert live.gradient == 4 * (128 * 256 + 256 * 384) and live.live == 0
    assert live.peak >= live.peak_beside_gradients > 64 * 4 * (256 + 256 + 384)


@pytest.mark.parametrize("mode", MODES)
def test_a_gpus_casts_are_those_of_what_checkpointing_computes_again(mode: ActivationCheckpointing) -> None:
    """torch compares what is computed again with what it was, and raises where a type differs."""
    config = RT1Config.tiny()
    config = replace(config, compute=replace(config.compute, activation_checkpointing=mode))
    made = replace(in_process("rt1_tiny", config, precision="bf16"), loader=load_recipe("rt1_tiny").loader)
    family = family_of(config)
    batch = family.batch_on_meta(config, 8, 24, frame_sizes={"image": (96, 96)}, places=3)
    assert batch is not None
    live = take_step(model := model_on_meta(made), batch, on_gpu=True, autocast=True)
    trained = sum(parameter.numel() for parameter in model.parameters())
    assert live.peak > live.gradient >= 4 * trained

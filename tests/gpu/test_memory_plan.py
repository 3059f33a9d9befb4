"""What `rtp doctor` says that a training holds of a GPU is what it holds, within a tenth."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest
import torch

pytest.importorskip("pyarrow", reason="needs pyarrow")
pytest.importorskip("mlflow", reason="needs mlflow")

from cluster.context import LocalContext
from cluster.engine import TorchEngineConfig
from pipelines.capacity.estimate import estimate_resources
from pipelines.catalogue import load_recipe
from pipelines.config.experiment import Experiment, InProcess
from pipelines.training.data import open_reader, resolved, training_contract
from pipelines.training.device_copies import DeviceCopies
from pipelines.training.fixed_shapes import training_loader
from preprocessing.loading.reader import Batch
from preprocessing.store.episode_store import EpisodeStore

STEPS = 6


@pytest.mark.parametrize("checkpointing", ["off", "selective", "blocks"])
def test_a_real_step_holds_what_was_planned(checkpointing: Any, store: str, device: str) -> None:
    """The full RT-1 in bf16, 16 windows at once, on the largest of the batches that the plan looked at."""
    made = experiment(device, checkpointing)
    stores = [EpisodeStore.open(store)]
    made = resolved(made, stores)
    planned = estimate_resources(made, stores, on_gpu=device == "cuda").worker_bytes(0)
    batch = largest_batch(made, stores)
    context = LocalContext(device)
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    engine: Any = made.engine.build(context, micro_batch=made.loop.micro_batch, accumulation=1)
    engine.build(made.model.build, made.optimizer.build)
    engine.set_learning_rate(1e-4)
    copies = DeviceCopies(context.device)
    for _ in range(STEPS):
        loss = engine.forward_backward(copies.copied(batch))
        copies.used()
        engine.step()
    assert bool(loss.isfinite())
    held = torch.cuda.max_memory_allocated() - before
    engine.close()
    print(f"planned {planned / 1e6:.0f} MB, held {held / 1e6:.0f} MB")
    if device == "cuda":  # torch does not count a CPU's
        assert held == pytest.approx(planned, rel=0.1)


def experiment(device: str, checkpointing: Any) -> Experiment:
    made = load_recipe("rt1_fractal" if device == "cuda" else "rt1_tiny")
    compute = replace(made.model.compute, activation_checkpointing=checkpointing)  # type: ignore[attr-defined]
    loop = replace(made.loop, global_batch=16, micro_batch=16, segment_windows=1, fixed_shapes="on")
    engine = TorchEngineConfig(precision="bf16" if device == "cuda" else "fp32", cuda_graphs="off")
    model: Any = replace(made.model, compute=compute)  # type: ignore[type-var]
    return replace(made, model=model, loop=loop, engine=engine, launch=InProcess())


def largest_batch(made: Experiment, stores: list[EpisodeStore]) -> Batch:
    """Of the run's first micro-batches that which has the most images, in pinned memory where there is a GPU."""
    context = LocalContext("cpu")
    with closing(open_reader(made, stores, training_contract(made, stores), is_training=True)) as reader:
        loader = training_loader(made, reader, context)
        assert loader.shapes is not None
        most = loader.shapes.capacities.sizes_seen[-1]
        with closing(iter(loader)) as stream:  # type: ignore[type-var]
            found = next(batch for batch in stream if int(batch["num_images"]) == most)
            batch = {key: value.clone() for key, value in found.items()}
    return {key: value.pin_memory() for key, value in batch.items()} if torch.cuda.is_available() else batch

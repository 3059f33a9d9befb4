"""Through loader and engine no convolution meets a new shape once the few that there are have come."""

from __future__ import annotations

import itertools
from collections import defaultdict
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("pyarrow", reason="needs pyarrow")
pytest.importorskip("mlflow", reason="needs mlflow")

from cluster.context import LocalContext
from cluster.engine import TorchEngineConfig
from pipelines.catalogue import load_recipe
from pipelines.training.data import open_reader, resolved, training_contract
from pipelines.training.device_copies import DeviceCopies
from pipelines.training.fixed_shapes import training_loader
from preprocessing.store.episode_store import EpisodeStore

STEPS, FIRST = 150, 100


@pytest.mark.parametrize("segment", [1, 4])
def test_no_new_convolution_shape_after_the_first_steps(segment: int, store: str, device: str) -> None:
    """By hooks on every convolution, so without graphs: `auto` pads on a GPU by itself, a CPU is told to."""
    made, stores = load_recipe("rt1_tiny"), [EpisodeStore.open(store)]
    fixed = "auto" if device == "cuda" else "on"
    made = replace(made, loop=replace(made.loop, global_batch=8, segment_windows=segment, fixed_shapes=fixed))
    made = resolved(made, stores)
    context = LocalContext(device)
    engine: Any = TorchEngineConfig(cuda_graphs="off").build(context, micro_batch=8, accumulation=1)
    model = engine.build(made.model.build, made.optimizer.build)
    engine.set_learning_rate(1e-4)
    met = shapes_met(model)
    copies = DeviceCopies(context.device)
    with closing(open_reader(made, stores, training_contract(made, stores), is_training=True)) as reader:
        loader = training_loader(made, reader, context)
        assert loader.shapes is not None
        with closing(iter(loader)) as stream:  # type: ignore[type-var]
            for number, batch in enumerate(itertools.islice(stream, STEPS)):
                if number == FIRST:
                    early = {name: set(shapes) for name, shapes in met.items()}
                engine.forward_backward(copies.copied(batch))
                copies.used()
                engine.step()
    engine.close()
    convolutions = {name for name, part in model.named_modules() if isinstance(part, nn.Conv2d)}
    # Squeeze-excite's two, of one position, are matrix products, and inside our kernels.
    assert len(convolutions) > 5 and met.keys() >= {name for name in convolutions if ".gate." not in name}
    assert met == early
    images = {int(shape[0]) for shapes in met.values() for shape in shapes}
    assert images <= set(loader.shapes.capacities.sizes) and 1 < len(images) <= 3


def shapes_met(model: nn.Module) -> dict[str, set[torch.Size]]:
    """The shapes of the inputs of each convolution, as they come."""
    met: dict[str, set[torch.Size]] = defaultdict(set)
    for name, part in model.named_modules():
        if isinstance(part, nn.Conv2d):
            part.register_forward_pre_hook(lambda _, inputs, name=name: met[name].add(inputs[0].shape))
    return met

"""The few shapes of a run's batches: whether shapes are fixed, and which capacities the sample order needs."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from cluster.context import WorkerContext
from pipelines.config.experiment import Experiment
from pipelines.families.models import family_of
from pipelines.training.data import build_loader
from preprocessing.loading.fixed_shapes import BatchShapes, SizedReader, choose_capacities, is_sized, shapes_of_pieces
from preprocessing.loading.loader import Loader
from preprocessing.loading.reader import Reader


def sized_reader(experiment: Experiment, context: WorkerContext, reader: Reader) -> SizedReader | None:
    """The reader, if its batches shall have few shapes. Raises ValueError if it cannot pad them."""
    setting = experiment.loop.fixed_shapes
    if setting == "off" or (setting == "auto" and context.device.type == "cpu"):
        return None
    if is_sized(reader):
        return reader
    if setting == "on":
        kind = type(reader).__name__
        raise ValueError(f"loop.fixed_shapes on: {kind} cannot pad its batches; set loop.fixed_shapes off")
    return None


def training_shapes(
    experiment: Experiment, context: WorkerContext, reader: Reader, loader: Loader
) -> BatchShapes | None:
    """Collective. The first micro-batches of the sample order decide, wherever the run starts: a run that is resumed
    on as many ranks has the same shapes."""
    sized = sized_reader(experiment, context, reader)
    if sized is None:
        return None
    mine = [sized.size(rows, keys, crops=True) for rows, keys in loader.first_samples(sized.counted)]
    sizes = [size for rank in context.gather(mine) for size in rank]
    largest = sized.largest_size(experiment.loop.micro_batch, experiment.loop.segment_windows)
    plan = partial(family_of(experiment.model).planned, experiment.model, is_training=True)
    return BatchShapes(reader=sized, capacities=choose_capacities(sizes, largest), crops=True, plan=plan)


def training_loader(
    experiment: Experiment, reader: Reader, context: WorkerContext, position: Mapping[str, int] | None = None
) -> Loader:
    """Collective. `build_loader`'s, whose batches have few shapes where the run asks for that."""
    loader = build_loader(experiment, reader, context, position)
    loader.shapes = training_shapes(experiment, context, reader, loader)
    return loader


def validation_shapes(
    experiment: Experiment, context: WorkerContext, reader: Reader, pieces: Sequence[np.ndarray]
) -> BatchShapes | None:
    """Of a validation over these pieces, int64 (B,) rows each."""
    sized = sized_reader(experiment, context, reader)
    if sized is None:
        return None
    plan = partial(family_of(experiment.model).planned, experiment.model, is_training=False)
    return shapes_of_pieces(sized, pieces, plan)


def shapes_json(shapes: BatchShapes) -> dict[str, object]:
    """For the record of a run."""
    capacities = shapes.capacities
    return {
        "of": shapes.reader.counts,
        "capacities": list(capacities.sizes),
        "padding_share": capacities.waste,
        "micro_batches_counted": len(capacities.sizes_seen),
    }


def print_shapes(phase: str, shapes: BatchShapes) -> None:
    """A line on stderr."""
    capacities = shapes.capacities
    sizes, num_counted = ", ".join(map(str, capacities.sizes)), len(capacities.sizes_seen)
    padding = f"{100 * capacities.waste:.1f} % of them padding in the {num_counted} micro-batches counted"
    print(f"{phase}: batches are padded to {sizes} {shapes.reader.counts}, {padding}", file=sys.stderr, flush=True)

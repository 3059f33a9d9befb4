"""The few shapes that a run's batches have: whether they are fixed, and what capacities its sample order asks for."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from cluster.context import WorkerContext
from pipelines.config.experiment import Experiment
from pipelines.families.models import family_of
from preprocessing.loading.fixed_shapes import BatchShapes, SizedReader, choose_capacities, is_sized, shapes_of_pieces
from preprocessing.loading.loader import Loader
from preprocessing.loading.reader import Reader

COUNTED = 256  # micro-batches of each rank, from the first of the run, that the capacities are chosen from


def sized_reader(experiment: Experiment, context: WorkerContext, reader: Reader) -> SizedReader | None:
    """The reader, where its batches are to have few shapes. Raises ValueError where it cannot pad them."""
    asked = experiment.loop.fixed_shapes
    if asked == "off" or (asked == "auto" and context.device.type == "cpu"):
        return None
    if is_sized(reader):
        return reader
    if asked == "on":
        kind = type(reader).__name__
        raise ValueError(f"loop.fixed_shapes on: {kind} cannot pad its batches; set loop.fixed_shapes off")
    return None


def training_shapes(
    experiment: Experiment, context: WorkerContext, reader: Reader, loader: Loader
) -> BatchShapes | None:
    """Collective. What the order's first micro-batches hold decides, wherever the run starts: a run that is resumed on
    as many ranks has the same shapes."""
    sized = sized_reader(experiment, context, reader)
    if sized is None:
        return None
    mine = [sized.size(rows, keys, crops=True) for rows, keys in loader.first_samples(COUNTED)]
    sizes = [size for rank in context.gather(mine) for size in rank]
    largest = sized.largest_size(experiment.loop.micro_batch, experiment.loop.segment_windows)
    plan = partial(family_of(experiment.model).planned, is_training=True)
    return BatchShapes(reader=sized, capacities=choose_capacities(sizes, largest), crops=True, plan=plan)


def validation_shapes(
    experiment: Experiment, context: WorkerContext, reader: Reader, pieces: Sequence[np.ndarray]
) -> BatchShapes | None:
    """Of a validation over these pieces, int64 (B,) rows each."""
    sized = sized_reader(experiment, context, reader)
    if sized is None:
        return None
    return shapes_of_pieces(sized, pieces, partial(family_of(experiment.model).planned, is_training=False))


def described(shapes: BatchShapes) -> dict[str, Any]:
    """For the record of a run."""
    capacities = shapes.capacities
    return {
        "of": shapes.reader.counts,
        "capacities": list(capacities.sizes),
        "padding_share": capacities.waste,
        "micro_batches_counted": len(capacities.sizes_seen),
    }


def print_shapes(phases: Mapping[str, dict[str, Any]]) -> None:
    """A line for each phase on stderr; `phases` as `described`."""
    for phase, shapes in phases.items():
        sizes, share = ", ".join(map(str, shapes["capacities"])), 100 * shapes["padding_share"]
        over = f"{share:.1f} % of them padding in the {shapes['micro_batches_counted']} micro-batches counted"
        print(f"{phase}: batches are padded to {sizes} {shapes['of']}, {over}", file=sys.stderr, flush=True)

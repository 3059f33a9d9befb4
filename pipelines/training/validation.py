"""The loss on held-out windows: every window counts once, on any number of workers.

Windows are cut into the same micro-batches for every number of workers, and each micro-batch goes to one of them. The
sums are added in the order of the micro-batches, so the loss is the same to the last bit on any number of workers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from cluster.context import WorkerContext
from cluster.engine import Engine
from cluster.engine_base import LossModel
from pipelines.config.experiment import Experiment
from pipelines.training.fixed_shapes import validation_shapes
from preprocessing.loading.fixed_shapes import BatchShapes
from preprocessing.loading.reader import Reader


class Validator:
    """Measures the model under training on its validation stores, which `reader` reads."""

    def __init__(self, experiment: Experiment, context: WorkerContext, reader: Reader) -> None:
        self._experiment, self._context, self._reader = experiment, context, reader
        self._rows = spread_rows(reader.store_rows, experiment.loop.evaluate_windows)
        pieces = _pieces(self._rows, experiment.loop.micro_batch)
        self.shapes = validation_shapes(experiment, context, reader, pieces)

    def measure(self, engine: Engine) -> dict[str, float]:
        """`validation_loss`, of the averaged weights where the engine keeps them; collective."""
        micro_batch = self._experiment.loop.micro_batch
        with engine.evaluate_mode(averaged=self._experiment.engine.ema_decay > 0) as model:
            loss = mean_loss(
                model, self._reader, self._context, self._rows, micro_batch=micro_batch, shapes=self.shapes
            )
        return {"validation_loss": loss}


def spread_rows(store_rows: Sequence[int], count: int) -> np.ndarray:
    """int64: `count` rows, or all there are, evenly spread over the stores, each once."""
    num_rows = sum(store_rows)
    return np.unique(np.linspace(0, num_rows - 1, min(count, num_rows)).astype(np.int64))


def validation_loss(
    model: LossModel, reader: Reader, context: WorkerContext, *, windows: int, micro_batch: int
) -> float:
    """`mean_loss` over `windows` spread windows."""
    rows = spread_rows(reader.store_rows, windows)
    return mean_loss(model, reader, context, rows, micro_batch=micro_batch, shapes=None)


def mean_loss(
    model: LossModel,
    reader: Reader,
    context: WorkerContext,
    rows: np.ndarray,
    *,
    micro_batch: int,
    shapes: BatchShapes | None,
) -> float:
    """Mean loss of a model in evaluation mode over `rows`; collective: every rank gets the same.

    `model` is a `rt_models.robot_model.RobotModel`, or what an engine gives for one.
    """
    pieces = _pieces(rows, micro_batch)
    sums: dict[int, Tensor] = {}
    for first in range(0, len(pieces), context.world_size):
        context.beat()
        number = first + context.rank
        # A rank for which none is left computes the last one once more, uncounted: under ZeRO-3 all take part in all.
        piece = pieces[min(number, len(pieces) - 1)]
        read = reader.read(piece, piece) if shapes is None else shapes.read_filled(piece, len(pieces[0]))
        model.loss({key: value.to(context.device) for key, value in read.items()})
        if number < len(pieces):
            assert model.row_losses_B is not None
            sums[number] = model.row_losses_B[: len(piece)].double().sum()
    mine = {number: float(total) for number, total in sums.items()}  # at the end: each look waits for the device
    every = {number: total for own in context.gather(mine) for number, total in own.items()}
    return math.fsum(every[number] for number in sorted(every)) / len(rows)


def _pieces(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [rows[first : first + size] for first in range(0, len(rows), size)]

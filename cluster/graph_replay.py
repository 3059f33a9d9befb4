"""A micro-batch's forward and backward pass as a CUDA graph: recorded once for each shape of batch, then replayed.

Without it a training step of RT-1 takes as long as Python and torch need to launch its kernels (docs/measured.md). A
recording holds kernels and addresses, so what the host decides during it holds for every replay. The model therefore
says whether a batch may be recorded (`replayable(batch)`), and gradients keep their memory from update to update.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from cluster.context import WorkerContext

log = logging.getLogger(__name__)

CudaGraphs = Literal["auto", "on", "off"]
_EAGER = 2  # batches of a shape that run as they are: kernels are chosen in them, gradients get their memory
_MOST = 8  # shapes that are recorded: each graph keeps its batch
Shape: TypeAlias = tuple[tuple[str, torch.Size, torch.dtype], ...]
"""Of a batch: name, shape and type of each of its tensors."""
Recorder = Callable[[Callable[[], Tensor]], tuple[Tensor, Callable[[], None]]]


class CudaRecorder:
    """Records what it is given to run; the graphs share their memory, as one is replayed after the other."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, run: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        """(what `run` returns, where each replay leaves its value; the replay). Nothing is computed yet."""
        graph = torch.cuda.CUDAGraph()
        # Other threads pin memory meanwhile, which concerns this one's recording as little as their copies do.
        # The first block: where a recording fails, torch leaves this thread on the stream that it recorded on.
        recording = torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local")
        with torch.cuda.stream(torch.cuda.current_stream()), recording:
            result = run()
        self._pool = graph.pool()
        return result, graph.replay


@dataclass(frozen=True, kw_only=True)
class _Recorded:
    """`batch`, `loss` and `row_losses_B` lie where the graph reads and leaves them."""

    batch: Mapping[str, Tensor]
    loss: Tensor
    row_losses_B: Tensor | None
    replay: Callable[[], None]


class GraphReplay:
    """Runs `forward_backward(batch) -> loss`, from the third batch of a shape on by replaying it.

    must: raise if a batch cannot be recorded, instead of continuing without graphs.
    """

    def __init__(
        self,
        model: nn.Module,
        forward_backward: Callable[[Mapping[str, Tensor]], Tensor],
        recorder: Recorder,
        *,
        must: bool,
    ) -> None:
        self._model, self._run, self._recorder, self._must = model, forward_backward, recorder, must
        self._seen: Counter[Shape] = Counter()
        self._recorded: dict[Shape, _Recorded] = {}
        self._gave_up = False

    def __call__(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The loss, detached."""
        if not self._may_record(batch):
            return self._run(batch)
        shape = tuple((key, value.shape, value.dtype) for key, value in batch.items())
        self._seen[shape] += 1
        if shape not in self._recorded and not (self._is_due(shape) and self._record(shape, batch)):
            return self._run(batch)
        recorded = self._recorded[shape]
        for key, value in batch.items():
            recorded.batch[key].copy_(value)
        recorded.replay()
        self._model.row_losses_B = recorded.row_losses_B  # type: ignore[assignment]  # not those recorded last
        return recorded.loss.clone()  # the next replay writes there

    def _may_record(self, batch: Mapping[str, Tensor]) -> bool:
        may: Callable[[Mapping[str, Tensor]], bool] | None = getattr(self._model, "replayable", None)
        if may is not None and may(batch):
            return True
        if self._must:
            name = type(self._model).__name__
            raise ValueError(
                f"engine.cuda_graphs on: {name} decides things on the host while it computes such a batch; set it off, "
                f"or leave it at auto"
            )
        return False

    def _is_due(self, shape: Shape) -> bool:
        return self._seen[shape] > _EAGER and len(self._recorded) < _MOST and not self._gave_up

    def _record(self, shape: Shape, batch: Mapping[str, Tensor]) -> bool:
        own = {key: value.clone() for key, value in batch.items()}
        try:
            loss, replay = self._recorder(lambda: self._run(own))
        except RuntimeError as error:
            cause = error.__context__ or error  # the end of a failed recording says only that it failed
            if self._must:
                raise ValueError(f"engine.cuda_graphs on: this model cannot be recorded ({cause})") from error
            log.warning("training goes on without CUDA graphs: this model cannot be recorded (%s)", cause)
            self._gave_up = True
            return False
        rows = getattr(self._model, "row_losses_B", None)
        self._recorded[shape] = _Recorded(batch=own, loss=loss, row_losses_B=rows, replay=replay)
        return True


def replays(setting: CudaGraphs, context: WorkerContext) -> bool:
    """Whether micro-batches are replayed. Raises ValueError if the setting is on and they cannot be."""
    obstacle = None
    if context.device.type != "cuda":
        obstacle = "this training runs on no GPU"
    elif context.world_size > 1:
        obstacle = "gradients of several workers travel during the backward pass, which is not recorded"
    if setting == "on" and obstacle is not None:
        raise ValueError(f"engine.cuda_graphs on: {obstacle}; set it off, or leave it at auto")
    return setting != "off" and obstacle is None

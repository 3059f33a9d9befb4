"""What the engines share: precision, evaluation, averaged weights, and this rank's part of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cluster.context import WorkerContext
from cluster.shards import (
    AVERAGE,
    PARAMETERS,
    ParameterSlice,
    ShardReader,
    buffer_file,
    describe,
    pieces,
    require_same_shapes,
    restore,
    shard_file,
)
from cluster.state_files import Files, host_copy, read_tensors, write_files
from cluster.zero import Precision, shape_of

AVERAGED_AT_ONCE = 64  # parameters, so that what is held beside them is small

ModelFactory = Callable[[], nn.Module]
OptimizerFactory = Callable[[nn.Module], torch.optim.Optimizer]
Batch: TypeAlias = Mapping[str, Tensor]
"""Tensors on the context's device, by name."""


class LossModel(Protocol):
    """What an engine asks of a model, which is a torch module."""

    row_losses_B: Tensor | None
    """float (B,), detached: what each sample of the batch counted in the last loss."""

    def loss(self, batch: Batch) -> Tensor:
        """Scalar: the mean over the batch's samples."""
        ...


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Settings of every engine."""

    precision: Precision = "fp32"
    """"bf16" runs the model under autocast; weights and optimizer stay fp32."""
    clip_norm: float = 1.0
    """Upper bound of the global gradient norm; inf turns clipping off."""
    ema_decay: float = 0.0
    """Decay per update of a running average of the weights, which is sharded like optimizer state; 0 keeps none."""
    tf32: bool = False
    """Float32 products and convolutions of a GPU in TF32, with ten bits of mantissa: faster, and equal to a CPU's to
    1e-3 only."""

    def __post_init__(self) -> None:
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f"precision {self.precision!r}: use fp32 or bf16 (fp16 would need loss scaling)")
        if not self.clip_norm > 0:
            raise ValueError(f"clip_norm = {self.clip_norm}: must be above 0; infinity turns clipping off")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay = {self.ema_decay}: must be at least 0 (no average) and below 1")


class Entry(nn.Module):
    """Calls a method of the model from `forward`: only there do the hooks of DDP and ZeRO run."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, method: str, *args: object, **kwargs: object) -> object:
        return getattr(self.model, method)(*args, **kwargs)


class EngineBase:
    """An engine without forward, backward and update; by default each rank holds the whole training state."""

    _model: nn.Module
    _entry: nn.Module
    _optimizer: torch.optim.Optimizer

    def __init__(self, context: WorkerContext, config: EngineConfig, accumulation: int) -> None:
        _require_bf16(config.precision, context.device)
        if context.device.type == "cuda":
            set_tf32(config.tf32)
        self.context = context
        self._config = config
        self._accumulation = accumulation
        self._micro_batches = 0

    def set_learning_rate(self, learning_rate: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate * group.get("lr_scale", 1.0)

    @contextmanager
    def evaluate_mode(self, *, averaged: bool = False) -> Iterator[LossModel]:
        self._entry.eval()
        try:
            with torch.no_grad(), self._autocast(), self._averaged() if averaged else nullcontext():
                yield self._evaluated_model()
        finally:
            self._entry.train()

    def _evaluated_model(self) -> LossModel:
        return cast(LossModel, self._model)

    def _autocast(self) -> AbstractContextManager[object]:
        if self._config.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.context.device.type, dtype=torch.bfloat16)

    def forward(self, batch: Batch) -> Tensor:
        raise NotImplementedError

    def backward(self, loss: Tensor) -> None:
        raise NotImplementedError

    def forward_backward(self, batch: Batch) -> Tensor:
        loss = self.forward(batch)
        self.backward(loss)
        return loss.detach()

    # --- An update ---

    def _at_boundary(self) -> bool:
        """Whether the micro-batch at hand is the last of its update."""
        return (self._micro_batches + 1) % self._accumulation == 0

    def _clip(self) -> Tensor:
        """The gradient norm before clipping, ()."""
        return nn.utils.clip_grad_norm_(self._model.parameters(), self._config.clip_norm)

    def _average(self, made: Tensor | None = None) -> None:
        """After an update: move the average towards the weights. It starts as the weights after the first update.

        made: bool () on the device, if only the device knows whether the update was made; None: it was made.
        """
        states = self._optimizer.state if self._config.ema_decay > 0 else {}
        pairs = [(state[AVERAGE], owner.detach()) for owner, state in states.items() if AVERAGE in state]
        move = 1 - self._config.ema_decay
        share = None if made is None or not pairs else _share(move, made, next(iter(states.values()))["step"])
        for first in range(0, len(pairs), AVERAGED_AT_ONCE):
            averages, weights = map(list, zip(*pairs[first : first + AVERAGED_AT_ONCE], strict=True))
            if share is None:
                torch._foreach_lerp_(averages, weights, move)
                continue
            away = torch._foreach_sub(weights, averages)
            torch._foreach_mul_(away, share)
            torch._foreach_add_(averages, away)
        for owner, state in states.items():
            if AVERAGE not in state:
                state[AVERAGE] = owner.detach().clone()

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Inside, the model has the averaged weights, if there has been an update; its own are restored afterwards."""
        state = self._optimizer.state
        fragments = [f for f in self._fragments() if AVERAGE in state.get(f.owner, {})]
        weights = [fragment.view(fragment.owner).clone() for fragment in fragments]
        self._show(fragments, [fragment.view(state[fragment.owner][AVERAGE]) for fragment in fragments])
        try:
            yield
        finally:
            self._show(fragments, weights)

    def _show(self, fragments: list[ParameterSlice], values: list[Tensor]) -> None:
        """Give the model these values in place of its weights."""
        for fragment, value in zip(fragments, values, strict=True):
            fragment.assign(fragment.owner, value)

    # --- Checkpoints ---

    def save(self, folder: Path) -> None:
        write_files(folder, self._files())

    def snapshot(self) -> Callable[[Path], None]:
        files = host_copy(self._files())
        return lambda folder: write_files(folder, files)

    def _files(self) -> Files:
        """This rank's files by name, of live tensors."""
        assert self._micro_batches % self._accumulation == 0, "a checkpoint is taken at an update's end"
        rank, world_size = self.context.rank, self.context.world_size
        files: dict[str, Mapping[str, object]] = {
            shard_file(rank, world_size): pieces(self._fragments(), self._optimizer)
        }
        if rank == 0:
            files[PARAMETERS] = describe(self._model, self._shapes())
        buffers = _persistent_buffers(self._model)
        if buffers:  # of every rank: BatchNorm statistics that are not synchronised differ
            files[buffer_file(rank)] = buffers
        return files

    def load(self, folder: Path) -> None:
        reader = ShardReader(folder)
        require_same_shapes(reader.shapes, self._shapes(), folder)
        self._load_buffers(folder)
        restore(self._fragments(), self._optimizer, reader, without=() if self._config.ema_decay > 0 else (AVERAGE,))
        self._spread_weights(reader)

    def _load_buffers(self, folder: Path) -> None:
        """This rank's own if the world size is the same, else rank 0's."""
        same_world = (folder / shard_file(self.context.rank, self.context.world_size)).exists()
        path = folder / buffer_file(self.context.rank if same_world else 0)
        saved = read_tensors(path) if path.exists() else {}
        here = _persistent_buffers(self._model)
        require_same_shapes({n: b.shape for n, b in saved.items()}, {n: b.shape for n, b in here.items()}, folder)
        for name, buffer in here.items():
            buffer.copy_(saved[name])

    def _shapes(self) -> dict[str, torch.Size]:
        return {name: shape_of(parameter) for name, parameter in self._model.named_parameters()}

    def _fragments(self) -> list[ParameterSlice]:
        """This rank's part of the training state: here all of it, of which each rank writes a share."""
        parameters = enumerate(self._model.named_parameters())
        rank, world_size = self.context.rank, self.context.world_size
        return [ParameterSlice.whole(n, p, written=i % world_size == rank) for i, (n, p) in parameters]

    def _spread_weights(self, reader: ShardReader) -> None:
        """After a load: copy the fragments into the model's weights, if they are separate tensors."""


def _share(move: float, made: Tensor, num_updates: Tensor) -> Tensor:
    """float (): the share of the difference by which the average moves: 1 at the first update, 0 without an update."""
    return torch.where(made, torch.where(num_updates <= 1, 1.0, move), 0.0).to(made.device)


def broadcast(tensors: Iterable[Tensor], context: WorkerContext) -> None:
    """Overwrite the tensors with rank 0's."""
    if context.world_size > 1:
        for tensor in tensors:
            dist.broadcast(tensor.detach(), src=0)


def _persistent_buffers(model: nn.Module) -> dict[str, Tensor]:
    saved = model.state_dict(keep_vars=True)
    return {name: buffer for name, buffer in model.named_buffers() if name in saved}


def set_tf32(wanted: bool) -> None:
    """How this process computes in float32 on a GPU; torch's own default differs from operation to operation."""
    backends: Any = torch.backends
    # For all operations alone: one that is set by itself would no longer follow a later choice, such as a scoring's.
    backends.fp32_precision = "tf32" if wanted else "ieee"


def _require_bf16(precision: Precision, device: torch.device) -> None:
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ValueError(f"precision bf16: {torch.cuda.get_device_name(device)} cannot compute in it; use fp32")

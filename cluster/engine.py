"""One training step on any number of ranks: forward, backward, clip, update; and this rank's part of a checkpoint.

`TorchEngine` is plain PyTorch, data parallel (DDP) where there are several ranks; `DeepSpeedEngine` is ZeRO. A model is
any torch module with a method `loss(batch) -> scalar tensor`, the mean over the batch's samples. Gradients are averaged
over micro-batches and ranks, so that global batch = micro batch * accumulation * world size.

Neither engine knows of schedules, data or stopping: that is the training loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cluster import zero
from cluster.context import WorkerContext
from cluster.shards import (
    PARAMETERS,
    Fragment,
    ShardReader,
    buffer_file,
    describe,
    pieces,
    require_same_parameters,
    restore,
    shard_file,
)
from cluster.state_files import host_copy, read_tensors, write_files
from cluster.zero import Precision, ZeroConfig, deepspeed_config

ModelFactory = Callable[[], nn.Module]
OptimizerFactory = Callable[[nn.Module], torch.optim.Optimizer]


class Engine(Protocol):
    """What the training loop calls. All methods but `forward`, `backward` and `set_learning_rate` are collective."""

    def build(self, model_factory: ModelFactory, optimizer_factory: OptimizerFactory) -> nn.Module:
        """Create model and optimizer, with rank 0's initial weights on every rank; returns the bare model."""
        ...

    def forward(self, batch: Any) -> Tensor:
        """The loss of one micro-batch, which lies on the context's device: `model.loss(batch)`, scalar."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of loss / accumulation."""
        ...

    def step(self) -> float | None:
        """End a micro-batch. On the last of an update: clip, update, and return the gradient norm before clipping.

        A norm that is not finite leaves weights and optimizer untouched: the caller stops, or skips and reports.
        """
        ...

    def set_learning_rate(self, learning_rate: float) -> None:
        """For the next update; a parameter group multiplies it by its `lr_scale` (1 where it has none)."""
        ...

    def evaluate_mode(self) -> AbstractContextManager[Any]:
        """The model in evaluation mode, without gradients, in the configured precision; call its methods inside.

        With ZeRO-3 its parameters travel at each call: every rank then makes the same calls.
        """
        ...

    def save(self, folder: Path) -> None:
        """Write this rank's files into the folder. At an update's end only."""
        ...

    def snapshot(self) -> Callable[[Path], None]:
        """Copy this rank's state to host memory; the returned function writes it, from any thread, at any time."""
        ...

    def load(self, folder: Path) -> None:
        """Continue from a folder with the files of all ranks, of whatever engine, stage and world size they were."""
        ...

    def consolidated_state_dict(self) -> dict[str, Tensor] | None:
        """The bare model's whole state on the CPU of rank 0, None on the others."""
        ...

    def close(self) -> None:
        """Free what `build` took; the process group is the context's."""
        ...


def check_batch_size(global_batch: int, micro_batch: int, accumulation: int, world_size: int) -> None:
    """Raise ValueError unless global_batch = micro_batch * accumulation * world_size, all positive."""
    product = micro_batch * accumulation * world_size
    if min(global_batch, micro_batch, accumulation, world_size) < 1 or product != global_batch:
        raise ValueError(
            f"batch sizes do not fit: global batch {global_batch} must be micro batch {micro_batch} * "
            f"accumulation {accumulation} * world size {world_size} = {product}; change one of the four"
        )


def _check_precision(precision: str, device: torch.device) -> None:
    if precision not in ("fp32", "bf16"):
        raise ValueError(f"precision {precision!r} is not supported: use fp32, or bf16 (fp16 would need loss scaling)")
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ValueError(f"precision bf16: {torch.cuda.get_device_name(device)} has no bf16 units; use fp32")


def _check_clip_norm(clip_norm: float) -> None:
    if not clip_norm > 0:
        raise ValueError(f"clip_norm = {clip_norm}: must be above 0; infinity turns clipping off")


class _Entry(nn.Module):
    """Calls a method of the model from `forward`, the only door through which DDP's and ZeRO's hooks run."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.model, method)(*args, **kwargs)


class _EngineBase:
    """What both engines share: precision, evaluation mode, the learning rate and writing state."""

    name: str
    _model: nn.Module
    _entry: nn.Module
    _optimizer: torch.optim.Optimizer

    def __init__(self, context: WorkerContext, precision: Precision, clip_norm: float, accumulation: int) -> None:
        _check_precision(precision, context.device)
        self.context = context
        self._precision = precision
        self._clip_norm = clip_norm
        self._accumulation = accumulation
        self._micro_batches = 0

    def set_learning_rate(self, learning_rate: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate * group.get("lr_scale", 1.0)

    @contextmanager
    def evaluate_mode(self) -> Iterator[Any]:
        self._entry.eval()
        try:
            with torch.no_grad(), self._autocast():
                yield self._evaluated_model()
        finally:
            self._entry.train()

    def _evaluated_model(self) -> Any:
        return self._model

    def _autocast(self) -> AbstractContextManager[Any]:
        if self._precision == "fp32":
            return nullcontext()
        return torch.autocast(self.context.device.type, dtype=torch.bfloat16)

    def _at_boundary(self) -> bool:
        """Whether the micro-batch at hand is the last of its update."""
        return (self._micro_batches + 1) % self._accumulation == 0

    def _clip_and_check(self) -> tuple[float, bool]:
        """(gradient norm before clipping, whether it is finite); a gradient that is not is dropped."""
        norm = nn.utils.clip_grad_norm_(self._model.parameters(), self._clip_norm).item()
        if not math.isfinite(norm):
            self._optimizer.zero_grad(set_to_none=True)
        return norm, math.isfinite(norm)

    def save(self, folder: Path) -> None:
        write_files(folder, self._files())

    def snapshot(self) -> Callable[[Path], None]:
        files = host_copy(self._files())
        return lambda folder: write_files(folder, files)

    def _files(self) -> dict[str, Any]:
        """This rank's files by name, of live tensors."""
        assert self._micro_batches % self._accumulation == 0, "a checkpoint is taken at an update's end"
        rank, world_size = self.context.rank, self.context.world_size
        fragments = self._fragments()
        files: dict[str, Any] = {shard_file(rank, world_size): pieces(fragments, self._optimizer)}
        if rank == 0:
            files[PARAMETERS] = describe(self._model, self._shapes())
        buffers = _persistent_buffers(self._model)
        if buffers:  # of every rank: BatchNorm statistics that are not synchronised differ
            files[buffer_file(rank)] = buffers
        return files

    def load(self, folder: Path) -> None:
        reader = ShardReader(folder)
        require_same_parameters(reader, self._shapes(), folder)
        restore(self._fragments(), self._optimizer, reader)
        own, first = folder / buffer_file(self.context.rank), folder / buffer_file(0)
        same_world = (folder / shard_file(self.context.rank, self.context.world_size)).exists()
        if first.exists():
            self._model.load_state_dict(read_tensors(own if same_world else first), strict=False)
        self._spread_weights(reader)

    def _shapes(self) -> dict[str, torch.Size]:
        return {name: zero.shape_of(parameter) for name, parameter in self._model.named_parameters()}

    def _fragments(self) -> list[Fragment]:
        """What this rank holds of the training state; here all of it, and the ranks share the writing."""
        parameters = enumerate(self._model.named_parameters())
        rank, world_size = self.context.rank, self.context.world_size
        return [Fragment.whole(n, p, written=i % world_size == rank) for i, (n, p) in parameters]

    def _spread_weights(self, reader: ShardReader) -> None:
        """After a load: bring the model's weights in line with the fragments, where they are two things."""


def _persistent_buffers(model: nn.Module) -> dict[str, Tensor]:
    saved = model.state_dict(keep_vars=True)
    return {name: buffer for name, buffer in model.named_buffers() if name in saved}


def _broadcast(tensors: Iterator[Tensor], context: WorkerContext) -> None:
    if context.world_size > 1:
        for tensor in tensors:
            dist.broadcast(tensor.detach(), src=0)


# --- PyTorch ---


@dataclass(frozen=True, kw_only=True)
class TorchEngineConfig:
    """Plain PyTorch; DDP on several ranks. `clip_norm` bounds the global gradient norm."""

    precision: Precision = "fp32"
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        _check_clip_norm(self.clip_norm)

    def build(self, context: WorkerContext, *, micro_batch: int, accumulation: int) -> TorchEngine:
        return TorchEngine(context, self.precision, self.clip_norm, accumulation)


class TorchEngine(_EngineBase):
    """The reference engine: it needs neither Ray nor DeepSpeed. See `Engine`."""

    name = "torch"

    def build(self, model_factory: ModelFactory, optimizer_factory: OptimizerFactory) -> nn.Module:
        self._model = model_factory().to(self.context.device)
        _broadcast(self._model.parameters(), self.context)
        _broadcast(self._model.buffers(), self.context)
        self._optimizer = optimizer_factory(self._model)
        self._entry = self._wrapped = _Entry(self._model)
        if self.context.world_size > 1:
            # Buffers are the model's affair: it freezes or synchronises them, or each rank keeps its own.
            self._wrapped = nn.parallel.DistributedDataParallel(self._entry, init_sync=False, broadcast_buffers=False)
        return self._model

    def forward(self, batch: Any) -> Tensor:
        with self._synchronise_at_boundary(), self._autocast():
            return self._wrapped("loss", batch)

    def backward(self, loss: Tensor) -> None:
        with self._synchronise_at_boundary():
            (loss / self._accumulation).backward()

    def _synchronise_at_boundary(self) -> AbstractContextManager[Any]:
        if isinstance(self._wrapped, nn.parallel.DistributedDataParallel) and not self._at_boundary():
            return self._wrapped.no_sync()
        return nullcontext()

    def step(self) -> float | None:
        boundary = self._at_boundary()
        self._micro_batches += 1
        if not boundary:
            return None
        norm, finite = self._clip_and_check()
        if finite:
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return norm

    def consolidated_state_dict(self) -> dict[str, Tensor] | None:
        if self.context.rank != 0:
            return None
        return {name: value.detach().cpu().clone() for name, value in self._model.state_dict().items()}

    def close(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)


# --- DeepSpeed ---


@dataclass(frozen=True, kw_only=True)
class DeepSpeedEngineConfig:
    """ZeRO. `clip_norm` bounds the global gradient norm."""

    zero: ZeroConfig = field(default_factory=ZeroConfig)
    precision: Precision = "fp32"
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        _check_clip_norm(self.clip_norm)

    def build(self, context: WorkerContext, *, micro_batch: int, accumulation: int) -> DeepSpeedEngine:
        return DeepSpeedEngine(context, self, micro_batch, accumulation)


class DeepSpeedEngine(_EngineBase):
    """ZeRO stages 0 to 3 with the client's torch optimizer. See `Engine`."""

    name = "deepspeed"

    def __init__(
        self, context: WorkerContext, config: DeepSpeedEngineConfig, micro_batch: int, accumulation: int
    ) -> None:
        super().__init__(context, config.precision, config.clip_norm, accumulation)
        self._stage: Literal[0, 1, 2, 3] = config.zero.stage
        self.deepspeed_config = deepspeed_config(
            config.zero,
            precision=config.precision,
            clip_norm=config.clip_norm,
            micro_batch=micro_batch,
            accumulation=accumulation,
            world_size=context.world_size,
            device_type=context.device.type,
        )

    def build(self, model_factory: ModelFactory, optimizer_factory: OptimizerFactory) -> nn.Module:
        zero.connect(self.context)
        self._model = model_factory()
        self._entry = _Entry(self._model)
        self._optimizer = optimizer_factory(self._model)  # first: it may group parameters by their shapes
        if self._stage == 3:
            zero.shard(self._entry, self.deepspeed_config)
        self._model.to(self.context.device)
        if self._stage < 3:
            _broadcast(self._model.parameters(), self.context)
        _broadcast(self._model.buffers(), self.context)
        self._engine = zero.initialize(self._entry, self._optimizer, self.deepspeed_config)
        if self._stage > 0:
            self._optimizer = self._engine.optimizer.optimizer  # over DeepSpeed's flat buffers
        return self._model

    def forward(self, batch: Any) -> Tensor:
        self._engine.set_gradient_accumulation_boundary(self._at_boundary())
        return self._engine("loss", batch)

    def backward(self, loss: Tensor) -> None:
        self._engine.backward(loss)

    def step(self) -> float | None:
        boundary = self._at_boundary()
        self._micro_batches += 1
        norm = self._clip_and_check()[0] if boundary and self._stage == 0 else None
        self._engine.step()
        if boundary and norm is None:
            norm = float(self._engine.get_global_grad_norm())
        return norm

    def _evaluated_model(self) -> Any:
        return _ThroughEntry(self._model, self._engine) if self._stage == 3 else self._model

    def _fragments(self) -> list[Fragment]:
        if self._stage == 0:
            return super()._fragments()
        names = {id(parameter): name for name, parameter in self._model.named_parameters()}
        rank = self.context.rank
        if self._stage == 3:
            frozen = [p for p in self._model.parameters() if not p.requires_grad]
            own = zero.fragments_of_stage_3(self._engine.optimizer, names, rank)
            return [*own, *(zero.frozen_fragment_of_stage_3(p, names, rank) for p in frozen)]
        own = zero.fragments_of_stages_1_and_2(self._engine.optimizer, names)
        return [*own, *(f for f in super()._fragments() if not f.owner.requires_grad)]

    def _spread_weights(self, reader: ShardReader) -> None:
        # The optimizer's shards hold their own copies of the weights; one parameter at a time, as above.
        for name, parameter in self._model.named_parameters():
            with zero.gathered(parameter, modified=True), torch.no_grad():
                if self.context.rank == 0 or self._stage < 3:
                    parameter.copy_(reader.whole(name))

    def consolidated_state_dict(self) -> dict[str, Tensor] | None:
        # One parameter at a time: under ZeRO-3 the whole model need not fit on a device, only on rank 0's host.
        state: dict[str, Tensor] = {}
        for name, tensor in self._model.state_dict(keep_vars=True).items():
            with zero.gathered(tensor):
                if self.context.rank == 0:
                    state[name] = tensor.detach().cpu().clone()
        return state if self.context.rank == 0 else None

    def close(self) -> None:
        self._engine.destroy()


class _ThroughEntry:
    """The model as ZeRO-3 needs it called: each method through the engine, whose hooks gather the parameters."""

    def __init__(self, model: nn.Module, engine: Callable[..., Any]) -> None:
        self._model = model
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._model, name)
        return partial(self._engine, name) if callable(value) else value

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._engine("forward", *args, **kwargs)

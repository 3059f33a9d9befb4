"""One training step on any number of ranks: forward, backward, clip, update; and this rank's part of a checkpoint.

`TorchEngine` is plain PyTorch, data parallel (DDP) where there are several ranks; `DeepSpeedEngine` is ZeRO. A model is
any torch module with a method `loss(batch) -> scalar tensor`, the mean over the batch's samples. Gradients are averaged
over micro-batches and ranks, so that global batch = micro batch * accumulation * world size.

Schedules, data and stopping are the training loop's.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal, Protocol, cast

import torch
from torch import Tensor, nn

from cluster import zero
from cluster.context import WorkerContext
from cluster.engine_base import (
    Batch,
    EngineBase,
    EngineConfig,
    Entry,
    LossModel,
    ModelFactory,
    OptimizerFactory,
    broadcast,
)
from cluster.graph_replay import CudaGraphs, CudaRecorder, GraphReplay, replays
from cluster.quick_imports import quick_imports
from cluster.shards import ParameterSlice, ShardReader
from cluster.zero import ZeroConfig, deepspeed_config


class Engine(Protocol):
    """What the training loop calls. All methods but `forward`, `backward`, `forward_backward` and `set_learning_rate`
    are collective."""

    def build(self, model_factory: ModelFactory, optimizer_factory: OptimizerFactory) -> nn.Module:
        """Create model and optimizer, with rank 0's initial weights on every rank; returns the bare model."""
        ...

    def forward(self, batch: Batch) -> Tensor:
        """The loss of one micro-batch, which lies on the context's device: `model.loss(batch)`, scalar."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of loss / accumulation."""
        ...

    def forward_backward(self, batch: Batch) -> Tensor:
        """`forward` and `backward`; the loss, detached."""
        ...

    def step(self) -> Tensor | None:
        """End a micro-batch. On the last of an update: clip, update, and return the gradient norm before clipping, ().

        The norm is a tensor on the device, which may not have computed it yet.

        A norm that is not finite leaves weights and optimizer untouched: the caller stops, or skips and reports.
        """
        ...

    def set_learning_rate(self, learning_rate: float) -> None:
        """For the next update; a parameter group multiplies it by its `lr_scale` (default 1)."""
        ...

    def evaluate_mode(self, *, averaged: bool = False) -> AbstractContextManager[LossModel]:
        """The model in evaluation mode, without gradients, in the configured precision; call its methods inside.

        averaged: with the running average of its weights, if `ema_decay` keeps one and an update has been made.
        Under ZeRO-3 each call gathers the parameters, so every rank makes the same calls.
        """
        ...

    def save(self, folder: Path) -> None:
        """Write this rank's files into the folder. At an update's end only."""
        ...

    def snapshot(self) -> Callable[[Path], None]:
        """Copy this rank's state to host memory; the returned function writes it, from any thread, at any time."""
        ...

    def load(self, folder: Path) -> None:
        """Continue from a folder with the files of all ranks, written by any engine, stage and world size."""
        ...

    def consolidated_state_dict(self) -> dict[str, Tensor] | None:
        """The bare model's whole state on the CPU of rank 0, None on the others."""
        ...

    def close(self) -> None:
        """Free what `build` took; the process group is the context's."""
        ...


# --- PyTorch ---


@dataclass(frozen=True, kw_only=True)
class TorchEngineConfig(EngineConfig):
    """Plain PyTorch; DDP on several ranks."""

    cuda_graphs: CudaGraphs = "auto"
    """Whether micro-batches are replayed as CUDA graphs, one for each shape of batch. "auto": for one worker on a GPU,
    where the kind of model allows it."""

    def build(self, context: WorkerContext, *, micro_batch: int, accumulation: int) -> TorchEngine:
        return TorchEngine(context, self, accumulation)


class TorchEngine(EngineBase):
    """The reference engine: it needs neither Ray nor DeepSpeed. See `Engine`."""

    _config: TorchEngineConfig

    def build(self, model_factory: ModelFactory, optimizer_factory: OptimizerFactory) -> nn.Module:
        self._model = model_factory().to(self.context.device)
        broadcast(self._model.parameters(), self.context)
        broadcast(self._model.buffers(), self.context)
        with quick_imports():  # of torch's compiler, by every optimizer of torch
            self._optimizer = optimizer_factory(self._model)
        self._entry = self._wrapped = Entry(self._model)
        self._replay: GraphReplay | None = None
        if replays(self._config.cuda_graphs, self.context):
            must = self._config.cuda_graphs == "on"
            self._replay = GraphReplay(self._model, super().forward_backward, CudaRecorder(), must=must)
        if self.context.world_size > 1:
            # Buffers are the model's affair: it freezes or synchronises them, or each rank keeps its own.
            self._wrapped = nn.parallel.DistributedDataParallel(
                self._entry, init_sync=False, forward_sync_buffers=False
            )
        return self._model

    def forward(self, batch: Batch) -> Tensor:
        self.context.beat()
        with self._synchronise_at_boundary(), self._autocast():
            return self._wrapped("loss", batch)

    def backward(self, loss: Tensor) -> None:
        with self._synchronise_at_boundary():
            (loss / self._accumulation).backward()

    def forward_backward(self, batch: Batch) -> Tensor:
        if self._replay is None:
            return super().forward_backward(batch)
        self.context.beat()
        return self._replay(batch)

    def _synchronise_at_boundary(self) -> AbstractContextManager[object]:
        if isinstance(self._wrapped, nn.parallel.DistributedDataParallel) and not self._at_boundary():
            return self._wrapped.no_sync()
        return nullcontext()

    def step(self) -> Tensor | None:
        boundary = self._at_boundary()
        self._micro_batches += 1
        if not boundary:
            return None
        norm = self._clip()
        if getattr(self._optimizer, "_step_supports_amp_scaling", False):
            # A fused optimizer leaves an update out by itself where found_inf is 1, and nothing waits for the device.
            self._optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
            self._optimizer.step()
            self._average(norm.isfinite())
        elif math.isfinite(norm):
            self._optimizer.step()
            self._average()
        self._optimizer.zero_grad(set_to_none=self._replay is None)  # a graph adds to gradients where they lie
        return norm

    def consolidated_state_dict(self) -> dict[str, Tensor] | None:
        if self.context.rank != 0:
            return None
        return {name: value.detach().cpu().clone() for name, value in self._model.state_dict().items()}

    def close(self) -> None:
        gc.unfreeze()  # an import in mid-training (MLflow's) may have frozen cycles of this engine: they would stay
        self._replay = None  # it holds this engine, and so the weights, until the next search for cycles
        self._optimizer.zero_grad(set_to_none=True)


# --- DeepSpeed ---


@dataclass(frozen=True, kw_only=True)
class DeepSpeedEngineConfig(EngineConfig):
    """DeepSpeed with ZeRO."""

    zero: ZeroConfig = field(default_factory=ZeroConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.zero.communication == "bf16" and self.precision != "bf16":
            raise ValueError("zero.communication bf16 needs engine.precision bf16, under which layers compute in it")

    def build(self, context: WorkerContext, *, micro_batch: int, accumulation: int) -> DeepSpeedEngine:
        return DeepSpeedEngine(context, self, micro_batch, accumulation)


class DeepSpeedEngine(EngineBase):
    """ZeRO stages 0 to 3 with the client's torch optimizer. See `Engine`."""

    def __init__(
        self, context: WorkerContext, config: DeepSpeedEngineConfig, micro_batch: int, accumulation: int
    ) -> None:
        super().__init__(context, config, accumulation)
        self._zero = config.zero
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
        with zero.sharded_creation(self.deepspeed_config) if self._stage == 3 else nullcontext():
            self._model = model_factory()
        self._entry = Entry(self._model)
        if self._stage < 3:
            self._model.to(self.context.device)  # first: an optimizer is fused where its parameters lie on a GPU
        with quick_imports():  # of torch's compiler, by every optimizer of torch
            self._optimizer = optimizer_factory(self._model)  # before sharding: it may group parameters by shape
        if self._stage == 3:
            zero.shard(self._entry, self.deepspeed_config)
        self._model.to(self.context.device)
        if self._stage < 3:
            broadcast(self._model.parameters(), self.context)
        broadcast(self._model.buffers(), self.context)
        if self._zero.communication == "bf16":
            zero.send_in_bf16(self._entry, self._zero)
        self._engine = zero.initialize(self._entry, self._optimizer, self.deepspeed_config)
        if self._stage > 0:
            self._optimizer = self._engine.optimizer.optimizer  # over DeepSpeed's flat buffers
        return self._model

    def forward(self, batch: Batch) -> Tensor:
        self.context.beat()
        self._engine.set_gradient_accumulation_boundary(self._at_boundary())
        return self._engine("loss", batch)

    def backward(self, loss: Tensor) -> None:
        self._engine.backward(loss)

    def step(self) -> Tensor | None:
        boundary = self._at_boundary()
        self._micro_batches += 1
        norm = self._clip() if boundary and self._stage == 0 else None
        is_finite = norm is None or math.isfinite(norm)
        if not is_finite:
            self._optimizer.zero_grad(set_to_none=True)  # the update then does nothing
        self._engine.step()
        if not boundary:
            return None
        if self._stage > 0:  # DeepSpeed has waited for the device and looked at the norm: not once more, for the update
            norm, is_finite = self._engine.get_global_grad_norm(), not self._engine.optimizer.overflow
        if is_finite:
            self._average()
        return torch.as_tensor(norm, dtype=torch.float32)

    def _evaluated_model(self) -> LossModel:
        through_entry = cast(LossModel, _ThroughEntry(self._model, self._engine))
        return through_entry if self._stage == 3 else super()._evaluated_model()

    def _fragments(self) -> list[ParameterSlice]:
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

    def _show(self, fragments: list[ParameterSlice], values: list[Tensor]) -> None:
        if self._stage == 0:
            return super()._show(fragments, values)
        held: dict[str, list[tuple[ParameterSlice, Tensor]]] = {}
        for fragment, value in zip(fragments, values, strict=True):
            held.setdefault(fragment.name, []).append((fragment, value))
        for name, parameter in self._model.named_parameters() if self.context.any(bool(held)) else ():
            if parameter.requires_grad:
                whole = torch.zeros(zero.shape_of(parameter), device=self.context.device)
                for fragment, value in held.get(name, []):
                    whole.view(-1)[fragment.start : fragment.start + fragment.size] = value
                if self.context.world_size > 1:
                    torch.distributed.all_reduce(whole)  # every rank holds another part
                with zero.gathered(parameter, modified=True), torch.no_grad():
                    parameter.copy_(whole)

    def _spread_weights(self, reader: ShardReader) -> None:
        # The optimizer's shards hold copies of the weights. One parameter at a time: the whole need not fit anywhere.
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
        gc.unfreeze()  # an import in mid-training (MLflow's) may have frozen cycles of this engine: they would stay
        self._engine.destroy()
        zero.restore_linear()


class _ThroughEntry:
    """The model under ZeRO-3: each method is called through the engine, whose hooks gather the parameters."""

    def __init__(self, model: nn.Module, engine: Callable[..., object]) -> None:
        self._model = model
        self._engine = engine

    def __getattr__(self, name: str) -> object:
        value = getattr(self._model, name)
        return partial(self._engine, name) if callable(value) else value

    def __call__(self, *args: object, **kwargs: object) -> object:
        return self._engine("forward", *args, **kwargs)

"""DeepSpeed's ZeRO as typed configuration: which training state is sharded or offloaded, and the JSON that says so.

Paper: Rajbhandari et al. 2020, arXiv 1910.02054. `state_bytes` gives the bytes each rank holds.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cluster.context import WorkerContext
from cluster.quick_imports import quick_imports
from cluster.shards import ParameterSlice

Precision = Literal["fp32", "bf16"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
DeepSpeedConfig: TypeAlias = dict[str, object]
"""Plain data, as DeepSpeed reads it from JSON."""
Stage = Literal[0, 1, 2, 3]
STAGES: tuple[Stage, ...] = (0, 1, 2, 3)
MEGA = 10**6


@dataclass(frozen=True, kw_only=True)
class ZeroConfig:
    """How far training state is sharded over the ranks."""

    stage: Stage = 1
    """What is sharded: 0 nothing, 1 optimizer state, 2 also gradients, 3 also parameters."""
    offload_optimizer: Literal["none", "cpu"] = "none"
    """"cpu" keeps optimizer state in host memory; needs stage 1, 2 or 3."""
    offload_parameters: Literal["none", "cpu"] = "none"
    """"cpu" keeps parameters in host memory; needs stage 3."""
    bucket_elements: int = 50 * MEGA
    """Gradients reduced at a time, and with stage 3 parameters updated at a time; 4 bytes of memory each."""
    prefetch_elements: int = 50 * MEGA
    """Stage 3: parameters gathered ahead of their use."""
    persist_elements: int = 100_000
    """Stage 3: parameters smaller than this stay unsharded."""
    live_elements: int = 1000 * MEGA
    """Stage 3: parameters kept gathered between their uses; fewer save memory and cost time."""
    overlap: bool = True
    """Communicate during the backward pass; on GPUs only, gloo has no overlap."""
    communication: Precision = "fp32"
    """What ranks send each other of linear layers and convolutions under engine.precision bf16: gradients, and with
    stage 3 weights. bf16 is half of it, and rounds the sum of the ranks' gradients. What is kept and saved is fp32."""

    def __post_init__(self) -> None:
        if self.stage not in STAGES:
            raise ValueError(f"zero.stage = {self.stage}: ZeRO has the stages 0, 1, 2 and 3")
        if self.communication not in PRECISIONS:
            raise ValueError(f"zero.communication = {self.communication!r}: use fp32 or bf16")
        if self.communication == "bf16" and self.stage == 0:
            raise ValueError("zero.communication bf16 needs zero.stage 1, 2 or 3, got 0")
        if self.offload_optimizer != "none" and self.stage == 0:
            raise ValueError("zero.offload_optimizer needs zero.stage 1, 2 or 3, got 0")
        if self.offload_parameters != "none" and self.stage != 3:
            raise ValueError(f"zero.offload_parameters needs zero.stage 3, got {self.stage}")
        for name in ("bucket_elements", "prefetch_elements", "live_elements"):
            if getattr(self, name) < 1:
                raise ValueError(f"zero.{name} must be at least 1, got {getattr(self, name)}")


def state_bytes(
    stage: Stage,
    num_parameters: int,
    num_ranks: int,
    *,
    num_frozen: int = 0,
    frozen_bytes: int | None = None,
    ema: bool = False,
) -> dict[str, int]:
    """Bytes of training state that a rank holds between micro-batches: "parameters", "gradients" and "optimizer".

    What is trained is fp32 (bf16 is autocast), and the optimizer is Adam with two moments: 16 bytes per parameter. From
    stage 1 DeepSpeed's optimizer also keeps a copy of the weights it updates, 4 bytes, which the paper has for 16-bit
    weights only. With P parameters and N ranks: stage 0 16P, stage 1 8P + 12P/N, stage 2 4P + 16P/N, stage 3 20P/N.
    num_frozen: how many of the parameters are not trained, and have weights only, of `frozen_bytes` together (4 each).
    ema: whether a running average of the weights is kept, 4 bytes more.
    """
    num_trained = num_parameters - num_frozen
    frozen_bytes = 4 * num_frozen if frozen_bytes is None else frozen_bytes
    sharers = num_ranks if stage == 3 else 1
    parameters = 4 * -(-num_trained // sharers) + -(-frozen_bytes // sharers)
    gradients = -(-num_trained // (num_ranks if stage >= 2 else 1))
    optimizer = -(-num_trained // (num_ranks if stage >= 1 else 1))
    copies = 2 + ema + (stage > 0)
    return {"parameters": parameters, "gradients": 4 * gradients, "optimizer": 4 * copies * optimizer}


def temporary_bytes(zero: ZeroConfig, num_parameters: int, num_ranks: int, *, num_frozen: int = 0) -> int:
    """Bytes that a rank needs beside `state_bytes` while it reduces gradients and updates, without activations.

    Measured on CPU ranks (benchmarks/zero_memory.py): all gradients once more in one flat buffer under stage 0, this
    rank's part of them once under stages 1 and 3 and twice under 2, and what `reduction_bytes` counts.
    """
    num_trained = num_parameters - num_frozen
    part = -(-num_trained // num_ranks)
    elements = {0: num_trained, 1: part, 2: 2 * part, 3: part}[zero.stage]
    return 4 * elements + reduction_bytes(zero, num_parameters, num_ranks, num_frozen=num_frozen)


def reduction_bytes(zero: ZeroConfig, num_parameters: int, num_ranks: int, *, num_frozen: int = 0) -> int:
    """The part of `temporary_bytes` that is needed during the backward pass too: two buckets of gradients, and what
    stage 3 has gathered."""
    if zero.stage == 0:
        return 0
    live = min(zero.live_elements, num_parameters) if zero.stage == 3 else 0
    return 4 * (live + 2 * min(zero.bucket_elements, num_parameters - num_frozen))


def deepspeed_config(
    zero: ZeroConfig,
    *,
    precision: Precision,
    clip_norm: float,
    micro_batch: int,
    accumulation: int,
    world_size: int,
    device_type: str,
) -> DeepSpeedConfig:
    """The DeepSpeed configuration, complete and JSON-serialisable; log it beside the run.

    bf16 is torch autocast over fp32 weights, as in the torch engine: BatchNorm statistics and norms stay fp32.
    """
    config: DeepSpeedConfig = {
        "train_batch_size": micro_batch * accumulation * world_size,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        # Stage 0 has no norm of its own to report: the engine clips there.
        "gradient_clipping": 0.0 if zero.stage == 0 or clip_norm == float("inf") else clip_norm,
        "zero_optimization": _zero_section(zero, device_type),
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # the client's torch optimizer, never a compiled one
        "steps_per_print": 2**31 - 1,
        "wall_clock_breakdown": False,
    }
    if precision == "bf16":
        # By default DeepSpeed sends in bf16 what belongs to torch's own linear layers and convolutions: `send_in_bf16`.
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    return config


def _zero_section(zero: ZeroConfig, device_type: str) -> DeepSpeedConfig:
    section: DeepSpeedConfig = {
        "stage": zero.stage,
        "reduce_bucket_size": zero.bucket_elements,
        "allgather_bucket_size": zero.bucket_elements,
        "overlap_comm": zero.overlap and device_type == "cuda",
        "contiguous_gradients": True,
        # Stages 1 and 2 all-reduce either way; False spares them two copies of every gradient.
        "reduce_scatter": zero.stage == 3,
    }
    if zero.stage == 3:
        section["sub_group_size"] = zero.bucket_elements
        section["stage3_prefetch_bucket_size"] = zero.prefetch_elements
        section["stage3_param_persistence_threshold"] = zero.persist_elements
        section["stage3_max_live_parameters"] = section["stage3_max_reuse_distance"] = zero.live_elements
    pinned = device_type == "cuda"
    if zero.offload_optimizer == "cpu":
        section["offload_optimizer"] = {"device": "cpu", "pin_memory": pinned}
    if zero.offload_parameters == "cpu":
        section["offload_param"] = {"device": "cpu", "pin_memory": pinned}
    return section


# --- The calls into DeepSpeed ---


def connect(context: WorkerContext) -> None:
    """Give DeepSpeed the process group of this run (a group of one where there is none), quietly."""
    environment = {"RANK": context.rank, "WORLD_SIZE": context.world_size, "LOCAL_RANK": context.local_rank}
    for name, value in environment.items():
        os.environ.setdefault(name, str(value))
    if context.device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    with quick_imports():
        import deepspeed
        from deepspeed.accelerator import get_accelerator
        from deepspeed.ops import __compatible_ops__
        from deepspeed.utils import logger

    accelerator: Any = get_accelerator()
    if accelerator.device_name() != context.device.type:
        raise ValueError(
            f"DeepSpeed computes on {accelerator.device_name()} in this process, for which it decides once: train on "
            f"{context.device} in another process (or unset DS_ACCELERATOR)"
        )
    logger.setLevel(logging.WARNING)
    # DeepSpeed calls collectives under names that torch is about to rename, with a warning at every step.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\.c10d_logger")
    __compatible_ops__["deepspeed_shm_comm"] = False  # would be compiled at the first start, 6-31 s
    backend = "nccl" if context.device.type == "cuda" else "gloo"
    if not dist.is_initialized():
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)


@contextmanager
def sharded_creation(config: DeepSpeedConfig) -> Iterator[None]:
    """ZeRO-3: inside, what transformers reads from a saved folder becomes sharded parameters at once.

    No rank then ever holds the whole of a pretrained model; `shard` leaves such parameters as they are.
    """
    if importlib.util.find_spec("transformers") is None:
        yield
        return
    from transformers.integrations import HfDeepSpeedConfig

    announcement = HfDeepSpeedConfig(config)  # transformers refers to it weakly: it ends with this variable
    yield
    del announcement


def shard(module: nn.Module, config: DeepSpeedConfig) -> None:
    """ZeRO-3: leave each rank its part of every parameter, taken from rank 0's values.

    Of a finished model and not while it is built: under `zero.Init` an initialisation that a parent module runs over
    its children would touch empty tensors and silently do nothing. The cost is a whole model in host memory per rank.
    """
    import deepspeed

    deepspeed.zero.Init(module=module, config_dict_or_path=config)
    nn.functional.linear = _zero_3_linear


_LINEAR = nn.functional.linear


def _zero_3_linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """DeepSpeed's linear function, always given a matrix. Given more axes it adds the bias to the product in place, and
    selective activation checkpointing, which keeps the product, would add it a second time."""
    from deepspeed.runtime.zero.linear import zero3_linear_wrap

    if bias is None or input.dim() < 3:
        return zero3_linear_wrap(input, weight, bias)
    return zero3_linear_wrap(input.flatten(0, -2), weight, bias).unflatten(0, input.shape[:-1])


def restore_linear() -> None:
    """Undo ZeRO-3's change to torch: its own linear function, which rounds differently, in every model that this
    process trains afterwards."""
    nn.functional.linear = _LINEAR


_SENT_IN_BF16 = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def send_in_bf16(module: nn.Module, zero: ZeroConfig) -> None:
    """Before `initialize`: mark the parameters that `zero.communication` bf16 is about, as DeepSpeed marks those of the
    classes `lower_precision_safe_modules`, which must be named one by one.

    Autocast rounds them to bf16 in the forward pass in any case, but for FiLM's, and on a GPU RT-1's depthwise ones,
    which stay float32. Those that stage 3 leaves whole are not marked.
    """
    from deepspeed.runtime.torch_autocast import PARAM_COMM_DTYPE_ATTR_NAME

    for part in module.modules():
        if isinstance(part, _SENT_IN_BF16):
            for parameter in part.parameters(recurse=False):
                if zero.stage < 3 or shape_of(parameter).numel() > zero.persist_elements:
                    setattr(parameter, PARAM_COMM_DTYPE_ATTR_NAME, torch.bfloat16)


def initialize(module: nn.Module, optimizer: torch.optim.Optimizer, config: DeepSpeedConfig) -> Any:
    """DeepSpeed's engine around the module."""
    import deepspeed

    return deepspeed.initialize(model=module, optimizer=optimizer, config=config, dist_init_required=False)[0]


@contextmanager
def gathered(tensor: Tensor, *, modified: bool = False) -> Iterator[None]:
    """Inside, a parameter that ZeRO-3 sharded is whole on every rank, exactly; any other tensor is left as it is.

    modified: afterwards every rank takes its part of rank 0's values.
    """
    if not hasattr(tensor, "ds_id"):
        yield
        return
    import deepspeed
    from deepspeed.runtime.torch_autocast import PARAM_COMM_DTYPE_ATTR_NAME

    sent_as = vars(tensor).pop(PARAM_COMM_DTYPE_ATTR_NAME, None)  # else it would come in bf16
    try:
        with deepspeed.zero.GatheredParameters([tensor], modifier_rank=0 if modified else None):
            yield
    finally:
        if sent_as is not None:
            setattr(tensor, PARAM_COMM_DTYPE_ATTR_NAME, sent_as)


def shape_of(parameter: Tensor) -> torch.Size:
    """The shape of the whole parameter, sharded or not."""
    return getattr(parameter, "ds_shape", parameter.shape)


def fragments_of_stages_1_and_2(optimizer: Any, names: Mapping[int, str]) -> Iterator[ParameterSlice]:
    """What this rank's optimizer shard holds: one flat buffer per group, which starts and ends inside parameters."""
    for group, flat in zip(optimizer.bit16_groups, optimizer.single_partition_of_fp32_groups, strict=True):
        for parameter in group:
            mapping = parameter._hp_mapping
            if mapping is not None:
                yield ParameterSlice(
                    name=names[id(parameter)],
                    owner=flat,
                    owner_start=mapping.hp_fragment_address.start,
                    start=mapping.lp_fragment_address.start,
                    size=mapping.hp_fragment_address.numel,
                    written=True,
                )


def fragments_of_stage_3(optimizer: Any, names: Mapping[int, str], rank: int) -> Iterator[ParameterSlice]:
    """What this rank's optimizer shard holds: of every parameter the rank-th of equal parts, the last one padded."""
    for group, flat in zip(optimizer.fp16_groups, optimizer.fp32_partitioned_groups_flat, strict=True):
        offset = 0
        for parameter in group:
            yield _part(parameter, names, flat, offset, rank)
            offset += parameter.partition_numel()


def frozen_fragment_of_stage_3(parameter: Any, names: Mapping[int, str], rank: int) -> ParameterSlice:
    """As above for a parameter that no optimizer holds."""
    return _part(parameter, names, parameter.ds_tensor, 0, rank)


def _part(parameter: Any, names: Mapping[int, str], owner: Tensor, owner_start: int, rank: int) -> ParameterSlice:
    start = rank * parameter.partition_numel()
    size = max(0, min(parameter.partition_numel(), parameter.ds_numel - start))
    name = names[id(parameter)]
    return ParameterSlice(name=name, owner=owner, owner_start=owner_start, start=start, size=size, written=True)

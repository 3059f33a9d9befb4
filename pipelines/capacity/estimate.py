"""What a run will need, before it is started: memory by ZeRO stage, steps and epochs, disk for checkpoints.

Parameters and activations are counted on torch's meta device, which has shapes and no memory. What a process holds
before it trains is measured (benchmarks/doctor_estimates.py, which compares all of it with real runs). In bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cluster.engine import DeepSpeedEngineConfig
from cluster.launch import RayLaunch
from cluster.zero import STAGES, Stage, ZeroConfig, state_bytes, temporary_bytes
from pipelines.config.experiment import Experiment
from pipelines.families.models import family_of
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.robot_inputs import store_inputs
from preprocessing.store.web_store import Store, num_samples
from rt_models.spec import MAIN_CAMERA

_ASSUMED_STATE = tuple(f"value_{number}" for number in range(8))  # as many as an arm with a gripper has

FP32 = 4
IN_PROCESS, RAY_WORKER = 640 * 10**6, 840 * 10**6
"""Resident bytes of a process before its first step: the interpreter, torch, MLflow's client, Ray and DeepSpeed."""


@dataclass(frozen=True, kw_only=True)
class ResourceEstimate:
    """What is known of a run beforehand; `activations` is None if the model cannot be run without data."""

    parameters: int
    frozen: int
    """How many of them are not trained."""
    workers: tuple[int, int]
    """Least and most."""
    accumulation: int
    """Micro-batches of an update with the most workers."""
    state: Mapping[int, int]
    """Weights, gradients and optimizer state of one of the least workers, by ZeRO stage."""
    stage: int
    """The one of the recipe."""
    temporary: Mapping[int, int]
    """What it takes beside while it reduces gradients and updates."""
    activations: int | None
    """Of one micro-batch."""
    working: float
    """Peak on a CPU over `activations`."""
    process: int
    """What a worker holds in the machine's memory before its first step."""
    loader: int
    """What its loader reads, decodes and makes ready, at most."""
    checkpoint: int
    checkpoints_kept: int
    steps: int
    samples: int
    samples_per_epoch: int | None
    """All that the stores hold; None without stores."""

    @property
    def disk(self) -> int:
        """Room for the newest checkpoints, the best one, and the one being written beside them."""
        return self.checkpoint * (self.checkpoints_kept + 2)

    @property
    def epochs(self) -> float | None:
        return self.samples / self.samples_per_epoch if self.samples_per_epoch else None

    def worker_bytes(self, stage: int) -> int:
        """Memory of the device that one of the least workers trains on under this stage, its process apart."""
        return self.state[stage] + self.temporary[stage] + (self.activations or 0)

    def host_bytes(self, stage: int) -> int:
        """Memory that a worker takes of the machine where it trains on CPU: all there is."""
        working = int((self.working - 1) * (self.activations or 0))
        return self.process + self.loader + working + self.worker_bytes(stage)

    def to_json(self) -> dict[str, object]:
        host = {stage: self.host_bytes(stage) for stage in STAGES}
        return {**asdict(self), "disk": self.disk, "epochs": self.epochs, "host": host}


def estimate_resources(experiment: Experiment, stores: Sequence[Store]) -> ResourceEstimate:
    """Raises ValueError if the batch sizes do not fit the number of workers."""
    family = family_of(experiment.model)
    asked = family.state(experiment.model)
    if asked is not None and not asked.names:  # without stores
        experiment = replace(experiment, model=family.with_state(experiment.model, _ASSUMED_STATE))
    loop, sizes = experiment.loop, experiment.launch.sizes
    least, most = sizes[0], sizes[-1]
    experiment.require_sizes()
    model = on_meta(experiment.model.build)
    count, frozen = _sizes(model, experiment.freeze)
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    ema = experiment.engine.ema_decay > 0
    state: dict[Stage, dict[str, int]] = {
        stage: state_bytes(stage, count, least, num_frozen=frozen, ema=ema) for stage in STAGES
    }
    activations = activation_bytes(experiment, stores)
    engine = experiment.engine
    zero = engine.zero if isinstance(engine, DeepSpeedEngineConfig) else ZeroConfig(stage=0)
    return ResourceEstimate(
        parameters=count,
        frozen=frozen,
        workers=(least, most),
        accumulation=experiment.accumulation(most),
        state={stage: _on_device(held, stage, zero) for stage, held in state.items()},
        stage=zero.stage,
        temporary={stage: temporary_bytes(_at(zero, stage), count, least) for stage in STAGES},
        activations=None if activations is None else activations * loop.micro_batch,
        working=family_of(experiment.model).cpu_peak_ratio,
        process=RAY_WORKER if isinstance(experiment.launch, RayLaunch) else IN_PROCESS,
        loader=loader_bytes(experiment, stores),
        checkpoint=FP32 * (count + (count - frozen) * (2 + ema)) + buffers * most,
        checkpoints_kept=loop.keep_last,
        steps=loop.steps,
        samples=loop.steps * loop.global_batch,
        samples_per_epoch=sum(map(num_samples, stores)) or None,
    )


def _on_device(held: Mapping[str, int], stage: Stage, zero: ZeroConfig) -> int:
    """Bytes of the training state that are not offloaded to host memory."""
    offloaded = {
        "optimizer": zero.offload_optimizer == "cpu" and stage > 0,
        "parameters": zero.offload_parameters == "cpu" and stage == 3,
    }
    return sum(size for kind, size in held.items() if not offloaded.get(kind, False))


def _at(zero: ZeroConfig, stage: Stage) -> ZeroConfig:
    return replace(zero, stage=stage, offload_optimizer="none", offload_parameters="none")


def loader_bytes(experiment: Experiment, stores: Sequence[Store]) -> int:
    """What one worker's loader holds: its budget, or all frames decoded beside the files where that is less."""
    budget = experiment.loader.memory_mb * 2**20
    cameras = family_of(experiment.model).cameras(experiment.model)
    return min(budget, sum(_held_bytes(store, cameras) for store in stores)) if stores else budget


def _held_bytes(store: Store, cameras: Sequence[str]) -> int:
    files = store.num_bytes
    if not isinstance(store, EpisodeStore):
        return files
    main = [store.contract.image] if MAIN_CAMERA in cameras else []
    recipes = [*main, *store_inputs(store, cameras=cameras, state=False).cameras]
    return files + num_samples(store) * sum(recipe.height * recipe.width * 3 for recipe in recipes)


def _sizes(model: nn.Module, freeze: tuple[str, ...]) -> tuple[int, int]:
    """(all parameters, those that are not trained)."""
    named = list(model.named_parameters())
    frozen = [p for name, p in named if not p.requires_grad or any(name.startswith(start) for start in freeze)]
    return sum(p.numel() for _, p in named), sum(p.numel() for p in frozen)


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    """The model with shapes and no memory."""
    with torch.device("meta"):
        return build().to("meta")


def activation_bytes(experiment: Experiment, stores: Sequence[Store] = ()) -> int | None:
    """What one sample's forward pass keeps for the backward pass; in bf16 half of fp32's. None if it is unknown."""
    with torch.random.fork_rng(devices=[]):
        sample = family_of(experiment.model).sample_forward(experiment.model, stores)
        if sample is None:
            return None
        model, inputs = sample
        saved = saved_bytes(model, *inputs)
    return saved // 2 if experiment.engine.precision == "bf16" else saved


def saved_bytes(model: nn.Module, *inputs: Any) -> int:
    """Memory that the backward pass of `model(*inputs)` would need, its weights apart."""
    saved: dict[int, int] = {}

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage._cdata] = storage.nbytes()
        return tensor

    as_it_is = torch.compiler.set_stance("force_eager")  # a compiled block would not run beside `_Made`
    with as_it_is, _Made() as made, torch.autograd.graph.saved_tensors_hooks(save, lambda kept: kept):
        outputs = model(*inputs)  # the graph lives as long as these
    weights, answers = (
        {tensor.untyped_storage()._cdata for tensor in tensors}
        for tensors in ((*model.parameters(), *model.buffers()), _tensors(outputs))
    )
    held = {storage: size for storage, size in made.living().items() if storage not in answers}
    return sum(size for storage, size in (held | saved).items() if storage not in weights)


class _Made(TorchDispatchMode):
    """The storages that operations made. Selective checkpointing keeps some of them apart from the saved tensors."""

    def __init__(self) -> None:
        super().__init__()
        self._storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        for tensor in _tensors(outputs):
            storage = tensor.untyped_storage()
            self._storages[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        return outputs

    def living(self) -> dict[int, int]:
        """Bytes by storage."""
        return {key: size for key, (reference, size) in self._storages.items() if not reference.expired()}


def _tensors(values: object) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]

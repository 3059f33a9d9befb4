"""What a run will need, before it is started: memory by ZeRO stage, steps and epochs, disk for checkpoints.

A training step is taken on torch's meta device, which has shapes and no memory, and counted (step_memory.py). What a
process holds before it trains is measured (benchmarks/doctor_estimates.py, which compares all of it with real runs). In
bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate

from torch import nn

from cluster.engine import DeepSpeedEngineConfig, TorchEngineConfig
from cluster.engine_base import AVERAGED_AT_ONCE
from cluster.launch import RayLaunch
from cluster.zero import STAGES, Stage, ZeroConfig, reduction_bytes, state_bytes, temporary_bytes
from pipelines.capacity.step_memory import count_step, model_on_meta
from pipelines.config.experiment import Experiment
from pipelines.families.models import family_of
from pipelines.training.device_copies import AHEAD
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.robot_inputs import store_inputs
from preprocessing.store.web_store import Store, num_samples
from rt_models.spec import MAIN_CAMERA

_ASSUMED_STATE = tuple(f"value_{number}" for number in range(8))  # as many as an arm with a gripper has

FP32 = 4
IN_PROCESS, RAY_WORKER = 640 * 10**6, 840 * 10**6
"""Resident bytes of a process before its first step: the interpreter, torch, MLflow's client, Ray and DeepSpeed."""

CUDA_CONTEXT = 500 * 10**6
"""Of a GPU's memory, for kernels and libraries: the least that an H200 was seen to take."""
_KEPT_OF_EQUAL = 1.0
"""What a CPU's allocator keeps of batches of few shapes, over activations: at most so much."""


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
    gradients: Mapping[int, int]
    """The gradients among them."""
    stage: int
    """The one of the recipe."""
    temporary: Mapping[int, int]
    """What it takes beside while it reduces gradients and updates, when activations are given back."""
    reduction: Mapping[int, int]
    """The part of that which it takes while the backward pass runs."""
    activations: int | None
    """Of one micro-batch: the most that forward and backward pass hold at one time beside the training state."""
    with_gradients: int | None
    """The same together with the gradients that there are by then, where an update begins without any."""
    batches: int
    """Micro-batches on the device: the one at hand and, on a GPU, those that are copied ahead."""
    on_gpu: bool
    kept: int
    """What the allocator of a CPU keeps beside, after some hundred steps: holes that batches of other sizes left."""
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
        """Memory of the device that one of the least workers trains on under this stage, its process apart: the most
        at one time."""
        held, gradients = self.state[stage], self.gradients[stage]
        if self.with_gradients is None:
            training = self.activations or 0
        else:
            training = self.with_gradients - gradients
        return held + self.batches + max(training + self.reduction[stage], self.temporary[stage])

    def gpu_bytes(self, stage: int) -> int:
        """Memory that a worker takes of a GPU."""
        return CUDA_CONTEXT + self.worker_bytes(stage)

    def host_bytes(self, stage: int) -> int:
        """Memory that a worker takes of the machine where it trains on CPU: all there is, after some hundred steps."""
        return self.process + self.loader + self.kept + self.worker_bytes(stage)

    def needed(self, stage: int) -> int:
        """Memory that a worker takes of what it trains on."""
        return self.gpu_bytes(stage) if self.on_gpu else self.host_bytes(stage)

    def to_json(self) -> dict[str, object]:
        host, device = ({stage: needs(stage) for stage in STAGES} for needs in (self.host_bytes, self.worker_bytes))
        return {**asdict(self), "disk": self.disk, "epochs": self.epochs, "host": host, "device": device}


def estimate_resources(
    experiment: Experiment, stores: Sequence[Store], *, on_gpu: bool | None = None
) -> ResourceEstimate:
    """`on_gpu`: whether it would train on a GPU; None: where the recipe says so.

    Raises ValueError if the batch sizes do not fit the number of workers.
    """
    family = family_of(experiment.model)
    asked = family.state(experiment.model)
    if asked is not None and not asked.names:  # without stores
        experiment = replace(experiment, model=family.with_state(experiment.model, _ASSUMED_STATE))
    loop, sizes, engine = experiment.loop, experiment.launch.sizes, experiment.engine
    if on_gpu is None:
        on_gpu = isinstance(experiment.launch, RayLaunch) and experiment.launch.use_gpu
    least, most = sizes[0], sizes[-1]
    experiment.require_sizes()
    model = model_on_meta(experiment)
    counts = _Counts.of(model)
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    ema = engine.ema_decay > 0
    state: dict[Stage, dict[str, int]] = {
        stage: state_bytes(
            stage, counts.all, least, num_frozen=counts.frozen, frozen_bytes=counts.frozen_bytes, ema=ema
        )
        for stage in STAGES
    }
    step = count_step(experiment, stores, model, on_gpu=on_gpu)
    kept_share = min(family.kept_on_cpu, _KEPT_OF_EQUAL if loop.fixed_shapes == "on" else family.kept_on_cpu)
    zero = engine.zero if isinstance(engine, DeepSpeedEngineConfig) else ZeroConfig(stage=0)
    passing = {stage: _passing(experiment, counts, stage, least, on_gpu=on_gpu) for stage in STAGES}
    return ResourceEstimate(
        parameters=counts.all,
        frozen=counts.frozen,
        workers=(least, most),
        accumulation=experiment.accumulation(most),
        state={stage: _on_device(held, stage, zero) + buffers for stage, held in state.items()},
        gradients={stage: held["gradients"] for stage, held in state.items()},
        stage=zero.stage,
        temporary={stage: update for stage, (_, update) in passing.items()},
        reduction={stage: backward for stage, (backward, _) in passing.items()},
        activations=None if step is None else step.activations,
        with_gradients=None if step is None or _keeps_gradients(experiment, on_gpu=on_gpu) else step.with_gradients,
        batches=0 if step is None else step.batch * (1 + AHEAD * on_gpu),
        on_gpu=on_gpu,
        kept=int(kept_share * step.activations) if step is not None and not on_gpu else 0,
        process=RAY_WORKER if isinstance(experiment.launch, RayLaunch) else IN_PROCESS,
        loader=loader_bytes(experiment, stores),
        checkpoint=FP32 * (counts.all + (counts.all - counts.frozen) * (2 + ema)) + buffers * most,
        checkpoints_kept=loop.keep_last,
        steps=loop.steps,
        samples=loop.steps * loop.global_batch,
        samples_per_epoch=sum(map(num_samples, stores)) or None,
    )


@dataclass(frozen=True, kw_only=True)
class _Counts:
    """Parameters of a model."""

    all: int
    frozen: int
    frozen_bytes: int
    averaged_at_once: int
    """The most that are trained among so many, one after another, as an average of weights takes at a time."""

    @staticmethod
    def of(model: nn.Module) -> _Counts:
        frozen = [p for p in model.parameters() if not p.requires_grad]
        ends = [0, *accumulate(p.numel() for p in model.parameters() if p.requires_grad)]
        pieces = range(0, len(ends), AVERAGED_AT_ONCE)
        return _Counts(
            all=sum(parameter.numel() for parameter in model.parameters()),
            frozen=sum(parameter.numel() for parameter in frozen),
            frozen_bytes=sum(parameter.numel() * parameter.element_size() for parameter in frozen),
            averaged_at_once=max(ends[min(at + AVERAGED_AT_ONCE, len(ends) - 1)] - ends[at] for at in pieces),
        )


def _keeps_gradients(experiment: Experiment, *, on_gpu: bool) -> bool:
    """Whether a micro-batch begins with gradients in memory: those of the micro-batches before it, or a graph's."""
    engine, sizes = experiment.engine, experiment.launch.sizes
    if not isinstance(engine, TorchEngineConfig):
        return True  # DeepSpeed's buckets
    replays = on_gpu and sizes[-1] == 1 and engine.cuda_graphs != "off"
    return replays or experiment.accumulation(sizes[0]) > 1


def _passing(experiment: Experiment, counts: _Counts, stage: Stage, ranks: int, *, on_gpu: bool) -> tuple[int, int]:
    """(bytes beside the training state during the backward pass, and at an update)."""
    engine = experiment.engine
    if isinstance(engine, TorchEngineConfig) and stage == 0:
        buckets = FP32 * (counts.all - counts.frozen) if ranks > 1 else 0  # DDP's, from the beginning on
        averaging = FP32 * counts.averaged_at_once if on_gpu and engine.ema_decay > 0 else 0
        return buckets, buckets + averaging
    zero = engine.zero if isinstance(engine, DeepSpeedEngineConfig) else ZeroConfig()
    zero = replace(zero, stage=stage, offload_optimizer="none", offload_parameters="none")
    needs = (reduction_bytes, temporary_bytes)
    backward, update = (need(zero, counts.all, ranks, num_frozen=counts.frozen) for need in needs)
    return backward, update


def _on_device(held: Mapping[str, int], stage: Stage, zero: ZeroConfig) -> int:
    """Bytes of the training state that are not offloaded to host memory."""
    offloaded = {
        "optimizer": zero.offload_optimizer == "cpu" and stage > 0,
        "parameters": zero.offload_parameters == "cpu" and stage == 3,
    }
    return sum(size for kind, size in held.items() if not offloaded.get(kind, False))


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

"""What a training step holds on its device beside weights and optimizer: one is taken on the meta device and counted.

The model is the experiment's, with its frozen parts and its activation checkpointing; the batch is the largest that the
sample order has in its first micro-batches, padded where the run will pad it, or, without stores, the largest there may
be. Not counted is what a kernel takes while it runs (cuDNN's and oneDNN's work space).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import nn

from cluster.context import LocalContext
from pipelines.capacity.device_rules import ConvolutionLayouts, DeviceRules
from pipelines.capacity.live_bytes import LiveBytes
from pipelines.config.experiment import Experiment
from pipelines.families.models import ModelConfig, family_of
from pipelines.training.data import build_loader, open_reader, training_contract
from pipelines.training.initial_weights import freeze, widen_trained
from preprocessing.loading.fixed_shapes import choose_capacities, is_sized
from preprocessing.loading.reader import Batch
from preprocessing.store.robot_inputs import store_inputs
from preprocessing.store.web_store import Store, WebStore, robot_stores
from rt_models.blocks.triton_kernels import run_kernels
from rt_models.spec import MAIN_CAMERA

log = logging.getLogger(__name__)

_ASSUMED_FRAME = (256, 320)  # RT-1's camera


@dataclass(frozen=True, kw_only=True)
class StepMemory:
    """Of one micro-batch on one worker, in bytes."""

    activations: int
    """The most that forward and backward pass hold at one time beside weights and gradients."""
    with_gradients: int
    """The same with the gradients that there are by then, if there were none before."""
    batch: int
    """The micro-batch itself."""


def count_step(experiment: Experiment, stores: Sequence[Store], model: nn.Module, *, on_gpu: bool) -> StepMemory | None:
    """`model`: that of `model_on_meta`. None for a kind of model that does not say what its batches are, or that cannot
    be computed without values."""
    batch = largest_batch(experiment, stores, on_gpu=on_gpu)
    if batch is None:
        return None
    casts = experiment.engine.precision == "bf16" or _uncast(experiment) is not experiment.model
    try:
        live = take_step(model, batch, on_gpu=on_gpu, autocast=casts)
    except Exception:  # torch's, where values of the meta device are asked for, or whatever a model then raises
        log.debug("the memory of a step of %s is not counted", type(model).__name__, exc_info=True)
        return None
    size = sum(value.numel() * value.element_size() for value in batch.values())
    return StepMemory(activations=live.peak_beside_gradients, with_gradients=live.peak, batch=size)


def take_step(model: nn.Module, batch: Batch, *, on_gpu: bool, autocast: bool) -> LiveBytes:
    """Forward and backward pass, both on the meta device."""
    rules, live = DeviceRules(gpu=on_gpu, autocast=autocast), LiveBytes(model, batch.values())
    kernels = run_kernels((lambda *_: None) if on_gpu else "auto", device="meta")
    as_it_is = torch.compiler.set_stance("force_eager")  # torch.compile would trace what is counted here
    with torch.random.fork_rng(devices=[]), as_it_is, kernels, ConvolutionLayouts(), live, rules:
        rules.backward(model.loss(batch))  # type: ignore[operator]
    return live


def model_on_meta(experiment: Experiment) -> nn.Module:
    """The model of the run with shapes and no memory. Raises ValueError or OSError as the run would."""
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        model = _uncast(experiment).build().to("meta").train()
    freeze(model, experiment.freeze)
    widen_trained(model, experiment.engine.precision)
    return model


def _uncast(experiment: Experiment) -> ModelConfig:
    """The model's config; autocast knows no meta device, and `DeviceRules` stands for it."""
    return family_of(experiment.model).left_uncast(experiment.model) or experiment.model


def largest_batch(experiment: Experiment, stores: Sequence[Store], *, on_gpu: bool) -> Batch | None:
    """On the meta device."""
    model, loop = experiment.model, experiment.loop
    family = family_of(model)
    size = family.largest_size(model, loop.micro_batch, loop.segment_windows, experiment.loader)
    if stores and (seen := sizes_seen(experiment, stores)):
        is_fixed = loop.fixed_shapes == "on" or (loop.fixed_shapes == "auto" and on_gpu)
        size = choose_capacities(seen, size).holding(max(seen)) if is_fixed else max(seen)
    pictures = [store.most_pictures for store in stores if isinstance(store, WebStore)]
    places = max([family.num_frames(model), *pictures])
    sizes = _frame_sizes(experiment, stores)
    return family.batch_on_meta(model, loop.micro_batch, size, frame_sizes=sizes, places=places)


def sizes_seen(experiment: Experiment, stores: Sequence[Store]) -> list[int]:
    """Of the first micro-batches of the run, as one worker would have them; none where the reader counts no size."""
    contract = training_contract(experiment, stores)
    with closing(open_reader(experiment, stores, contract, is_training=True)) as reader:
        loader = build_loader(experiment, reader, LocalContext("cpu"), None)
        if not is_sized(reader):
            return []
        return [reader.size(rows, keys, crops=True) for rows, keys in loader.first_samples(reader.counted)]


def _frame_sizes(experiment: Experiment, stores: Sequence[Store]) -> dict[str, tuple[int, int]]:
    """Height and width of the frames of each camera."""
    cameras = family_of(experiment.model).cameras(experiment.model)
    sizes: dict[str, tuple[int, int]] = dict.fromkeys(cameras, _ASSUMED_FRAME)
    for store in robot_stores(stores):
        of_store = {MAIN_CAMERA: store.contract.image}
        of_store |= {recipe.camera: recipe for recipe in store_inputs(store, cameras=cameras, state=False).cameras}
        sizes |= {role: (recipe.height, recipe.width) for role, recipe in of_store.items() if role in sizes}
    return sizes

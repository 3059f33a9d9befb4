"""RT-1 (rt_models/rt1.py) as a family of models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import cast

import numpy as np
from torch import Tensor

from pipelines.config.compute import wants_cuda_graph
from pipelines.families.base import Policy, RunT, chosen_space
from pipelines.families.windows import WindowCost, WindowFamily
from preprocessing.loading.masked_reader import MaskedWindowReader
from preprocessing.loading.reader import Batch, LoaderConfig
from preprocessing.loading.window_reader import WindowReader
from preprocessing.masks.overlay import read_overlay
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.web_store import Store, robot_stores
from rt_models.action_space import ActionSpace
from rt_models.control.action import Action
from rt_models.control.observation import Frame, RobotState
from rt_models.control.rt1_policy import RT1Policy, act_together
from rt_models.cost.rt1_flops import cost
from rt_models.object_marks import ObjectMarks
from rt_models.rt1 import RT1, RT1Config
from rt_models.rt1_attention import frame_attention
from rt_models.spec import Contract, DatasetContract, StateInput
from rt_models.vision.fuse_batch_norm import fuse_batch_norm


class RT1Family(WindowFamily[RT1Config, RT1]):
    config_class, model_class = RT1Config, RT1
    label = "an RT-1"

    def in_space(self, config: RT1Config, space: ActionSpace) -> RT1Config:
        return replace(config, action_space=chosen_space(config.action_space, space, "model.action_space"))

    def cameras(self, config: RT1Config) -> tuple[str, ...]:
        return config.cameras

    def cameras_encoded_together(self, config: RT1Config) -> list[tuple[str, ...]]:
        return config.cameras_encoded_together()

    def stride(self, config: RT1Config) -> int:
        return config.stride

    def state(self, config: RT1Config) -> StateInput | None:
        return config.state

    def with_state(self, config: RT1Config, names: tuple[str, ...]) -> RT1Config:
        assert config.state is not None
        return replace(config, state=replace(config.state, names=names))

    def resolved(self, experiment: RunT, stores: Sequence[Store]) -> RunT:
        robots, stride = robot_stores(stores), experiment.model.stride
        longest = max((int(shard.episode_lengths.max()) for store in robots for shard in store.shards), default=0)
        if stride > 1 and stride >= longest:
            raise ValueError(
                f"--model.stride {stride}: the longest episode has {longest} steps, so no window would hold a frame "
                "before its newest: give a smaller one"
            )
        if self.reads_object_masks(experiment.model):
            for store in robots:
                read_overlay(store)
        return super().resolved(experiment, stores)

    def reader_class(self, model: RT1Config, stores: Sequence[EpisodeStore]) -> Callable[..., WindowReader]:
        if not self.reads_object_masks(model):
            return super().reader_class(model, stores)
        return partial(MaskedWindowReader, overlays=[read_overlay(store) for store in stores])

    def batch_cost(self, config: RT1Config) -> WindowCost:
        counted = cost(config)
        return WindowCost(
            frame_flops=counted.frame_flops,
            window_flops=counted.window_flops,
            random_crop=config.input.crop == "pad",
            loss_on=config.loss_on,
            cameras=config.cameras,
        )

    def left_uncast(self, config: RT1Config) -> RT1Config | None:
        compute = replace(config.compute, precision="as_is")
        return replace(config, compute=compute) if compute != config.compute else None

    def last_logits(self, model: RT1, batch: Batch) -> Tensor:
        return model.predict(batch, output_steps="last")[:, -1]

    def frame_maps(
        self, model: RT1, contract: Contract, store: EpisodeStore, rows: np.ndarray
    ) -> Mapping[str, np.ndarray]:
        reader = self.reader([store], contract, model.config, LoaderConfig())
        device = next(model.parameters()).device
        batch = {key: value.to(device) for key, value in reader.read(rows, rows).items()}
        reader.close()
        maps = frame_attention(model.eval(), batch)
        return {name: each.cpu().numpy() for name, each in maps.items()}

    def for_inference(self, model: RT1) -> RT1:
        """BatchNorm fused into the convolutions."""
        ready = fuse_batch_norm(model.eval())
        ready.compile_parts()
        return ready

    def reads_object_masks(self, config: RT1Config) -> bool:
        return config.image_channels == "rgb+mask"

    def mark(self, policy: Policy, marks: ObjectMarks) -> None:
        cast(RT1Policy, policy).mark(marks)

    def instructions(self, config: RT1Config, store: EpisodeStore) -> Mapping[str, np.ndarray]:
        if not self.reads_object_masks(config):
            return super().instructions(config, store)
        overlay = read_overlay(store)
        return dict(zip(overlay.verbs, overlay.vectors_VD, strict=True))

    def policies(self, model: RT1) -> Callable[[DatasetContract], RT1Policy]:
        return RT1Policy(model, cuda_graph=wants_cuda_graph()).for_dataset

    def act_together(
        self,
        policies: Sequence[RT1Policy],
        frames: Sequence[Frame],
        instructions: Sequence[np.ndarray],
        states: Sequence[RobotState],
    ) -> list[Action]:
        return act_together(policies, frames, instructions, states)


FAMILY = RT1Family()

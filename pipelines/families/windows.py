"""Models of windows: the last T frames with the instruction's vector in, logits of the next action's tokens out.

They train on the batches of `rt_models.spec.BATCH`, read by `WindowReader` from robot stores.

Axes: B windows, T steps, A actions, V bins, N instructions, D embedding.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from pipelines.families.base import (
    TEMPERATURES,
    ChangeFrames,
    ModelFamily,
    ModelT,
    PredictedSteps,
    RunT,
    TrainingRun,
    changed_frames,
    encoded_frames,
    row_pieces,
    selected,
)
from pipelines.families.meta_batches import on_meta
from preprocessing.conversion.embeddings import embed_texts
from preprocessing.loading.fixed_shapes import shapes_of_pieces
from preprocessing.loading.reader import Batch, LoaderConfig
from preprocessing.loading.window_reader import WindowReader
from preprocessing.loading.windows import most_images
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.web_store import Store, robot_stores
from rt_models.action_tokens import encode
from rt_models.control.constrained_decoding import choose_tokens
from rt_models.robot_model import RobotModelConfig
from rt_models.spec import MAIN_CAMERA, Contract, batch_fields, index_key, of_role
from rt_models.vision.image_plan import plan_images


@dataclass(frozen=True, kw_only=True)
class WindowCost:
    """What batches of windows cost (`pipelines.families.base.BatchCost`)."""

    frame_flops: int
    """Forward operations of one frame."""
    window_flops: int
    """Forward operations of one window beside its frames."""
    random_crop: bool
    """Whether training crops frames at random, by each window's crop key."""
    loss_on: Literal["all", "last"]
    """Steps of a window that are trained on."""
    cameras: tuple[str, ...] = (MAIN_CAMERA,)

    def frames(self, batch: Batch) -> int:
        of_role = {role: batch[index_key(role)] for role in self.cameras}
        return encoded_frames(batch, of_role, torch.full_like(batch["crop_key"], self.random_crop).bool())

    def training_flops(self, batch: Batch, frames: int) -> float:
        return 3.0 * (frames * self.frame_flops + len(batch["sample_id"]) * self.window_flops)

    def trained_tokens(self, batch: Batch) -> Tensor:
        steps = batch["loss_mask"].shape[1] if self.loss_on == "all" else 1
        return batch["loss_mask"][:, -steps:].sum(dim=1) * batch["action_mask"].sum(dim=1)


class WindowConfig(RobotModelConfig, Protocol):
    """The config of a model that reads windows of `num_steps` frames."""

    @property
    def num_steps(self) -> int: ...


WindowConfigT = TypeVar("WindowConfigT", bound=WindowConfig)


class WindowFamily(ModelFamily[WindowConfigT, ModelT]):
    """A kind of model whose config has `num_steps`, the frames of a window."""

    @abstractmethod
    def last_logits(self, model: ModelT, batch: Batch) -> Tensor:
        """float (B, A, V): the logits of the action after the last step of each window."""

    def num_frames(self, config: WindowConfigT) -> int:
        return config.num_steps

    def cameras_encoded_together(self, config: WindowConfigT) -> Sequence[tuple[str, ...]]:
        """The cameras whose images are computed in one pass, pass by pass."""
        return [self.cameras(config)]

    def planned(self, config: WindowConfigT, batch: Batch, capacity: int, *, is_training: bool) -> Batch:
        for cameras in self.cameras_encoded_together(config):
            batch = plan_images(batch, crops=is_training, capacities=(capacity,), cameras=cameras)
        return batch

    def largest_size(self, config: WindowConfigT, num_rows: int, segment_rows: int, loader: LoaderConfig) -> int:
        groups = self.cameras_encoded_together(config)
        return most_images(
            num_rows,
            segment_rows,
            num_steps=self.num_frames(config),
            stride=self.stride(config),
            cameras=len(groups[0]) if len(groups) == 1 else 1,
            shared=loader.frames != "windows",
        )

    def batch_on_meta(
        self,
        config: WindowConfigT,
        num_rows: int,
        size: int,
        *,
        frame_sizes: Mapping[str, tuple[int, int]],
        places: int,
    ) -> Batch:
        cameras, state = self.cameras(config), self.state(config)
        together = len(self.cameras_encoded_together(config)) == 1
        lengths = {"B": num_rows, "T": self.num_frames(config), "A": config.action_spec().size, "M": len(cameras)}
        lengths |= {"F": size, "N": size, "P": 0 if state is None else len(state.names)}
        if together and len(cameras) > 1:
            lengths |= {of_role("F", role): size // 2 for role in cameras if role != MAIN_CAMERA}
        fields = batch_fields(cameras, state=state is not None, together=together)
        if not self.reads_object_masks(config):
            del fields["object_mask"]
        return on_meta(fields, lengths, cameras, frame_sizes)

    def resolved(self, experiment: RunT, stores: Sequence[Store]) -> RunT:
        if experiment.co_fine_tuning is not None:
            raise ValueError(f"{experiment.name} trains on robot episodes alone: leave co_fine_tuning out")
        return experiment

    def sample_shares(self, experiment: TrainingRun, stores: Sequence[Store]) -> Sequence[float] | None:
        robots = robot_stores(stores)
        if len(robots) < len(stores):
            raise ValueError(
                f"{experiment.name} trains on robot episodes alone: leave stores of web data out of --data"
            )
        steps = {store.name: store.num_steps for store in robots}
        shares = experiment.mixture.shares(steps)
        return None if shares is None else list(shares.values())

    def open_reader(
        self,
        experiment: TrainingRun,
        stores: Sequence[Store],
        contract: Contract,
        config: LoaderConfig,
        *,
        is_training: bool,
    ) -> WindowReader:
        return self.reader(robot_stores(stores), contract, experiment.model, config)

    def predict(
        self,
        model: ModelT,
        contract: Contract,
        store: EpisodeStore,
        *,
        batch: int,
        change_frames: ChangeFrames | None,
        rewording: Mapping[str, str] | None,
    ) -> Iterator[PredictedSteps]:
        config = cast(WindowConfigT, model.config)
        reader = self.reader([store], contract, config, LoaderConfig())
        told = {} if rewording is None else self.instructions(config, store)
        swap = None if rewording is None else _reworded_embeddings(told, contract.encoder, rewording)
        device, pieces = next(model.parameters()).device, list(row_pieces(reader.index.num_rows, batch))
        shapes = None
        if self._wants_few_shapes(device):
            shapes = shapes_of_pieces(reader, pieces, partial(self.planned, config, is_training=False))
        for rows in pieces:
            loaded = reader.read(rows, rows) if shapes is None else shapes.read_filled(rows, len(pieces[0]))
            read = {key: value.to(device) for key, value in loaded.items()}
            if change_frames is not None:
                read |= changed_frames(read, change_frames)
            if swap is not None:
                read["embedding"] = _swap_embeddings(read["embedding"], *swap)
            yield self._predicted(model, read, len(rows))
        reader.close()

    def reader(
        self, stores: Sequence[EpisodeStore], contract: Contract, model: WindowConfigT, config: LoaderConfig
    ) -> WindowReader:
        """Reads the windows of such a model."""
        return self.reader_class(model, stores)(
            stores,
            [contract.dataset(store.name).transform for store in stores],
            num_steps=self.num_frames(model),
            stride=self.stride(model),
            config=config,
            cameras=self.cameras(model),
            recipes={recipe.camera: recipe for recipe in contract.cameras},
            state=contract.state_columns([store.name for store in stores]),
            images_counted="together" if len(self.cameras_encoded_together(model)) == 1 else "each",
        )

    def reader_class(self, model: WindowConfigT, stores: Sequence[EpisodeStore]) -> Callable[..., WindowReader]:
        """What makes the reader of such a model, given what `WindowReader` is given."""
        return WindowReader

    def _wants_few_shapes(self, device: torch.device) -> bool:
        return device.type != "cpu"

    @torch.no_grad()
    def _predicted(self, model: ModelT, batch: Batch, num_rows: int) -> PredictedSteps:
        """Of the first `num_rows` rows."""
        logits_BAV, target_BA = self.last_logits(model, batch), encode(batch["action"][:, -1], model.spec)
        log_likelihood_BAJ, confidence_BAJ = _at_temperatures(logits_BAV, target_BA)
        columns = {
            "episode_B": batch["episode"],
            "step_B": batch["step"],
            "action_BA": batch["action"][:, -1],
            "target_tokens_BA": target_BA,
            "tokens_BA": choose_tokens(logits_BAV, model.spec),
            "log_likelihood_BAJ": log_likelihood_BAJ,
            "confidence_BAJ": confidence_BAJ,
        }
        asked_B = torch.arange(len(batch["step"]), device=batch["step"].device) < num_rows
        return selected(columns, batch["loss_mask"][:, -1] & asked_B)


def _at_temperatures(logits_BAV: Tensor, target_BA: Tensor) -> tuple[Tensor, Tensor]:
    """float32 (B, A, J): the target's log-probability, and the largest probability, at each temperature."""
    likelihoods, confidences = [], []
    for temperature in TEMPERATURES:
        log_p_BAV = torch.log_softmax(logits_BAV.float() / temperature, dim=-1)
        likelihoods.append(log_p_BAV.gather(-1, target_BA[..., None])[..., 0])
        confidences.append(log_p_BAV.amax(dim=-1).exp())
    return torch.stack(likelihoods, dim=-1), torch.stack(confidences, dim=-1)


def _reworded_embeddings(
    told: Mapping[str, np.ndarray], encoder: str, rewording: Mapping[str, str]
) -> tuple[Tensor, Tensor]:
    """(the embeddings of the instructions that the model is told, the embedding each is replaced by), both (N, D)."""
    of_text = dict(told)
    unseen = sorted({text for text in rewording.values() if text not in of_text})
    of_text |= dict(zip(unseen, embed_texts(encoder, unseen), strict=True)) if unseen else {}
    others = [of_text[rewording.get(text, text)] for text in told]
    return torch.tensor(np.stack(list(told.values()))), torch.tensor(np.stack(others))


def _swap_embeddings(embedding_BTD: Tensor, known_ND: Tensor, others_ND: Tensor) -> Tensor:
    flat = embedding_BTD.reshape(-1, embedding_BTD.shape[-1])
    nearest = torch.cdist(flat, known_ND.to(flat)).argmin(dim=1)
    padding = (flat == 0).all(dim=1, keepdim=True)
    return torch.where(padding, flat, others_ND.to(flat)[nearest]).reshape(embedding_BTD.shape)

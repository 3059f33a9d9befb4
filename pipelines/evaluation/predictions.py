"""What a trained policy says on the steps of a store: RT-1 after windows of frames, RT-2 after prompts.

Every step that is trained on is predicted from the recorded frames up to it, in episode order.

Axes: N scored steps, B rows of a batch, A action dimensions, K fields of RT-2's text, D embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from pipelines.families.models import Model
from pipelines.terminal.progress_bar import Count, uncounted
from pipelines.training.co_fine_tuning import NO_INSTRUCTION, CoFineTuningConfig, CoFineTuningReader, Store
from pipelines.training.data import as_trained
from preprocessing.conversion.embeddings import embed_texts
from preprocessing.loading.loader import Batch, LoaderConfig, WindowReader
from preprocessing.store.episode_store import EpisodeStore
from rt_models.action_tokens import encode
from rt_models.control.constrained_decoding import choose_tokens
from rt_models.language.generation import predict_actions
from rt_models.rt1 import RT1
from rt_models.spec import Contract

Perturbation = Literal["none", "blank_images", "swapped_instructions"]


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """All scored steps in episode order. The last two are RT-2's: see `PredictedActions`."""

    episode_N: np.ndarray
    step_N: np.ndarray
    physical_NA: np.ndarray
    """The recorded actions."""
    target_tokens_NA: np.ndarray
    tokens_NA: np.ndarray
    valid_mass_NK: np.ndarray | None = None
    invalid_NK: np.ndarray | None = None

    @property
    def first_N(self) -> np.ndarray:
        """bool: the first scored step of its episode."""
        return np.diff(self.episode_N, prepend=-1) != 0


def predict_store(
    model: Model,
    contract: Contract,
    store: EpisodeStore,
    *,
    batch: int,
    perturbation: Perturbation = "none",
    rewording: Mapping[str, str] | None = None,
    counted: Count = uncounted,
) -> Predictions:
    """The model's tokens for every step of `store` that is trained on.

    `rewording` gives instructions other words, which the contract's encoder embeds; those it does not name stay.
    `counted` is told of every row that is read. Raises ValueError where no step is scored.
    """
    dataset, seen = contract.dataset(store.name), as_trained(store, contract)
    if perturbation == "swapped_instructions":
        rewording = _swapped(store.instruction_texts)
    steps = _rt1_steps if isinstance(model, RT1) else _rt2_steps
    parts, left = [], store.num_steps
    for part in steps(model, contract, seen, batch, perturbation == "blank_images", rewording):  # type: ignore[arg-type]
        parts.append(part)
        counted(min(batch, left))
        left -= batch
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    episode, step, action, target, tokens, *rest = columns
    if not len(episode):
        raise ValueError(f"{store.root} has no step to score, all are terminal: give another store")
    return Predictions(
        episode_N=episode,
        step_N=step,
        physical_NA=dataset.transform.invert(action),
        target_tokens_NA=target,
        tokens_NA=tokens,
        valid_mass_NK=rest[0] if rest else None,
        invalid_NK=rest[1] if rest else None,
    )


# --- RT-1 ---


def _rt1_steps(
    model: RT1, contract: Contract, store: EpisodeStore, batch: int, blank: bool, rewording: Mapping[str, str] | None
) -> Iterator[tuple[np.ndarray, ...]]:
    transform = contract.dataset(store.name).transform
    reader = WindowReader([store], [transform], num_steps=model.config.num_steps, config=LoaderConfig())
    swap = None if rewording is None else _reworded_embeddings(store, contract.encoder, rewording)
    device = next(model.parameters()).device
    for rows in _pieces(reader.index.num_rows, batch):
        read = {key: value.to(device) for key, value in reader.read(rows, rows).items()}
        yield _predict_windows(model, read, blank=blank, swap=swap)
    reader.close()


@torch.no_grad()
def _predict_windows(
    model: RT1, batch: Batch, *, blank: bool, swap: tuple[torch.Tensor, torch.Tensor] | None
) -> tuple[np.ndarray, ...]:
    if blank:
        batch["frames"] = torch.zeros_like(batch["frames"])
    if swap is not None:
        batch["embedding"] = _swap_embeddings(batch["embedding"], *swap)
    logits_BAV = model.predict(batch, output_steps="last")[:, -1]
    tokens_BA = choose_tokens(logits_BAV, model.spec)
    target_BA = encode(batch["action"][:, -1], model.spec)
    columns = (batch["episode"], batch["step"], batch["action"][:, -1], target_BA, tokens_BA)
    return _scored(columns, batch["loss_mask"][:, -1])


def _reworded_embeddings(
    store: EpisodeStore, encoder: str, rewording: Mapping[str, str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """(the store's instruction embeddings, the embedding each is replaced by)."""
    of_text = dict(zip(store.instruction_texts, store.embeddings, strict=True))
    unseen = sorted({text for text in rewording.values() if text not in of_text})
    of_text |= dict(zip(unseen, embed_texts(encoder, unseen), strict=True)) if unseen else {}
    others = [of_text[rewording.get(text, text)] for text in store.instruction_texts]
    return torch.tensor(store.embeddings), torch.tensor(np.stack(others))


def _swap_embeddings(embedding_BTD: torch.Tensor, known_ND: torch.Tensor, others_ND: torch.Tensor) -> torch.Tensor:
    flat = embedding_BTD.reshape(-1, embedding_BTD.shape[-1])
    nearest = torch.cdist(flat, known_ND.to(flat)).argmin(dim=1)
    padding = (flat == 0).all(dim=1, keepdim=True)
    return torch.where(padding, flat, others_ND.to(flat)[nearest]).reshape(embedding_BTD.shape)


# --- RT-2 ---


def rt2_reader(model: Model, contract: Contract, stores: Sequence[Store]) -> CoFineTuningReader:
    """Reads stores for an RT-2 as its training did, but for the mixture."""
    assert not isinstance(model, RT1)
    return CoFineTuningReader(
        stores, contract, model.config.build_text(), mix=CoFineTuningConfig(), config=LoaderConfig()
    )


def _rt2_steps(
    model: Model, contract: Contract, store: EpisodeStore, batch: int, blank: bool, rewording: Mapping[str, str] | None
) -> Iterator[tuple[np.ndarray, ...]]:
    assert not isinstance(model, RT1)
    text, reader = model.config.build_text(), rt2_reader(model, contract, [store])
    others = {line.strip(): other.strip() for line, other in (rewording or {}).items()}
    device = next(model.parameters()).device
    for rows in _pieces(sum(reader.store_rows), batch):
        read = reader.read(rows, rows)
        if blank:
            read["frames"] = torch.zeros_like(read["frames"])
        said = [others.get(line, line) for line in reader.instructions(rows)]
        prompts = text.collate_prompts([text.robot_prompt(line or NO_INSTRUCTION) for line in said])
        prompted = {key: read[key].to(device) for key in ("frames", "image_index")}
        prompted |= {key: value.to(device) for key, value in prompts.items()}
        found = predict_actions(model, prompted, text, action_mask_BA=read["action_mask"].to(device))
        target_BA = encode(read["action"], model.spec)
        columns = (read["episode"], read["step"], read["action"], target_BA, found.bins_BA)
        yield _scored((*columns, found.valid_mass_BK, found.invalid_BK), read["answer_mask"].any(dim=1))
    reader.close()


def _swapped(texts: Sequence[str]) -> dict[str, str]:
    """Every instruction gets the words of the one before it in the store's table, the first those of the last."""
    return dict(zip(texts, [texts[-1], *texts[:-1]], strict=True))


def _scored(columns: Sequence[torch.Tensor], scored_B: torch.Tensor) -> tuple[np.ndarray, ...]:
    return tuple(column.cpu().numpy()[scored_B.cpu().numpy()] for column in columns)


def _pieces(count: int, size: int) -> Iterator[np.ndarray]:
    rows = np.arange(count)
    return (rows[first : first + size] for first in range(0, count, size))

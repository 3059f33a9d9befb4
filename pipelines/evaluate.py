"""`rtp evaluate`: how well a trained policy predicts the actions of episodes it has not seen.

Every non-terminal step of every episode is predicted from the recorded frames up to it. Scored are only dimensions that
the dataset has and that vary in it; a constant dimension would be right for free. Beside the policy stand three lazy
ones. Their constants are taken from the evaluated episodes themselves, which favours them.

- most frequent token: per dimension, always the commonest bin
- mean action: per dimension, always the bin of the mean
- previous action: repeat the recorded action of the step before (at an episode's first step: the commonest bin)

Intervals are 95 % bootstrap intervals over episodes, because steps of one episode are not independent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table

from pipelines.arguments import parse
from pipelines.bundle import TrainedModel
from pipelines.checkpoints import load_trained
from pipelines.run_report import DIMENSION_HEAD, SCORE_HEAD, dimension_rows, score_rows
from preprocessing.episode_store import EpisodeStore
from preprocessing.loading.loader import LoaderConfig, WindowReader
from rt_models.action_tokens import decode, encode
from rt_models.decoding import choose_tokens
from rt_models.rt1 import RT1
from rt_models.spec import Contract, DatasetContract

LAZY_POLICIES = ("most_frequent_token", "mean_action", "previous_action")
Perturbation = Literal["none", "blank_images", "swapped_instructions"]


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How an evaluation is run."""

    batch: int = 64
    """Windows per forward pass."""
    bootstrap_samples: int = 2000
    """Resamples of the episodes behind each 95 % interval."""
    perturbations: bool = True
    """Also score with blank images and with swapped instructions, to show what the policy looks at."""
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """All scored steps in episode order: N steps, A dimensions."""

    episode_N: np.ndarray
    first_N: np.ndarray
    physical_NA: np.ndarray
    target_tokens_NA: np.ndarray
    tokens_NA: np.ndarray


def evaluate(model: RT1, contract: Contract, store: EpisodeStore, config: EvaluationConfig) -> dict[str, Any]:
    """Scores of `model` on `store` beside the lazy policies, as plain data for JSON.

    Raises ContractMismatch where the store does not hold what the model was trained on.
    """
    contract.require_readable(store.contract, where=store.root)
    dataset = contract.dataset(store.contract.datasets[0].name)
    predictions = predict_store(model, dataset, store, config, "none")
    dims = scored_dimensions(dataset, predictions)
    lazy = {name: _lazy_tokens(name, predictions, model) for name in LAZY_POLICIES}
    bootstrap = _Bootstrap(predictions.episode_N, config)
    correct = {name: _correct(tokens, predictions, dims) for name, tokens in lazy.items()}
    own = _correct(predictions.tokens_NA, predictions, dims)
    report: dict[str, Any] = {
        "store": store.root,
        "contract": contract.id,
        "episodes": len(np.unique(predictions.episode_N)),
        "steps": len(predictions.episode_N),
        "dimensions": [model.spec.names[dim] for dim in dims],
        "token_accuracy": bootstrap.interval(own),
        "lazy": {name: bootstrap.interval(value) for name, value in correct.items()},
        "margin": {name: bootstrap.interval(own - value) for name, value in correct.items()},
        "per_dimension": _per_dimension(predictions, lazy, model, dataset, dims),
    }
    if config.perturbations:
        for kind in ("blank_images", "swapped_instructions"):
            other = predict_store(model, dataset, store, config, kind)
            fallen = _correct(other.tokens_NA, predictions, dims)
            scores = {"token_accuracy": bootstrap.interval(fallen), "fall": bootstrap.interval(own - fallen)}
            report.setdefault("perturbed", {})[kind] = scores
    return report


def predict_store(
    model: RT1, dataset: DatasetContract, store: EpisodeStore, config: EvaluationConfig, perturbation: Perturbation
) -> Predictions:
    """The model's tokens for the last step of every window of `store` that is trained on."""
    reader = WindowReader([store], [dataset.transform], num_steps=model.config.num_steps, config=LoaderConfig())
    swap = _swapped(store.embeddings) if perturbation == "swapped_instructions" else None
    parts = [
        _predict_batch(model, batch, blank=perturbation == "blank_images", swap=swap)
        for batch in _batches(reader, config.batch, next(model.parameters()).device)
    ]
    reader.close()
    episode, step, action, target, tokens = (np.concatenate(column) for column in zip(*parts, strict=True))
    physical = dataset.transform.invert(action)
    return Predictions(
        episode_N=episode, first_N=step == 0, physical_NA=physical, target_tokens_NA=target, tokens_NA=tokens
    )


def scored_dimensions(dataset: DatasetContract, predictions: Predictions) -> np.ndarray:
    """int64: the dimensions that the dataset has and that vary, in training and in the evaluated episodes."""
    varies = dataset.statistics.varies() & (np.ptp(predictions.target_tokens_NA, axis=0) > 0)
    dims = np.flatnonzero(varies & np.array(dataset.action_mask))
    if not len(dims):
        raise ValueError(f"no action dimension of {dataset.name} varies in these episodes: there is nothing to score")
    return dims


def _batches(reader: WindowReader, batch: int, device: torch.device) -> Iterator[dict[str, torch.Tensor]]:
    rows = np.arange(reader.index.num_rows)
    for first in range(0, len(rows), batch):
        piece = rows[first : first + batch]
        yield {key: value.to(device) for key, value in reader.read(piece, piece).items()}


@torch.no_grad()
def _predict_batch(
    model: RT1, batch: dict[str, torch.Tensor], *, blank: bool, swap: tuple[torch.Tensor, torch.Tensor] | None
) -> tuple[np.ndarray, ...]:
    if blank:
        batch["frames"] = torch.zeros_like(batch["frames"])
    if swap is not None:
        batch["embedding"] = _swap_embeddings(batch["embedding"], *swap)
    logits_BAV = model.predict(batch, answered="last")[:, -1]
    tokens_BA = choose_tokens(logits_BAV, model.spec)
    target_BA = encode(batch["action"][:, -1], model.spec)
    scored = batch["loss_mask"][:, -1].cpu().numpy()
    columns = (batch["episode"], batch["step"], batch["action"][:, -1], target_BA, tokens_BA)
    return tuple(column.cpu().numpy()[scored] for column in columns)


def _swapped(embeddings_ND: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """(instruction embeddings, the embedding each is replaced by): the next instruction's in the store's table."""
    return torch.tensor(embeddings_ND), torch.tensor(np.roll(embeddings_ND, 1, axis=0))


def _swap_embeddings(embedding_BTD: torch.Tensor, known_ND: torch.Tensor, others_ND: torch.Tensor) -> torch.Tensor:
    flat = embedding_BTD.reshape(-1, embedding_BTD.shape[-1])
    nearest = torch.cdist(flat, known_ND.to(flat)).argmin(dim=1)
    padding = (flat == 0).all(dim=1, keepdim=True)
    return torch.where(padding, flat, others_ND.to(flat)[nearest]).reshape(embedding_BTD.shape)


# --- lazy policies and scores ---


def _lazy_tokens(name: str, predictions: Predictions, model: RT1) -> np.ndarray:
    targets = predictions.target_tokens_NA
    commonest = np.array([np.bincount(column).argmax() for column in targets.T])
    if name == "most_frequent_token":
        return np.broadcast_to(commonest, targets.shape)
    if name == "mean_action":
        mean = decode(torch.from_numpy(targets), model.spec).double().mean(dim=0)
        return np.broadcast_to(encode(mean.float(), model.spec).numpy(), targets.shape)
    previous = np.roll(targets, 1, axis=0)
    return np.where(predictions.first_N[:, None], commonest, previous)


def _correct(tokens_NA: np.ndarray, predictions: Predictions, dims: np.ndarray) -> np.ndarray:
    """float (N,): the share of the scored dimensions of each step that is right."""
    return (tokens_NA == predictions.target_tokens_NA)[:, dims].mean(axis=1)


def _per_dimension(
    predictions: Predictions, lazy: dict[str, np.ndarray], model: RT1, dataset: DatasetContract, dims: np.ndarray
) -> dict[str, Any]:
    """Per scored dimension: token accuracy and mean absolute error in the physical unit, the policy's and the lazy."""
    policies = {"policy": predictions.tokens_NA, **lazy}
    table: dict[str, Any] = {}
    for dim in dims:
        row: dict[str, Any] = {"unit": dataset.units[dim]}
        for name, tokens in policies.items():
            error = np.abs(_physical(tokens, model, dataset)[:, dim] - predictions.physical_NA[:, dim])
            right = tokens[:, dim] == predictions.target_tokens_NA[:, dim]
            row[name] = {"token_accuracy": float(right.mean()), "mean_absolute_error": float(error.mean())}
        table[model.spec.names[dim]] = row
    return table


def _physical(tokens_NA: np.ndarray, model: RT1, dataset: DatasetContract) -> np.ndarray:
    values = decode(torch.from_numpy(np.ascontiguousarray(tokens_NA)), model.spec)
    return dataset.transform.invert(values.numpy())


class _Bootstrap:
    """Means over steps with 95 % intervals from resampled episodes."""

    def __init__(self, episode_N: np.ndarray, config: EvaluationConfig) -> None:
        _, self._member_N = np.unique(episode_N, return_inverse=True)
        self._counts_E = np.bincount(self._member_N)
        num_episodes = len(self._counts_E)
        draws = np.random.default_rng(config.seed).integers(num_episodes, size=(config.bootstrap_samples, num_episodes))
        self._weights_SE = np.stack([np.bincount(draw, minlength=num_episodes) for draw in draws])

    def interval(self, value_N: np.ndarray) -> dict[str, float]:
        sums_E = np.bincount(self._member_N, weights=value_N)
        means_S = (self._weights_SE @ sums_E) / (self._weights_SE @ self._counts_E)
        low, high = np.quantile(means_S, [0.025, 0.975])
        return {"mean": float(value_N.mean()), "low": float(low), "high": float(high)}


# --- the command ---


@dataclass(frozen=True, kw_only=True)
class EvaluateArguments:
    """Flags of `rtp evaluate`."""

    model: tyro.conf.Positional[str]
    """The output folder of rtp train, one checkpoint in it, or models:/NAME@ALIAS."""
    data: tuple[str, ...]
    """Episode stores to score on."""
    split: str = "val"
    """Split of each store, where --data names a folder that holds several."""
    evaluation: Annotated[EvaluationConfig, tyro.conf.arg(name="")] = field(default_factory=EvaluationConfig)


def main(arguments: list[str]) -> dict[str, Any]:
    """Parse the command line, score, and print the tables."""
    given = parse(EvaluateArguments, arguments, prog="rtp evaluate", description=__doc__ or "")
    trained = _load(given.model)
    reports = []
    for path in given.data:
        store = EpisodeStore.open(path, split=given.split)
        reports.append(evaluate(trained.model, trained.contract, store, given.evaluation))
        print_tables(reports[-1])
    return {"model": given.model, "step": trained.step, "evaluations": reports}


def _load(model: str) -> TrainedModel:
    if not model.startswith("models:/"):
        return load_trained(model)
    from pipelines.serve import fetch_registered

    return fetch_registered(model)


def print_tables(report: dict[str, Any]) -> None:
    """Scores and errors as text."""
    console = Console()
    console = console if console.is_terminal else Console(width=110)
    console.print(f"{report['store']}: {report['steps']} steps of {report['episodes']} episodes")
    for head, rows in ((SCORE_HEAD, score_rows(report)), (DIMENSION_HEAD, dimension_rows(report))):
        table = Table(*head, box=None)
        for row in rows:
            table.add_row(*row)
        console.print(table)

"""`rtp evaluate`: how well a trained policy predicts the actions of episodes it has not seen.

Every non-terminal step of every episode is predicted from the recorded frames up to it. Scored are only dimensions that
the dataset has and that vary in it; a constant dimension would be right for free. Beside the policy stand three lazy
ones. Their constants are taken from the evaluated episodes themselves, which favours them.

- token accuracy: the share of exactly right bins; it compares only models with the same bins
- scaled error: mean absolute error in physical units, each dimension over its range in the store; it compares any two

- most frequent token: per dimension, always the commonest bin
- mean action: per dimension, always the bin of the mean
- previous action: repeat the recorded action of the step before (at an episode's first step: the commonest bin)

Intervals are 95 % bootstrap intervals over episodes, because steps of one episode are not independent.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table

from pipelines.arguments import parse
from pipelines.bootstrap import Bootstrap, Interval
from pipelines.bundle import TrainedModel
from pipelines.checkpoints import load_trained
from pipelines.comparison import labels_of, obstacle
from pipelines.models import Model
from pipelines.physical_error import ErrorScale
from pipelines.predictions import Perturbation, Predictions, predict_store
from pipelines.run_report import DIMENSION_HEAD, SCORE_HEAD, WEB_HEAD, before_rows, dimension_rows, score_rows, web_rows
from pipelines.scoreboard import WebScoreConfig, score_web
from preprocessing.episode_store import EpisodeStore
from preprocessing.web_store import WebStore, open_store
from rt_models.action_tokens import decode, encode
from rt_models.spec import Contract, DatasetContract

LAZY_POLICIES = ("most_frequent_token", "mean_action", "previous_action")
PERTURBATIONS: tuple[Perturbation, ...] = ("blank_images", "swapped_instructions")


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
    web: WebScoreConfig = field(default_factory=WebScoreConfig)

    def bootstrap(self) -> Bootstrap:
        return Bootstrap(samples=self.bootstrap_samples, seed=self.seed)


def evaluate(model: Model, contract: Contract, store: EpisodeStore, config: EvaluationConfig) -> dict[str, Any]:
    """Scores of `model` on `store` beside the lazy policies, as plain data for JSON.

    Raises ContractMismatch where the store does not hold what the model was trained on.
    """
    contract.require_readable(store.contract, where=store.root)
    dataset = contract.dataset(store.contract.datasets[0].name)
    predictions = predict_store(model, contract, store, batch=config.batch)
    dims, scale = scored_dimensions(dataset, predictions), ErrorScale.of(store.contract)
    lazy = {name: _lazy_tokens(name, predictions, model) for name in LAZY_POLICIES}
    interval = config.bootstrap().over(predictions.episode_N)
    correct = {name: _correct(tokens, predictions, dims) for name, tokens in lazy.items()}
    own = _correct(predictions.tokens_NA, predictions, dims)

    def scaled_error(tokens_NA: np.ndarray) -> Interval:
        return interval(scale.errors(_physical(tokens_NA, model, dataset), predictions.physical_NA))

    names = model.spec.names
    report: dict[str, Any] = {
        "store": store.root,
        "contract": contract.id,
        "episodes": len(np.unique(predictions.episode_N)),
        "steps": len(predictions.episode_N),
        "dimensions": [names[dim] for dim in dims],
        "labels": labels_of(model.spec, dataset, dims.tolist()),
        "token_accuracy": interval(own),
        "scaled_error": scaled_error(predictions.tokens_NA),
        "scaled_error_lazy": {name: scaled_error(tokens) for name, tokens in lazy.items()},
        "ranges": {names[dim]: float(width) for dim, width in zip(scale.dims, scale.ranges_D, strict=True)},
        "lazy": {name: interval(value) for name, value in correct.items()},
        "margin": {name: interval(own - value) for name, value in correct.items()},
        "per_dimension": _per_dimension(predictions, lazy, model, dataset, dims),
    }
    if predictions.valid_mass_NK is not None and predictions.invalid_NK is not None:
        report["decoding"] = {
            "valid_token_mass": float(predictions.valid_mass_NK.mean()),
            "invalid_rate_without_mask": float(predictions.invalid_NK.mean()),
        }
    if config.perturbations:
        for kind in PERTURBATIONS:
            other = predict_store(model, contract, store, batch=config.batch, perturbation=kind)
            fallen = _correct(other.tokens_NA, predictions, dims)
            scores = {"token_accuracy": interval(fallen), "fall": interval(own - fallen)}
            report.setdefault("perturbed", {})[kind] = scores | {"scaled_error": scaled_error(other.tokens_NA)}
    return report


def scored_dimensions(dataset: DatasetContract, predictions: Predictions) -> np.ndarray:
    """int64: the dimensions that the dataset has and that vary, in training and in the evaluated episodes."""
    varies = dataset.statistics.varies() & (np.ptp(predictions.target_tokens_NA, axis=0) > 0)
    dims = np.flatnonzero(varies & np.array(dataset.action_mask))
    if not len(dims):
        raise ValueError(f"no action dimension of {dataset.name} varies in these episodes: there is nothing to score")
    return dims


# --- lazy policies and scores ---


def _lazy_tokens(name: str, predictions: Predictions, model: Model) -> np.ndarray:
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
    predictions: Predictions, lazy: dict[str, np.ndarray], model: Model, dataset: DatasetContract, dims: np.ndarray
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


def _physical(tokens_NA: np.ndarray, model: Model, dataset: DatasetContract) -> np.ndarray:
    values = decode(torch.from_numpy(np.ascontiguousarray(tokens_NA)), model.spec)
    return dataset.transform.invert(values.numpy())


# --- the command ---


@dataclass(frozen=True, kw_only=True)
class EvaluateArguments:
    """Flags of `rtp evaluate`."""

    model: tyro.conf.Positional[str]
    """The output folder of rtp train, one checkpoint in it, or models:/NAME@ALIAS."""
    data: tuple[str, ...]
    """Stores to score on: of episodes, and for RT-2 of image-text examples too."""
    before: str | None = None
    """An earlier model, scored on the same stores and printed beside: what was learnt since, and what is forgotten."""
    split: str = "val"
    """Split of each store, where --data names a folder that holds several."""
    evaluation: Annotated[EvaluationConfig, tyro.conf.arg(name="")] = field(default_factory=EvaluationConfig)


def main(arguments: list[str]) -> dict[str, Any]:
    """Parse the command line, score, and print the tables."""
    given = parse(EvaluateArguments, arguments, prog="rtp evaluate", description=__doc__ or "")
    trained = _load(given.model)
    earlier = None if given.before is None else _load(given.before)
    reports = []
    for path in given.data:
        store = open_store(path, split=given.split)
        report = score(trained, store, given.evaluation)
        if earlier is not None:
            report["before"] = compared(
                report, score(earlier, store, given.evaluation), me=given.model, them=given.before
            )
        reports.append(report)
        print_tables(report)
    return {"model": given.model, "step": trained.step, "evaluations": reports}


def score(trained: TrainedModel, store: EpisodeStore | WebStore, config: EvaluationConfig) -> dict[str, Any]:
    """The report of a model on a store of either kind."""
    if isinstance(store, EpisodeStore):
        return evaluate(trained.model, trained.contract, store, config)
    return score_web(
        trained.model, trained.contract, store, config.web, batch=config.batch, bootstrap=config.bootstrap()
    )


def compared(now: dict[str, Any], before: dict[str, Any], *, me: str, them: str | None) -> dict[str, Any]:
    """The scores of `before` by which two models are compared; those that do not compare are left out, and why stands
    under "not_compared"."""
    scores, refused = headlines(before), {}
    for name in list(scores):
        if (reason := obstacle(name, now, before, me=me, them=them or "the earlier model")) is not None:
            del scores[name]
            refused[name] = reason
    return scores | ({"not_compared": refused} if refused else {})


def headlines(report: dict[str, Any]) -> dict[str, Any]:
    """The scores of a report by which models are compared."""
    found = {key: report[key] for key in ("scaled_error", "token_accuracy", "vqa_accuracy") if key in report}
    return found | ({"cider_d": report["captions"]["cider_d"]} if "captions" in report else {})


def _load(model: str) -> TrainedModel:
    if not model.startswith("models:/"):
        return load_trained(model)
    from pipelines.serve import fetch_registered

    return fetch_registered(model)


def print_tables(report: dict[str, Any]) -> None:
    """Scores and errors as text."""
    console = Console()
    console = console if console.is_terminal else Console(width=110)
    if "episodes" in report:
        console.print(f"{report['store']}: {report['steps']} steps of {report['episodes']} episodes")
        _print_table(console, SCORE_HEAD, score_rows(report))
        _print_table(console, DIMENSION_HEAD, dimension_rows(report))
    else:
        console.print(f"{report['store']}: {report['examples']} image-text examples")
        _print_table(console, WEB_HEAD, web_rows(report))
    if "decoding" in report:
        mass, rate = report["decoding"]["valid_token_mass"], report["decoding"]["invalid_rate_without_mask"]
        console.print(f"probability of valid action tokens {mass:.4f}; invalid without the mask {100 * rate:.2f} %")
    if "before" in report:
        _print_table(console, ["", "before", "now"], before_rows(report["before"], headlines(report)))
        for reason in report["before"].get("not_compared", {}).values():
            console.print(reason, highlight=False)


def _print_table(console: Console, head: list[str], rows: list[list[str]]) -> None:
    table = Table(*head, box=None)
    for row in rows:
        table.add_row(*row)
    console.print(table)

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

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro

from pipelines.arguments import parse
from pipelines.bootstrap import Bootstrap, Interval
from pipelines.bundle import TrainedModel
from pipelines.checkpoints import load_trained
from pipelines.comparison import compared, labels_of
from pipelines.counting import Count, counting, uncounted
from pipelines.evaluation_record import FOLDER, file_name, home_of, is_seen, save, track
from pipelines.evaluation_tables import print_tables
from pipelines.models import Model
from pipelines.next_step import print_next
from pipelines.physical_error import ErrorScale
from pipelines.prediction_view import predicted_episodes
from pipelines.predictions import Perturbation, Predictions, predict_store
from pipelines.run_report import evaluation_page, write_page
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

    def passes(self, store: EpisodeStore | WebStore) -> int:
        """Rows, or answers, that an evaluation on `store` takes."""
        if isinstance(store, WebStore):
            return 2 * min(self.web.examples, store.num_examples)
        return sum(shard.rows for shard in store.shards) * (1 + len(PERTURBATIONS) * self.perturbations)


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """A report as plain data for JSON, and of a store of robot episodes what it was made of."""

    report: dict[str, Any]
    predictions: Predictions | None = None
    predicted_NA: np.ndarray | None = None
    """The policy's actions in physical units."""


def evaluate(model: Model, contract: Contract, store: EpisodeStore, config: EvaluationConfig) -> dict[str, Any]:
    """Scores of `model` on `store` beside the lazy policies, as plain data for JSON.

    Raises ContractMismatch where the store does not hold what the model was trained on.
    """
    return evaluation_of(model, contract, store, config).report


def evaluation_of(
    model: Model, contract: Contract, store: EpisodeStore, config: EvaluationConfig, counted: Count = uncounted
) -> Evaluation:
    """The same with the predictions; `counted` is told of every row of each pass over the store."""
    contract.require_readable(store.contract, where=store.root)
    dataset = contract.dataset(store.contract.datasets[0].name)
    predictions = predict_store(model, contract, store, batch=config.batch, counted=counted)
    dims, scale = scored_dimensions(dataset, predictions), ErrorScale.of(store.contract)
    lazy = {name: _lazy_tokens(name, predictions, model) for name in LAZY_POLICIES}
    interval = config.bootstrap().over(predictions.episode_N)
    correct = {name: correct_share(tokens, predictions, dims) for name, tokens in lazy.items()}
    own = correct_share(predictions.tokens_NA, predictions, dims)

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
            other = predict_store(model, contract, store, batch=config.batch, perturbation=kind, counted=counted)
            fallen = correct_share(other.tokens_NA, predictions, dims)
            scores = {"token_accuracy": interval(fallen), "fall": interval(own - fallen)}
            report.setdefault("perturbed", {})[kind] = scores | {"scaled_error": scaled_error(other.tokens_NA)}
    predicted_NA = _physical(predictions.tokens_NA, model, dataset)
    return Evaluation(report=report, predictions=predictions, predicted_NA=predicted_NA)


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


def correct_share(tokens_NA: np.ndarray, predictions: Predictions, dims: np.ndarray) -> np.ndarray:
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
    return dataset.completed(dataset.transform.invert(values.numpy()), model.spec)


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
    output: str | None = None
    """File to save the report to as JSON, local or s3://, gs://; default: evaluations/ beside the run's checkpoints."""
    html: str | None = None
    """File to write a self-contained page to: the scores, and predicted beside recorded actions under their frames."""
    episodes: int = 6
    """Episodes of each store drawn on the page."""
    evaluation: Annotated[EvaluationConfig, tyro.conf.arg(name="")] = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        if self.html is not None and "://" in self.html:
            raise ValueError(f"--html {self.html} must be a local file: copy the page there afterwards")
        if self.episodes < 0:
            raise ValueError(f"--episodes must be 0 or more, got {self.episodes}")


def main(arguments: list[str]) -> dict[str, Any]:
    """Parse the command line, score, print the tables, and save and track what came of it."""
    given = parse(EvaluateArguments, arguments, prog="rtp evaluate", description=__doc__ or "")
    for path in (given.output, given.html):
        _require_writable(path)
    stores = [open_store(path, split=given.split) for path in given.data]
    trained = _load(given.model)
    earlier = None if given.before is None else _load(given.before)
    evaluations = []
    for store in stores:
        found = _scored(trained, store, given.evaluation, f"evaluate {store.manifest['dataset']}")
        named = {"dataset": store.manifest["dataset"], "split": store.manifest["split"]}
        found.report.update(named, seen_in_training=is_seen(trained, store))
        if earlier is not None:
            before = _scored(earlier, store, given.evaluation, "evaluate the earlier model").report
            found.report["before"] = compared(found.report, before, me=given.model, them=given.before or "")
        evaluations.append(found)
        print_tables(found.report)
        if found.report["seen_in_training"]:
            print(f"{store.root} is among the training stores of this model: {_SEEN}")
    reports = [found.report for found in evaluations]
    result = {"model": given.model, "step": trained.step, "evaluations": reports}
    result |= _kept(given, trained, stores, result)
    if given.html is not None:
        _write_html(given, stores, evaluations, result)
    if command := next_command(given, trained, reports):
        print_next(*command)
    return result


_SEEN = "these scores say what it has by heart, not what it does on new episodes"


def _scored(trained: TrainedModel, store: EpisodeStore | WebStore, config: EvaluationConfig, what: str) -> Evaluation:
    """The evaluation of a model on a store of either kind, with its progress shown."""
    with counting(what, config.passes(store)) as counted:
        if isinstance(store, EpisodeStore):
            return evaluation_of(trained.model, trained.contract, store, config, counted)
        return Evaluation(report=_web_report(trained, store, config, counted))


def score(trained: TrainedModel, store: EpisodeStore | WebStore, config: EvaluationConfig) -> dict[str, Any]:
    """The report of a model on a store of either kind."""
    if isinstance(store, EpisodeStore):
        return evaluate(trained.model, trained.contract, store, config)
    return _web_report(trained, store, config, uncounted)


def _web_report(trained: TrainedModel, store: WebStore, config: EvaluationConfig, counted: Count) -> dict[str, Any]:
    model, contract, bootstrap = trained.model, trained.contract, config.bootstrap()
    return score_web(model, contract, store, config.web, batch=config.batch, bootstrap=bootstrap, counted=counted)


def _load(model: str) -> TrainedModel:
    if not model.startswith("models:/"):
        return load_trained(model)
    from pipelines.serve import fetch_registered

    return fetch_registered(model)


# --- what is left behind ---


def _require_writable(path: str | None) -> None:
    """Raise OSError before hours of work, not after them, where a local file cannot be written."""
    if path is not None and "://" not in path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        if Path(path).is_dir() or not os.access(Path(path).parent, os.W_OK):
            raise OSError(f"{path} cannot be written: give a file in a folder that you may write in")


def _kept(
    given: EvaluateArguments, trained: TrainedModel, stores: list[EpisodeStore | WebStore], result: dict[str, Any]
) -> dict[str, Any]:
    """Save the result as a file and in MLflow; where."""
    home, name = home_of(given.model), file_name(trained.step, stores)
    saved = save(result, given.output or f"{home}/{FOLDER}/{name}", asked=given.output is not None)
    run_id = track(result, home=home, run_id=trained.metadata.get("mlflow_run_id"), name=name)
    for kept in ([f"report: {saved}"] if saved else []) + ([f"MLflow: run {run_id}"] if run_id else []):
        print(kept)
    return {"report": saved, "mlflow_run_id": run_id}


def _write_html(
    given: EvaluateArguments,
    stores: list[EpisodeStore | WebStore],
    evaluations: list[Evaluation],
    result: dict[str, Any],
) -> None:
    facts = {"model": given.model, "step": result["step"], "contract": evaluations[0].report["contract"]}
    drawn = [(e.report, pictures(e, store, limit=given.episodes)) for e, store in zip(evaluations, stores, strict=True)]
    write_page(Path(given.html or ""), evaluation_page(f"Evaluation of {given.model}", facts, drawn))
    print(f"page: {given.html}")


def pictures(evaluation: Evaluation, store: EpisodeStore | WebStore, *, limit: int) -> str:
    """Predicted beside recorded actions of some episodes, as HTML; of image-text examples there are none."""
    if not isinstance(store, EpisodeStore) or evaluation.predictions is None or evaluation.predicted_NA is None:
        return ""
    names = evaluation.report["dimensions"]
    return predicted_episodes(store, evaluation.predictions, evaluation.predicted_NA, names, limit=limit)


def next_command(given: EvaluateArguments, trained: TrainedModel, reports: list[dict[str, Any]]) -> list[str]:
    """What to do with these scores, without rtp; empty for weights that are bound to no data."""
    if given.model.startswith("models:/"):
        return ["serve", given.model]
    if not trained.metadata.get("stores"):
        return []
    name = str((trained.metadata.get("experiment") or {}).get("name") or "my-policy")
    command = ["register", given.model, "--name", name]
    fair = [report["store"] for report in reports if "scaled_error" in report and not report["seen_in_training"]]
    return [*command, "--alias", "champion", "--data", *fair] if fair else command

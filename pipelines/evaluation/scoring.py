"""Scores of a trained policy on a store, beside the baselines; `rtp evaluate` says what each means."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from pipelines.evaluation.baselines import BASELINES, baseline_tokens
from pipelines.evaluation.comparison import labels_of
from pipelines.evaluation.config import EvaluationConfig
from pipelines.evaluation.own_space import own_space_errors
from pipelines.evaluation.physical_error import ErrorScale
from pipelines.evaluation.predictions import Perturbation, Predictions, predict_store
from pipelines.evaluation.report import (
    ActionScore,
    Decoding,
    DimensionScores,
    EpisodeReport,
    EvaluationReport,
    PerturbedScores,
    WebReport,
)
from pipelines.evaluation.statistics import Interval
from pipelines.evaluation.web_scores import score_web
from pipelines.families.models import Model, family_of
from pipelines.publishing.folder import TrainedModel
from pipelines.terminal.progress_bar import Count, uncounted
from pipelines.training.data import as_trained
from preprocessing.loading.mapped_store import MappedStore
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.web_store import WebStore
from rt_models.action_tokens import decode
from rt_models.control.action import ActionOutlet
from rt_models.spec import Contract, DatasetContract

PERTURBATIONS: tuple[Perturbation, ...] = ("blank_images", "swapped_instructions")
_OF_THE_STATE: tuple[Perturbation, ...] = ("frozen_state",)  # of a model that reads one


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """A report, and for a store of robot episodes the predictions it was made from."""

    report: EvaluationReport
    predictions: Predictions | None = None
    predicted_NA: np.ndarray | None = None
    """The policy's actions in physical units."""


def evaluate(model: Model, contract: Contract, store: EpisodeStore, config: EvaluationConfig) -> EpisodeReport:
    """Scores of `model` on `store` beside the baselines.

    Raises ContractMismatch if the store does not hold what the model was trained on.
    """
    report = evaluation_of(model, contract, store, config).report
    assert isinstance(report, EpisodeReport)
    return report


def evaluation_of(
    model: Model, contract: Contract, store: EpisodeStore, config: EvaluationConfig, counted: Count = uncounted
) -> Evaluation:
    """The same with the predictions; `counted` is called with the rows of each batch of each pass over the store.

    The model computes where `config.compute` says, and lies where it lay when this is over.
    """
    contract.require_readable(store.contract, where=store.root)
    with config.compute.at_work(model):
        return _evaluated(model, contract, store, config, counted)


def _evaluated(
    model: Model, contract: Contract, store: EpisodeStore, config: EvaluationConfig, counted: Count
) -> Evaluation:
    dataset = contract.dataset(store.name)
    answered_dims = family_of(model).answered_dims(model.config)
    answered = dataset.answered_in(answered_dims)  # the policy's side; the baselines answer in all of the dataset's
    outlet = ActionOutlet(model.spec, dataset, answered_dims)
    predictions = as_acted(predict_store(model, contract, store, batch=config.batch, counted=counted), outlet)
    dims = scored_dimensions(dataset, predictions)
    dims = dims[np.isfinite(answered.completed(np.zeros(model.spec.size), model.spec))[dims]]  # NaN is no answer
    scale = _error_scale(store, contract)
    lazy = {name: baseline_tokens(name, predictions, model) for name in BASELINES}
    interval = config.bootstrap().over(predictions.episode_N)
    correct = {name: correct_share(tokens, predictions, dims) for name, tokens in lazy.items()}
    own = correct_share(predictions.tokens_NA, predictions, dims)

    def scaled_error(tokens_NA: np.ndarray, side: DatasetContract = answered) -> Interval:
        return interval(scale.errors(_physical(tokens_NA, model, side), predictions.physical_NA))

    def perturbed(kind: Perturbation) -> PerturbedScores:
        other = predict_store(model, contract, store, batch=config.batch, perturbation=kind, counted=counted)
        other = as_acted(other, outlet)
        right = correct_share(other.tokens_NA, predictions, dims)
        return PerturbedScores(
            token_accuracy=interval(right), fall=interval(own - right), scaled_error=scaled_error(other.tokens_NA)
        )

    names = model.spec.names
    predicted_NA = _physical(predictions.tokens_NA, model, answered)
    answers = {"policy": predicted_NA, **{name: _physical(tokens, model, dataset) for name, tokens in lazy.items()}}
    report = EpisodeReport(
        store=store.root,
        contract=contract.id,
        episodes=len(np.unique(predictions.episode_N)),
        steps=len(predictions.episode_N),
        dimensions=tuple(names[dim] for dim in dims),
        labels=labels_of(model.spec, dataset, dims.tolist()),
        token_accuracy=interval(own),
        scaled_error=scaled_error(predictions.tokens_NA),
        scaled_error_lazy={name: scaled_error(tokens, dataset) for name, tokens in lazy.items()},
        ranges={names[dim]: float(width) for dim, width in zip(scale.dims, scale.ranges_D, strict=True)},
        lazy={name: interval(value) for name, value in correct.items()},
        margin={name: interval(own - value) for name, value in correct.items()},
        per_dimension=_per_dimension(predictions, lazy, model, answered, dataset, dims),
        decoding=_decoding(predictions),
        perturbed={kind: perturbed(kind) for kind in perturbations_of(contract)} if config.perturbations else None,
        own_space=own_space_errors(dataset, model.spec, predictions.physical_NA, answers),
    )
    return Evaluation(report=report, predictions=predictions, predicted_NA=predicted_NA)


def perturbations_of(contract: Contract) -> tuple[Perturbation, ...]:
    """Those of the inputs that a model under this contract reads."""
    return (*PERTURBATIONS, *(_OF_THE_STATE if contract.state else ()))


def _error_scale(store: EpisodeStore, contract: Contract) -> ErrorScale:
    """From the store's own statistics, in the space that the model was trained in."""
    seen = as_trained(store, contract) if contract.dataset(store.name).own else store
    return ErrorScale.of((seen.with_statistics() if isinstance(seen, MappedStore) else seen).contract)


def _decoding(predictions: Predictions) -> Decoding | None:
    if predictions.valid_mass_NK is None or predictions.invalid_NK is None:
        return None
    return Decoding(
        valid_token_mass=float(predictions.valid_mass_NK.mean()),
        invalid_rate_without_mask=float(predictions.invalid_NK.mean()),
    )


def as_acted(predictions: Predictions, outlet: ActionOutlet) -> Predictions:
    """With the tokens that a policy answers: the neutral ones in absent dimensions."""
    return replace(predictions, tokens_NA=outlet.tokens(torch.from_numpy(predictions.tokens_NA)).numpy())


def scored_dimensions(dataset: DatasetContract, predictions: Predictions) -> np.ndarray:
    """int64: the dimensions that the dataset has and that vary, in training and in the evaluated episodes."""
    varies = dataset.statistics.varies() & (np.ptp(predictions.target_tokens_NA, axis=0) > 0)
    dims = np.flatnonzero(varies & np.array(dataset.action_mask))
    if not len(dims):
        raise ValueError(f"no action dimension of {dataset.name} varies in these episodes: there is nothing to score")
    return dims


def correct_share(tokens_NA: np.ndarray, predictions: Predictions, dims: np.ndarray) -> np.ndarray:
    """float (N,): the share of the scored dimensions of each step that is right."""
    return (tokens_NA == predictions.target_tokens_NA)[:, dims].mean(axis=1)


def _per_dimension(
    predictions: Predictions,
    lazy: dict[str, np.ndarray],
    model: Model,
    answered: DatasetContract,
    dataset: DatasetContract,
    dims: np.ndarray,
) -> dict[str, DimensionScores]:
    """By scored dimension: the scores of the model, whose side is `answered`, and of the baselines."""
    policies = {"policy": predictions.tokens_NA, **lazy}
    table = {}
    for dim in dims:
        scores = {}
        for name, tokens in policies.items():
            side = answered if name == "policy" else dataset
            error = np.abs(_physical(tokens, model, side)[:, dim] - predictions.physical_NA[:, dim])
            right = tokens[:, dim] == predictions.target_tokens_NA[:, dim]
            scores[name] = ActionScore(token_accuracy=float(right.mean()), mean_absolute_error=float(error.mean()))
        table[model.spec.names[dim]] = DimensionScores(unit=dataset.units[dim], policies=scores)
    return table


def _physical(tokens_NA: np.ndarray, model: Model, dataset: DatasetContract) -> np.ndarray:
    values = decode(torch.from_numpy(np.ascontiguousarray(tokens_NA)), model.spec)
    return dataset.completed(dataset.transform.invert(values.numpy()), model.spec)


def score(trained: TrainedModel, store: EpisodeStore | WebStore, config: EvaluationConfig) -> EvaluationReport:
    """The report of a model on a store of either kind."""
    if isinstance(store, EpisodeStore):
        return evaluate(trained.model, trained.contract, store, config)
    return web_report(trained, store, config, uncounted)


def web_report(trained: TrainedModel, store: WebStore, config: EvaluationConfig, counted: Count) -> WebReport:
    model, contract, bootstrap = trained.model, trained.contract, config.bootstrap()
    with config.compute.at_work(model):
        return score_web(model, contract, store, config.web, batch=config.batch, bootstrap=bootstrap, counted=counted)

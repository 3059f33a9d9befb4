"""Scores of a trained policy on a store, beside the baselines; `rtp evaluate` says what each means."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from pipelines.evaluation.baselines import BASELINES, baseline_tokens
from pipelines.evaluation.comparison import labels_of
from pipelines.evaluation.config import EvaluationConfig
from pipelines.evaluation.diagnosis import diagnose
from pipelines.evaluation.own_space import own_space_errors
from pipelines.evaluation.perturbations import GRADED
from pipelines.evaluation.physical_error import ErrorScale
from pipelines.evaluation.predictions import Perturbation, Predictions, instructions_of, predict_store, told
from pipelines.evaluation.report import (
    ActionScore,
    Decoding,
    DimensionScores,
    EpisodeReport,
    EvaluationReport,
    PerturbedScores,
    SuiteScores,
    WebReport,
)
from pipelines.evaluation.statistics import Interval
from pipelines.evaluation.suites import members, read_suites
from pipelines.evaluation.web_scores import score_web
from pipelines.evaluation.wordings import most_wordings, read_wordings, require_known, reworded
from pipelines.families.base import TEMPERATURES, ChangeFrames
from pipelines.families.models import Model, family_of
from pipelines.publishing.folder import TrainedModel
from pipelines.terminal.progress_bar import Count, uncounted
from pipelines.training.data import as_trained, require_readable
from preprocessing.loading.mapped_store import MappedStore
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.web_store import WebStore
from rt_models.action_tokens import decode
from rt_models.control.action import ActionOutlet
from rt_models.spec import Contract, DatasetContract

log = logging.getLogger(__name__)

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
    require_readable(contract, store)
    with config.compute.at_work(model):
        return _evaluated(model, contract, store, config, counted)


def _evaluated(
    model: Model, contract: Contract, store: EpisodeStore, config: EvaluationConfig, counted: Count
) -> Evaluation:
    steps = _ScoredSteps.of(model, contract, store, config, counted)
    predictions, dims, dataset, interval = steps.predictions, steps.dims, steps.dataset, steps.interval
    lazy = {name: baseline_tokens(name, predictions, model) for name in BASELINES}
    correct = {name: correct_share(tokens, predictions, dims) for name, tokens in lazy.items()}
    own = correct_share(predictions.tokens_NA, predictions, dims)
    names, scale = model.spec.names, steps.scale
    predicted_NA = _physical(predictions.tokens_NA, model, steps.answered)
    asked = perturbations_of(model, contract, store) if config.perturbations else None
    answers = {"policy": predicted_NA, **{name: _physical(tokens, model, dataset) for name, tokens in lazy.items()}}
    report = EpisodeReport(
        store=store.root,
        contract=contract.id,
        episodes=len(np.unique(predictions.episode_N)),
        steps=len(predictions.episode_N),
        dimensions=tuple(names[dim] for dim in dims),
        labels=labels_of(model.spec, dataset, dims.tolist()),
        token_accuracy=interval(own),
        scaled_error=interval(steps.errors(predictions.tokens_NA)),
        scaled_error_lazy={name: interval(steps.errors(tokens, dataset)) for name, tokens in lazy.items()},
        ranges={names[dim]: float(width) for dim, width in zip(scale.dims, scale.ranges_D, strict=True)},
        lazy={name: interval(value) for name, value in correct.items()},
        margin={name: interval(own - value) for name, value in correct.items()},
        per_dimension=_per_dimension(predictions, lazy, model, steps.answered, dataset, dims),
        decoding=_decoding(predictions),
        perturbed=None if asked is None else {kind: steps.perturbed(kind) for kind in asked},
        not_measured=_not_measured(model, store) if config.perturbations else None,
        own_space=own_space_errors(dataset, model.spec, predictions.physical_NA, answers),
        negative_log_likelihood=_likelihood(predictions, dims, interval),
        diagnosis=diagnose(predictions, predicted_NA, model.spec, dims),
        robustness=steps.robustness() if config.robustness else None,
        suites=steps.suites() if config.suites else None,
    )
    return Evaluation(report=report, predictions=predictions, predicted_NA=predicted_NA)


def perturbations_of(model: Model, contract: Contract, store: EpisodeStore) -> tuple[Perturbation, ...]:
    """Those of the inputs that a model under this contract reads, and that `store` can show."""
    asked: tuple[Perturbation, ...] = (*PERTURBATIONS, *(_OF_THE_STATE if contract.state else ()))
    left_out = _not_measured(model, store) or {}
    return tuple(kind for kind in asked if kind not in left_out)


def _not_measured(model: Model, store: EpisodeStore) -> dict[str, str] | None:
    """By perturbation that `store` cannot show, the reason."""
    if not family_of(model).reads_object_masks(model.config) or len(verbs := told(model, store)) > 1:
        return None
    only = ", ".join(map(repr, verbs))
    return {
        "swapped_instructions": "Swapped instructions are not scored: the model is told verbs alone, and the store has "
        f"one, {only}."
    }


@dataclass(frozen=True, kw_only=True, eq=False)
class _ScoredSteps:
    """A model's predictions on a store, and what scores them. `answered` is the policy's side of the dataset; the
    baselines answer in all of the dataset's dimensions."""

    model: Model
    contract: Contract
    store: EpisodeStore
    config: EvaluationConfig
    counted: Count
    dataset: DatasetContract
    answered: DatasetContract
    outlet: ActionOutlet
    predictions: Predictions
    dims: np.ndarray
    scale: ErrorScale
    interval: Callable[[np.ndarray], Interval]

    @staticmethod
    def of(
        model: Model, contract: Contract, store: EpisodeStore, config: EvaluationConfig, counted: Count
    ) -> _ScoredSteps:
        dataset, answered_dims = contract.dataset(store.name), family_of(model).answered_dims(model.config)
        answered, outlet = dataset.answered_in(answered_dims), ActionOutlet(model.spec, dataset, answered_dims)
        predictions = as_acted(predict_store(model, contract, store, batch=config.batch, counted=counted), outlet)
        dims = scored_dimensions(dataset, predictions)
        is_answered_A = np.isfinite(answered.completed(np.zeros(model.spec.size), model.spec))  # NaN is no answer
        return _ScoredSteps(
            model=model,
            contract=contract,
            store=store,
            config=config,
            counted=counted,
            dataset=dataset,
            answered=answered,
            outlet=outlet,
            predictions=predictions,
            dims=dims[is_answered_A[dims]],
            scale=_error_scale(store, contract),
            interval=config.bootstrap().over(predictions.episode_N),
        )

    def errors(self, tokens_NA: np.ndarray, side: DatasetContract | None = None) -> np.ndarray:
        """float64 (N,): the scaled error of each step, answered by the policy or by `side`."""
        return self.scale.errors(_physical(tokens_NA, self.model, side or self.answered), self.predictions.physical_NA)

    def perturbed(
        self,
        kind: Perturbation = "none",
        *,
        change_frames: ChangeFrames | None = None,
        rewording: Mapping[str, str] | None = None,
    ) -> PerturbedScores:
        other = predict_store(
            self.model,
            self.contract,
            self.store,
            batch=self.config.batch,
            perturbation=kind,
            change_frames=change_frames,
            rewording=rewording,
            counted=self.counted,
        )
        tokens_NA = as_acted(other, self.outlet).tokens_NA
        own = correct_share(self.predictions.tokens_NA, self.predictions, self.dims)
        right = correct_share(tokens_NA, self.predictions, self.dims)
        return PerturbedScores(
            token_accuracy=self.interval(right),
            fall=self.interval(own - right),
            scaled_error=self.interval(self.errors(tokens_NA)),
        )

    def robustness(self) -> dict[str, dict[str, PerturbedScores]]:
        """By kind of perturbation and strength, then by the number of the other words."""
        wordings = read_wordings(self.config.paraphrases)
        require_known(wordings, told(self.model, self.store), f"the instructions of {self.store.root}")
        graded = {
            kind: {str(strength): self.perturbed(change_frames=change) for strength, change in enumerate(changes, 1)}
            for kind, changes in GRADED.items()
        }
        if wordings:
            numbers = range(most_wordings(wordings))
            graded["paraphrase"] = {str(n + 1): self.perturbed(rewording=reworded(wordings, n)) for n in numbers}
        return graded

    def suites(self) -> dict[str, SuiteScores]:
        tokens_NA, bootstrap = self.predictions.tokens_NA, self.config.bootstrap()
        right_N, error_N = correct_share(tokens_NA, self.predictions, self.dims), self.errors(tokens_NA)
        found = {}
        suites = read_suites(self.config.suites)
        declared = members(suites, instructions_of(self.store), self.store.name)
        for name, member_E in declared.items():
            member_N = member_E[self.predictions.episode_N]
            episode_M = self.predictions.episode_N[member_N]
            if not len(episode_M):  # all of their steps are terminal
                continue
            interval = bootstrap.over(episode_M)
            found[name] = SuiteScores(
                episodes=len(np.unique(episode_M)),
                steps=len(episode_M),
                token_accuracy=interval(right_N[member_N]),
                scaled_error=interval(error_N[member_N]),
            )
        for name in suites.keys() - found.keys():
            log.warning("no scored episode of %s belongs to the suite %r", self.store.root, name)
        return found


def _error_scale(store: EpisodeStore, contract: Contract) -> ErrorScale:
    """From the store's own statistics, in the space that the model was trained in."""
    seen = as_trained(store, contract) if contract.dataset(store.name).own else store
    return ErrorScale.of((seen.with_statistics() if isinstance(seen, MappedStore) else seen).contract)


def _likelihood(
    predictions: Predictions, dims: np.ndarray, interval: Callable[[np.ndarray], Interval]
) -> Interval | None:
    likelihood_NAJ = predictions.log_likelihood_NAJ
    return None if likelihood_NAJ is None else interval(-likelihood_NAJ[:, dims, TEMPERATURES.index(1.0)].mean(axis=1))


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

"""One model on several stores: scores with their progress shown, and what they leave behind: file, MLflow, page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypedDict

from pipelines.evaluation.config import EvaluationConfig
from pipelines.evaluation.off_policy_store import off_policy_report
from pipelines.evaluation.perturbations import GRADED
from pipelines.evaluation.predictions import predict_store
from pipelines.evaluation.record import EvaluatedModel, file_name, home_of, keep, metrics_of
from pipelines.evaluation.report import EpisodeReport, EvaluationReport
from pipelines.evaluation.scoring import Evaluation, evaluation_of, perturbations_of, web_report
from pipelines.evaluation.wordings import most_wordings, read_wordings
from pipelines.families.models import family_of
from pipelines.publishing.folder import TrainedModel
from pipelines.publishing.registered import is_registered
from pipelines.reports.attention_view import MapsOfRows
from pipelines.reports.prediction_view import bin_confusions, predicted_episodes
from pipelines.reports.rerun_recording import write_recording
from pipelines.reports.run_page import evaluation_page
from pipelines.terminal.atomic_files import write_whole
from pipelines.terminal.progress_bar import counting
from pipelines.training.data import as_trained
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.lineage import FINGERPRINT_DIGITS
from preprocessing.store.web_store import WebStore


def scored(trained: TrainedModel, store: EpisodeStore | WebStore, config: EvaluationConfig, what: str) -> Evaluation:
    """The evaluation of a model on a store of either kind, with its progress shown."""
    with counting(what, passes(store, config, trained)) as counted:
        if isinstance(store, EpisodeStore):
            return evaluation_of(trained.model, trained.contract, store, config, counted)
        return Evaluation(report=web_report(trained, store, config, counted))


class Named(TypedDict):
    """By what a report tells its store from others."""

    dataset: str
    split: str
    manifest: str


def named(store: EpisodeStore | WebStore) -> Named:
    """What a report says of its store beside the path."""
    manifest = store.manifest_sha256[:FINGERPRINT_DIGITS]
    return Named(dataset=store.name, split=store.manifest.split, manifest=manifest)


def off_policy(
    evaluation: Evaluation, behaviour: TrainedModel | None, store: EpisodeStore | WebStore, config: EvaluationConfig
) -> EvaluationReport:
    """The report with estimates of the policy's return, from a store that has rewards."""
    assert isinstance(store, EpisodeStore)
    report, predictions, predicted_NA = evaluation.report, evaluation.predictions, evaluation.predicted_NA
    assert isinstance(report, EpisodeReport) and predictions is not None and predicted_NA is not None
    theirs = None
    if behaviour is not None:
        with config.compute.at_work(behaviour.model), counting("predict as the behaviour", store.num_steps) as counted:
            theirs = predict_store(behaviour.model, behaviour.contract, store, batch=config.batch, counted=counted)
    estimates = off_policy_report(store, predictions, predicted_NA, theirs, config.bootstrap())
    return replace(report, off_policy=estimates)


def passes(store: EpisodeStore | WebStore, config: EvaluationConfig, trained: TrainedModel) -> int:
    """Rows, or answers, that an evaluation on `store` of this model takes."""
    if isinstance(store, WebStore):
        return 2 * min(config.web.examples, store.num_examples)
    graded, wordings = sum(map(len, GRADED.values())), read_wordings(config.paraphrases)
    others = graded + (most_wordings(wordings) if wordings else 0)
    perturbed = len(perturbations_of(trained.model, trained.contract, store))
    return store.num_steps * (1 + perturbed * config.perturbations + others * config.robustness)


def keep_reports(
    model: str,
    trained: TrainedModel,
    stores: Sequence[EpisodeStore | WebStore],
    reports: Sequence[EvaluationReport],
    output: str | None,
) -> dict[str, object]:
    """Save the reports as a file and in MLflow; the summary that --json prints."""
    scores = [report.to_json() for report in reports]
    return keep(
        EvaluatedModel.of(trained, model, kind="evaluations", scores=scores),
        {key: value for report in reports for key, value in metrics_of(report).items()},
        trained=trained,
        home=home_of(model),
        file_name=file_name(trained.step, stores),
        output=output,
    )


def write_html(
    path: str,
    model: str,
    trained: TrainedModel,
    stores: Sequence[EpisodeStore | WebStore],
    evaluations: Sequence[Evaluation],
    *,
    episodes: int,
) -> None:
    """Write the page of scores, with predicted beside recorded actions of so many `episodes` of each store."""
    facts = {"model": model, "step": trained.step, "contract": evaluations[0].report.contract}
    seen = [as_trained(store, trained.contract) for store in stores]
    pairs = zip(evaluations, seen, strict=True)
    drawn = [(each.report, pictures(each, store, limit=episodes, trained=trained)) for each, store in pairs]
    page = evaluation_page(f"Evaluation of {model}", facts, drawn)
    write_whole(str(Path(path).absolute()), page)
    print(f"page: {path}")


def pictures(
    evaluation: Evaluation, store: EpisodeStore | WebStore, *, limit: int, trained: TrainedModel | None = None
) -> str:
    """Predicted beside recorded actions of some episodes, and where `trained` looks, as HTML; of image-text examples
    there are none. `store` as the model was trained on it."""
    report, predictions, predicted_NA = evaluation.report, evaluation.predictions, evaluation.predicted_NA
    if predictions is None or predicted_NA is None:
        return ""
    assert isinstance(store, EpisodeStore) and isinstance(report, EpisodeReport)

    maps_of = None if trained is None else _frame_maps(trained, store)
    episodes = predicted_episodes(store, predictions, predicted_NA, report.dimensions, limit=limit, maps_of=maps_of)
    return bin_confusions(predictions, store.contract.action, report.dimensions, report.labels.bins) + episodes


def _frame_maps(trained: TrainedModel, store: EpisodeStore) -> MapsOfRows:
    """Where a model looks, by rows of a store as the model was trained on it."""
    return partial(family_of(trained.model).frame_maps, trained.model, trained.contract, store)


def write_rerun(
    path: str, trained: TrainedModel, store: EpisodeStore | WebStore, evaluation: Evaluation, *, episodes: int
) -> None:
    """Write a Rerun recording of so many episodes. Raises ValueError for a store of image-text examples."""
    report, predictions, predicted_NA = evaluation.report, evaluation.predictions, evaluation.predicted_NA
    if predictions is None or predicted_NA is None:
        raise ValueError(f"{store.root} holds image-text examples, which have no steps: leave out --rerun")
    assert isinstance(report, EpisodeReport)
    seen = as_trained(store, trained.contract)
    assert isinstance(seen, EpisodeStore)
    names, maps_of = report.dimensions, _frame_maps(trained, seen)
    count = write_recording(path, seen, predictions, predicted_NA, names, limit=episodes, maps_of=maps_of)
    print(f"Rerun recording of {count} episodes: {path}")


def next_command(model: str, trained: TrainedModel, reports: Sequence[EvaluationReport]) -> list[str]:
    """What to do with these scores, without rtp; empty for weights that are bound to no data."""
    if is_registered(model):
        return ["serve", model]
    if not trained.origin.stores:
        return []
    command = ["register", model, "--name", trained.origin.recipe or "my-policy"]
    fair = [report.store for report in reports if isinstance(report, EpisodeReport) and not report.seen_in_training]
    return [*command, "--alias", "champion", "--data", *fair] if fair else command

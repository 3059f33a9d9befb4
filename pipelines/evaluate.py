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
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from pipelines.config.arguments import parse
from pipelines.evaluation.comparison import compared
from pipelines.evaluation.record import FOLDER, file_name, home_of, is_seen, save, track
from pipelines.evaluation.report import EpisodeReport, EvaluationReport
from pipelines.evaluation.scoring import Evaluation, EvaluationConfig, evaluation_of, web_report
from pipelines.evaluation.tables import print_tables
from pipelines.publishing.folder import TrainedModel
from pipelines.publishing.trained_model import load_trained
from pipelines.reports.prediction_view import predicted_episodes
from pipelines.reports.run_page import evaluation_page
from pipelines.terminal.atomic_files import write_whole
from pipelines.terminal.next_step import print_next
from pipelines.terminal.progress_bar import counting
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.web_store import WebStore, open_store


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
        evaluation = _scored(trained, store, given.evaluation, f"evaluate {store.name}")
        dataset, split = store.name, store.manifest.split
        seen = is_seen(trained, store)
        report = replace(evaluation.report, dataset=dataset, split=split, seen_in_training=seen)
        if earlier is not None:
            before = _scored(earlier, store, given.evaluation, "evaluate the earlier model").report
            report = replace(report, before=compared(report, before, me=given.model, them=given.before or ""))
        evaluations.append(replace(evaluation, report=report))
        print_tables(report)
        if seen:
            print(f"{store.root} is among the training stores of this model: {_SEEN}")
    reports = [evaluation.report for evaluation in evaluations]
    result = {"model": given.model, "step": trained.step, "evaluations": [report.to_json() for report in reports]}
    result |= _kept(given, trained, stores, reports, result)
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
        return Evaluation(report=web_report(trained, store, config, counted))


def _load(model: str) -> TrainedModel:
    if not model.startswith("models:/"):
        return load_trained(model)
    from pipelines.publishing.registered import fetch_registered

    return fetch_registered(model)


# --- what is left behind ---


def _require_writable(path: str | None) -> None:
    """Raise OSError before hours of work, not after them, where a local file cannot be written."""
    if path is not None and "://" not in path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        if Path(path).is_dir() or not os.access(Path(path).parent, os.W_OK):
            raise OSError(f"{path} cannot be written: give a file in a folder that you may write in")


def _kept(
    given: EvaluateArguments,
    trained: TrainedModel,
    stores: list[EpisodeStore | WebStore],
    reports: list[EvaluationReport],
    result: dict[str, Any],
) -> dict[str, Any]:
    """Save the result as a file and in MLflow; where."""
    home, name = home_of(given.model), file_name(trained.step, stores)
    saved = save(result, given.output or f"{home}/{FOLDER}/{name}", asked=given.output is not None)
    run_id = track(result, reports, home=home, run_id=trained.metadata.get("mlflow_run_id"), name=name)
    for kept in ([f"report: {saved}"] if saved else []) + ([f"MLflow: run {run_id}"] if run_id else []):
        print(kept)
    return {"report": saved, "mlflow_run_id": run_id}


def _write_html(
    given: EvaluateArguments,
    stores: list[EpisodeStore | WebStore],
    evaluations: list[Evaluation],
    result: dict[str, Any],
) -> None:
    facts = {"model": given.model, "step": result["step"], "contract": evaluations[0].report.contract}
    drawn = [(e.report, pictures(e, store, limit=given.episodes)) for e, store in zip(evaluations, stores, strict=True)]
    page = evaluation_page(f"Evaluation of {given.model}", facts, drawn)
    write_whole(str(Path(given.html or "").absolute()), page)
    print(f"page: {given.html}")


def pictures(evaluation: Evaluation, store: EpisodeStore | WebStore, *, limit: int) -> str:
    """Predicted beside recorded actions of some episodes, as HTML; of image-text examples there are none."""
    report, predictions, predicted_NA = evaluation.report, evaluation.predictions, evaluation.predicted_NA
    if predictions is None or predicted_NA is None:
        return ""
    assert isinstance(store, EpisodeStore) and isinstance(report, EpisodeReport)
    return predicted_episodes(store, predictions, predicted_NA, report.dimensions, limit=limit)


def next_command(given: EvaluateArguments, trained: TrainedModel, reports: Sequence[EvaluationReport]) -> list[str]:
    """What to do with these scores, without rtp; empty for weights that are bound to no data."""
    if given.model.startswith("models:/"):
        return ["serve", given.model]
    if not trained.metadata.get("stores"):
        return []
    name = str((trained.metadata.get("experiment") or {}).get("name") or "my-policy")
    command = ["register", given.model, "--name", name]
    fair = [report.store for report in reports if isinstance(report, EpisodeReport) and not report.seen_in_training]
    return [*command, "--alias", "champion", "--data", *fair] if fair else command

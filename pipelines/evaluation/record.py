"""The record of an evaluation: a JSON file beside the run, the same file and metrics in the run's MLflow.

Also checks whether the model has seen the episodes in training.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from cluster.object_store import open_files
from pipelines.evaluation.report import EpisodeReport, EvaluationReport
from pipelines.publishing.folder import TrainedModel
from pipelines.publishing.model_origin import Which
from pipelines.terminal.atomic_files import write_whole
from pipelines.tracking.local_database import database_of
from pipelines.tracking.mlflow_run import LOCAL_FOLDER, TrackingError, connect, explained, tracking_uri
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.json_files import JsonObject
from preprocessing.store.lineage import fingerprint
from preprocessing.store.web_store import WebStore

log = logging.getLogger(__name__)

FOLDER = "evaluations"
Store = EpisodeStore | WebStore


def home_of(model: str) -> str:
    """The folder of what is evaluated: a run, whichever of its checkpoints is named, or a bundle; of a registered
    model a folder beside MLflow's own files."""
    if model.startswith("models:/"):
        return str(LOCAL_FOLDER / re.sub(r"[^\w.@-]+", "-", model.removeprefix("models:/")))
    return re.sub(r"/checkpoints(/step-\d+)?$", "", model.rstrip("/"))


def file_name(step: int, stores: Sequence[Store]) -> str:
    """Differs between checkpoints and between data."""
    shards = [shard.sha256 for store in stores for shard in store.manifest.shards]
    digest = hashlib.sha256(json.dumps(shards).encode()).hexdigest()[:8]
    first = stores[0].manifest
    more = f"-and-{len(stores) - 1}-more" if len(stores) > 1 else ""
    return f"step-{step}-{first.dataset}-{first.split}{more}-{digest}.json"


def kept(model: str, trained: TrainedModel) -> list[JsonObject]:
    """Scores on stores that `rtp evaluate` has saved beside `model`, of the very weights of `trained`; the newest of
    each store. What cannot be read is left out: it costs no export.
    """
    if model.startswith("models:/"):
        return []
    files, root = open_files(f"{home_of(model)}/{FOLDER}")
    dated: list[tuple[str, JsonObject]] = []
    undated: list[JsonObject] = []
    with contextlib.suppress(OSError):
        for path in sorted(files.find(root)):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
                record = json.loads(files.cat_file(path))
                scores = [dict(score) for score in record["evaluations"]]
                if not _is_of(record, scores, trained):
                    continue
                if "time" in record:
                    dated += [(str(record["time"]), score | {"manifest": str(score["manifest"])}) for score in scores]
                else:
                    undated += [score for score in scores if score["dataset"] and score["split"]]
    newest = {score["manifest"]: score for _, score in sorted(dated, key=lambda pair: pair[0])}
    return [*newest.values(), *_unambiguous(undated, list(newest.values()))]


def _is_of(record: JsonObject, scores: Sequence[JsonObject], trained: TrainedModel) -> bool:
    """Whether these are scores of these weights. Records that do not say of which are of the averaged ones where the
    training kept them."""
    if record["step"] != trained.step or any(score["contract"] != trained.contract.id for score in scores):
        return False
    weights = trained.origin.weights
    if "weights" in record:
        return bool(record["weights"] == weights)
    experiment: Any = trained.origin.document.get("experiment") or {}
    return weights != "last" or not experiment.get("engine", {}).get("ema_decay")


def _unambiguous(undated: Sequence[JsonObject], newer: Sequence[JsonObject]) -> list[JsonObject]:
    """Of scores that say neither when nor on which files of a dataset and split: those that nothing contradicts."""
    found: dict[tuple[str, str], list[JsonObject]] = {}
    for score in undated:
        found.setdefault((str(score["dataset"]), str(score["split"])), []).append(score)
    known = {(str(score.get("dataset")), str(score.get("split"))) for score in newer}
    return [
        scores[0]
        for place, scores in found.items()
        if place not in known and all(score == scores[0] for score in scores)
    ]


def is_seen(trained: TrainedModel, store: Store) -> bool:
    """Whether the model's training stores include this one, at its path or as a copy: by the fingerprint of its files,
    and by the statistics of the actions trained on, which the contract holds."""
    known = trained.origin.stores
    if _place(store.root) in {_place(reference.path) for reference in known}:
        return True
    if fingerprint(store.root) in {reference.fingerprint for reference in known}:
        return True
    if not isinstance(store, EpisodeStore):
        return False
    theirs, contract = store.dataset, trained.contract
    sides = [dataset.acted(contract.action)[1] for dataset in contract.datasets]
    return any(mine.name == theirs.name and mine.statistics == theirs.statistics for mine in sides)


def _place(root: str) -> str:
    return root.rstrip("/") if "://" in root else str(Path(root).resolve())


@dataclass(frozen=True, kw_only=True)
class EvaluatedModel:
    """A model's evaluation as it is written and printed: the scores stand under `kind`."""

    model: str
    step: int
    kind: Literal["evaluations", "closed_loop"]
    scores: object
    """Plain data."""
    weights: Which | None
    contract: str
    """Its id."""
    time: str
    """UTC, to be compared as text."""

    @staticmethod
    def of(
        trained: TrainedModel, model: str, *, kind: Literal["evaluations", "closed_loop"], scores: object
    ) -> EvaluatedModel:
        """As of now."""
        return EvaluatedModel(
            model=model,
            step=trained.step,
            kind=kind,
            scores=scores,
            weights=trained.origin.weights,
            contract=trained.contract.id,
            time=datetime.now(UTC).isoformat(timespec="milliseconds"),
        )

    def to_json(self) -> dict[str, object]:
        of_which = {"weights": self.weights, "contract": self.contract, "time": self.time}
        return {"model": self.model, "step": self.step, **of_which, self.kind: self.scores}


def keep(
    result: EvaluatedModel,
    values: Mapping[str, float],
    *,
    trained: TrainedModel,
    home: str,
    file_name: str,
    output: str | None,
) -> dict[str, object]:
    """Save the result in the file `output`, or beside the run, and in the run's MLflow, with `values` by metric name.

    Returns the summary that --json prints, which says where.
    """
    saved = _save(result, output or f"{home}/{FOLDER}/{file_name}", is_required=output is not None)
    run_id = _track(result, values, home=home, run_id=trained.origin.mlflow_run_id, name=file_name)
    for line in ([f"report: {saved}"] if saved else []) + ([f"MLflow: run {run_id}"] if run_id else []):
        print(line)
    return {**result.to_json(), "report": saved, "mlflow_run_id": run_id}


def _save(result: EvaluatedModel, path: str, *, is_required: bool) -> str | None:
    """Write the JSON file and return its path; None if a file that is not required could not be written."""
    try:
        write_whole(path, json.dumps(result.to_json(), indent=1))
    except OSError as error:
        if is_required:
            raise
        log.warning("the report is not saved beside the run (%s): --output FILE saves it elsewhere", error)
        return None
    return path


def _track(
    result: EvaluatedModel, values: Mapping[str, float], *, home: str, run_id: str | None, name: str
) -> str | None:
    """Put scores and report into the training's MLflow run, and return its id.

    Never fails: scores that took hours are not lost because a server is away. The id is then None.
    """
    if run_id is None:
        return None
    try:
        uri = _address(home)
        with explained(uri):
            mlflow = connect(uri)
            client = mlflow.MlflowClient()
            client.get_run(run_id)  # raises where this server does not know it
            now_ms, step = int(time.time() * 1000), result.step
            entries = [mlflow.entities.Metric(key, value, now_ms, step) for key, value in values.items()]
            for first in range(0, len(entries), 1000):  # the most that the server takes a call
                client.log_batch(run_id, metrics=entries[first : first + 1000])
            client.log_dict(run_id, result.to_json(), f"{FOLDER}/{name}")
    except (TrackingError, OSError, ValueError, ImportError) as error:
        log.warning("the scores are not in MLflow: %s", error)
        return None
    return run_id


def metrics_of(report: EvaluationReport) -> dict[str, float]:
    """The headline scores and the errors per dimension, by names that say on which data."""
    values = {key: interval.mean for key, interval in report.headlines().items()}
    if isinstance(report, EpisodeReport):
        for name, scores in report.per_dimension.items():
            values[f"error/{name}"] = scores.policies["policy"].mean_absolute_error
    names = {key: re.sub(r"[^\w./ -]", "_", f"evaluation/{report.dataset}/{report.split}/{key}") for key in values}
    return {names[key]: value for key, value in values.items()}


def _address(home: str) -> str:
    """The tracking server that the run in this folder recorded, or else the present one.

    Raises FileNotFoundError for a database that is not there: connecting would make an empty one.
    """
    files, root = open_files(home)
    noted = []
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # a bundle has no such note
        noted = [str(json.loads(files.cat_file(f"{root}/run.json"))["uri"])]
    addresses = [*noted, tracking_uri()]
    for address in addresses:
        database = database_of(address)
        if database is None or database.is_file():
            return address
    raise FileNotFoundError(f"{addresses[0]}, where the run was tracked, is not there")

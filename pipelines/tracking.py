"""MLflow, as the rest of the project sees it: one run per training, however often it is resumed."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

LOCAL_FOLDER = Path("runs")  # of the SQLite database and its artifacts, under the folder the command is run in


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, else a SQLite file under ./runs as an absolute address (workers run elsewhere)."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{LOCAL_FOLDER.absolute() / 'mlflow.db'}"


def connect(uri: str) -> Any:
    """The mlflow module, pointed at `uri` for tracking and registry, with its chatter silenced."""
    os.environ.setdefault("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    import mlflow

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    database = uri.removeprefix("sqlite:///")
    if database != uri:
        Path(database).parent.mkdir(parents=True, exist_ok=True)
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    return mlflow


def experiment_id(mlflow: Any, uri: str, name: str) -> str:
    """The MLflow experiment of that name; with SQLite its artifacts lie beside the database, never in the cwd."""
    existing = mlflow.get_experiment_by_name(name)
    if existing is not None:
        return existing.experiment_id
    database = uri.removeprefix("sqlite:///")
    location = None if database == uri else (Path(database).parent / "mlflow-artifacts").as_uri()
    return mlflow.create_experiment(name, artifact_location=location)


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn what MLflow raises inside into a ConnectionError with one sentence that names the server."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        raise ConnectionError(f"MLflow at {uri} says: {' '.join(str(error).split())}") from error


class TrainingRun:
    """The MLflow run of one training, opened by rank 0. `run_id` continues an earlier one where the server knows it."""

    def __init__(self, *, uri: str, experiment: str, name: str, params: Mapping[str, Any], run_id: str | None) -> None:
        self._mlflow = connect(uri)
        self._client = self._mlflow.MlflowClient()
        with explained(uri):
            if run_id is not None and self._known(run_id):
                self._client.update_run(run_id, status="RUNNING")
                self.run_id = run_id
                return
            experiment_key = experiment_id(self._mlflow, uri, experiment)
            self.run_id = str(self._client.create_run(experiment_key, run_name=name).info.run_id)
            self._params(params)
        if run_id is not None:
            log.warning("MLflow at %s does not know run %s: the training continues as run %s", uri, run_id, self.run_id)
            self.tag("continues_run", run_id)

    def _known(self, run_id: str) -> bool:
        try:
            self._client.get_run(run_id)
        except self._mlflow.exceptions.MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False
        return True

    def _params(self, params: Mapping[str, Any]) -> None:
        pairs = [self._mlflow.entities.Param(key, str(value)[:6000]) for key, value in params.items()]
        for first in range(0, len(pairs), 100):  # the server takes at most 100 parameters a call
            self._client.log_batch(self.run_id, params=pairs[first : first + 100])

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        now_ms = self._mlflow.utils.time.get_current_time_millis()
        metric = self._mlflow.entities.Metric
        self._client.log_batch(self.run_id, metrics=[metric(key, float(v), now_ms, step) for key, v in values.items()])

    def tag(self, key: str, value: str) -> None:
        self._client.set_tag(self.run_id, key, value[:5000])

    def json(self, data: Any, name: str) -> None:
        """Store `data` as the run's artifact `name`."""
        self._client.log_dict(self.run_id, data, name)

    def finish(self, *, failure: str | None = None) -> None:
        if failure is not None:
            self.tag("failure", failure)
        self._client.set_terminated(self.run_id, "FAILED" if failure is not None else "FINISHED")

"""MLflow, as the rest of the project sees it: one run per training, however often it is resumed."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import url2pathname

from cluster.quick_imports import quick_imports
from pipelines.tracking.local_database import address_of, artifact_location, database_of, follow_move, made_absolute
from pipelines.tracking.outbox import Message, Outbox, Refused

if TYPE_CHECKING:
    from mlflow.entities import Metric

log = logging.getLogger(__name__)

LOCAL_FOLDER = Path("runs")  # of the SQLite database and its artifacts, under the folder the command is run in


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, else a SQLite file under ./runs; with an absolute path, since workers run elsewhere.

    Without user and password, because it is printed and written to files; `connect` adds them again. Raises
    ValueError if it is no address.
    """
    address = os.environ.get("MLFLOW_TRACKING_URI")
    return made_absolute(without_password(address)) if address else address_of(LOCAL_FOLDER / "mlflow.db")


def without_password(text: str) -> str:
    """`text` with every USER:PASSWORD@ taken out of the URLs in it."""
    return re.sub(r"://[^/?#\s]*@", "://", text)


def with_password(uri: str) -> str:
    """`uri` with the user and password of MLFLOW_TRACKING_URI, if that names the same server."""
    address = os.environ.get("MLFLOW_TRACKING_URI", "")
    return address if without_password(address) == uri else uri


def connect(uri: str) -> ModuleType:
    """The mlflow module, pointed at `uri` for tracking and registry, with its chatter silenced.

    Raises ConnectionError if the database cannot be opened. A server is first contacted by a later call.
    """
    os.environ.setdefault("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    # Its thread takes a variable out of the environment while a request reads it: a KeyError now and then.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # MLflow's 7 take four minutes to find a server gone
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    with quick_imports():
        import mlflow

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    database = database_of(uri)
    if database is not None:
        try:
            database.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrackingError(
                f"{database} of MLflow cannot be made ({error.strerror}): run in a folder that can be written to, or "
                f"set MLFLOW_TRACKING_URI=sqlite:////FOLDER/mlflow.db"
            ) from None
        follow_move(database)
    mlflow.set_tracking_uri(with_password(uri))
    mlflow.set_registry_uri(with_password(uri))
    try:
        with explained(uri), quick_imports():
            mlflow.MlflowClient()  # opens a database, and nothing of a server
    except ModuleNotFoundError as error:
        raise TrackingError(f"MLflow at {without_password(uri)} needs the package {error.name}: install it") from None
    return mlflow


def connect_to_registry(uri: str, wanted: str) -> ModuleType:
    """`connect`, to read the registered model `wanted`. Where no database is none is made: that is a TrackingError."""
    database = database_of(uri)
    if database is not None and not database.exists():
        raise TrackingError(
            f"{wanted} is not registered at {uri}, which is not there: run in the folder whose {LOCAL_FOLDER} has it, "
            f"or set MLFLOW_TRACKING_URI"
        )
    return connect(uri)


def experiment_id(mlflow: ModuleType, uri: str, name: str) -> str:
    """The MLflow experiment of that name; with SQLite its artifacts lie beside the database, never in the cwd."""
    existing = mlflow.get_experiment_by_name(name)
    if existing is not None:
        return existing.experiment_id
    database = database_of(uri)
    location = None if database is None else artifact_location(database)
    return mlflow.create_experiment(name, artifact_location=location)


def knows_run(uri: str, run_id: str) -> bool:
    """Whether the run is in the database or folder at `uri`, as seen from here; True of a server, which may be away.

    Nothing is created where nothing is. Raises TrackingError if what is there cannot be asked.
    """
    place = database_of(uri) or (Path(url2pathname(urlsplit(uri).path)) if uri.startswith("file:") else None)
    if place is None:
        return True
    if not place.exists():
        return False
    mlflow = connect(uri)
    try:
        with explained(uri):
            mlflow.MlflowClient().get_run(run_id)
    except TrackingError as error:
        if error.code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False
    return True


class TrackingError(ConnectionError):
    """What MLflow says, in one sentence without passwords; `code` is MLflow's own name for the error."""

    def __init__(self, sentence: str, code: str = "") -> None:
        super().__init__(sentence)
        self.code = code


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn what MLflow, or the database or artifact store under it, raises inside into a TrackingError."""
    try:
        yield
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in _SPEAKERS:
            raise
        message = without_password(" ".join(str(getattr(error, "orig", None) or error).split()))
        code = str(getattr(error, "error_code", ""))
        # Without what MLflow raised: a traceback would print the URL with its password.
        raise TrackingError(f"MLflow at {without_password(uri)} says: {message}", code) from None


_SPEAKERS = ("mlflow", "sqlalchemy", "botocore", "boto3")  # packages that raise for a server's or database's answer


class TrainingRun:
    """The MLflow run of one training. `run_id` continues an earlier run, if the server knows it.

    Opened and finished by the process that the user started; its metrics come from rank 0 (`RunMetrics`).
    """

    def __init__(
        self, *, uri: str, experiment: str, name: str, params: Mapping[str, object], run_id: str | None
    ) -> None:
        self.uri = without_password(uri)
        self._mlflow = connect(uri)
        self._client = self._mlflow.MlflowClient()
        with explained(uri):
            if run_id is not None and self._continued(run_id):
                self.run_id = run_id
                return
            experiment_key = experiment_id(self._mlflow, uri, experiment)
            self.run_id = str(self._client.create_run(experiment_key, run_name=name).info.run_id)
            self._params(params)
        if run_id is not None:
            known = "MLflow at %s does not know run %s: the training continues as run %s"
            log.warning(known, self.uri, run_id, self.run_id)
            self.tag("continues_run", run_id)

    def _continued(self, run_id: str) -> bool:
        try:
            run = self._client.get_run(run_id)
        except self._mlflow.exceptions.MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False
        self._client.update_run(run_id, status="RUNNING")
        if _FAILURE in run.data.tags:
            self._client.delete_tag(run_id, _FAILURE)
        return True

    def _params(self, params: Mapping[str, object]) -> None:
        pairs = [self._mlflow.entities.Param(key, str(value)[:6000]) for key, value in params.items()]
        for first in range(0, len(pairs), 100):  # the server's limit per call
            self._client.log_batch(self.run_id, params=pairs[first : first + 100])

    def tag(self, key: str, value: str) -> None:
        with explained(self.uri):
            self._client.set_tag(self.run_id, key, value[:5000])

    def json(self, data: Mapping[str, object], name: str) -> None:
        """Store `data` as the run's artifact `name`."""
        with explained(self.uri):
            self._client.log_dict(self.run_id, data, name)

    def file(self, path: Path) -> None:
        """Store a local file as an artifact of its name."""
        with explained(self.uri):
            self._client.log_artifact(self.run_id, str(path))

    def finish(self, *, failure: str | None = None) -> None:
        """End the run, as failed if there is a reason. An unreachable server does not make the training fail."""
        try:
            if failure is not None:
                self.tag(_FAILURE, failure)
            with explained(self.uri):
                self._client.set_terminated(self.run_id, "FAILED" if failure is not None else "FINISHED")
        except OSError as error:
            log.warning("run %s has ended, but the tracking server could not be informed: %s", self.run_id, error)


class RunMetrics:
    """The metrics of an MLflow run, sent in the background; only `close` waits for the server."""

    def __init__(self, *, uri: str, run_id: str, output: str) -> None:
        self._uri = without_password(uri)
        self._run_id = run_id
        self._mlflow = connect(uri)
        self._client = self._mlflow.MlflowClient()
        self._outbox = Outbox(self._deliver, kept=f"{output}/undelivered-metrics.jsonl")

    def add(self, values: Mapping[str, float], step: int) -> None:
        now_ms = int(time.time() * 1000)
        self._outbox.put({"run_id": self._run_id, "time_ms": now_ms, "step": step, "values": dict(values)})

    def json(self, data: Mapping[str, object], name: str) -> None:
        """Store `data` as the run's artifact `name`."""
        self._outbox.put({"run_id": self._run_id, "artifact": name, "data": data})

    def close(self) -> None:
        left = self._outbox.close()
        if left:
            log.warning("%d updates for MLflow at %s are kept: a resumed run sends them", left, self._uri)

    def _deliver(self, messages: list[Message]) -> None:
        metric = self._mlflow.entities.Metric
        metrics_of_runs: dict[str, list[Metric]] = {}
        try:
            with explained(self._uri):
                for message in messages:
                    if "artifact" in message:
                        self._client.log_dict(message["run_id"], message["data"], message["artifact"])
                    else:
                        metrics = metrics_of_runs.setdefault(message["run_id"], [])
                        for key, value in message["values"].items():
                            metrics.append(metric(key, float(value), message["time_ms"], message["step"]))
                for run_id, entries in metrics_of_runs.items():
                    for first in range(0, len(entries), 1000):  # the server's limit per call
                        self._client.log_batch(run_id, metrics=entries[first : first + 1000])
        except TrackingError as error:
            if error.code in _FINAL:
                raise Refused(str(error)) from error
            raise


_FAILURE = "failure"  # the tag that holds the reason
_FINAL = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "PERMISSION_DENIED", "UNAUTHENTICATED")

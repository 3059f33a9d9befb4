"""MLflow's SQLite database on this machine and the artifacts beside it, also after their folder has moved."""

from __future__ import annotations

import logging
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import url2pathname

if TYPE_CHECKING:
    from sqlalchemy import URL

log = logging.getLogger(__name__)

ARTIFACTS = "mlflow-artifacts"
_NO_PATHS = ("databricks", "databricks-uc", "uc")  # addresses of MLflow without a scheme

# The columns in which MLflow keeps absolute addresses of artifacts.
_RECORDED = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def address_of(database: Path) -> str:
    """The address of a SQLite file for SQLAlchemy and MLflow, whatever letters its folders have."""
    from sqlalchemy import URL

    return _rendered(URL.create("sqlite", database=str(database.absolute())))


def _rendered(url: URL) -> str:
    """As text; with the driver's name if letters are quoted: after a bare sqlite:/// MLflow does not unquote them and
    makes a folder of that name.
    """
    text = url.render_as_string(hide_password=False)
    if "%" in text and url.drivername == "sqlite":
        text = url.set(drivername="sqlite+pysqlite").render_as_string(hide_password=False)
    return text


def made_absolute(address: str) -> str:
    """`address` with a relative path in it taken from the present folder, since workers run in others.

    Raises ValueError for an address of SQLite that names no file where one was meant.
    """
    if address.startswith("sqlite"):
        return _absolute_sqlite(address)
    parts = urlsplit(address)
    if parts.scheme == "" and address not in _NO_PATHS:
        return Path(address).absolute().as_uri()
    if parts.scheme == "file" and not parts.path.startswith("/"):
        return Path(url2pathname(parts.path)).absolute().as_uri()
    return address


def _absolute_sqlite(address: str) -> str:
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(address)
    except ArgumentError:
        url = None
    if url is None or url.host is not None:
        raise ValueError(
            f"MLFLOW_TRACKING_URI={address} is no address of a SQLite file: write sqlite:///mlflow.db for a file in "
            f"this folder, or sqlite:////home/me/mlflow.db"
        )
    database = url.database or ""
    if database in ("", ":memory:") or database.startswith("file:"):
        return address
    return _rendered(url.set(database=str(Path(database).absolute())))


def database_of(address: str) -> Path | None:
    """The SQLite file of an address; None for another kind, such as a server's."""
    if not address.startswith("sqlite"):
        return None
    from sqlalchemy import make_url

    database = make_url(address).database or ""
    return None if database in ("", ":memory:") or database.startswith("file:") else Path(database)


def artifact_location(database: Path) -> str:
    """The address of the folder of artifacts beside the database."""
    return (database.absolute().parent / ARTIFACTS).as_uri()


def follow_move(database: Path) -> None:
    """Let the database name its artifacts where they lie now, if it has moved, or been copied, along with them."""
    if not (database.is_file() and (database.parent / ARTIFACTS).is_dir()):
        return
    here = artifact_location(database)
    try:
        with closing(sqlite3.connect(database, timeout=30)) as connection, connection:
            columns = [(table, column) for table, column in _RECORDED if _has(connection, table, column)]
            for before in _locations(connection) if columns else ():
                if before != here and _was_left(before, database.name):
                    log.warning("%s has moved with its artifacts, which it had recorded at %s", database, before)
                    for table, column in columns:
                        _rewrite(connection, table, column, before, here)
    except sqlite3.Error as error:  # read-only, or not MLflow's database: MLflow will report it
        log.warning("%s cannot be looked at for artifacts that have moved: %s", database, error)


def _locations(connection: sqlite3.Connection) -> list[str]:
    rows = connection.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall()
    return [place for (place,) in rows if place and place.startswith("file:") and place.endswith(f"/{ARTIFACTS}")]


def _was_left(place: str, database: str) -> bool:
    """Whether this folder of artifacts is gone, or has a database of its own, of which ours is a copy."""
    folder = Path(url2pathname(urlsplit(place).path))
    return not folder.is_dir() or (folder.parent / database).is_file()


def _has(connection: sqlite3.Connection, table: str, column: str) -> bool:
    return any(row[1] == column for row in connection.execute(f"PRAGMA table_info({table})"))


def _rewrite(connection: sqlite3.Connection, table: str, column: str, before: str, here: str) -> None:
    begins = f"{column} = :before OR substr({column}, 1, length(:before) + 1) = :before || '/'"
    changed = f"UPDATE {table} SET {column} = :here || substr({column}, length(:before) + 1) WHERE {begins}"
    connection.execute(changed, {"before": before, "here": here})

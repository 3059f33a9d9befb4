"""Which version of a registered model an alias points at: moving it, and rolling it back.

An alias moves under a lock, and only if it still points at the version that the gates compared with. Of two
registrations at the same time, the second is thus compared with the first. The tags of a version record every move to
it and the version that it replaced; a roll-back reads them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from mlflow import MlflowClient
from mlflow.entities.model_registry import RegisteredModel

from pipelines.publishing.gates import Verdict
from pipelines.publishing.registry_lock import LOCKED, exclusive, if_exists, is_lock
from pipelines.tracking.mlflow_run import tracking_uri

_NAME = re.compile(r"\w[\w .+-]*")
_ALIAS = re.compile(r"(?!v\d+$|latest$)[a-z0-9_-]+", re.IGNORECASE | re.ASCII)

Comparator = Callable[[str | None], Sequence[Verdict]]


def require_names(name: str, alias: str | None) -> None:
    """Raise ValueError unless a model can be registered as `name` and `alias` can point at it."""
    if not _NAME.fullmatch(name) or is_lock(name):
        raise ValueError(f"--name {name!r} cannot name a model: use letters, digits, spaces and . _ + -")
    if alias is not None and not _ALIAS.fullmatch(alias):
        raise ValueError(
            f"--alias {alias!r} cannot be an alias: use letters, digits, _ and -, but neither latest nor v1, v2, ..."
        )


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Whether an alias moved to a version, from which, and why."""

    promoted: bool
    replaced: str | None
    verdicts: Sequence[Verdict]

    @property
    def reasons(self) -> list[str]:
        return [verdict.text for verdict in self.verdicts]


def promote(client: MlflowClient, name: str, alias: str, version: str, judge: Comparator) -> Decision:
    """Point `alias` at `version` if `judge(present holder)` passes it; the decision is written as tags either way."""
    while True:
        holder = holder_of(client, name, alias)
        verdicts = judge(holder)
        if not all(verdict.passed for verdict in verdicts):
            decision = Decision(promoted=False, replaced=None, verdicts=verdicts)
            _write(client, name, alias, version, decision, f"stays with version {holder}" if holder else "not set")
            return decision
        with exclusive(client, f"{name}.{alias}{LOCKED}") as lease:
            if holder_of(client, name, alias) != holder:
                continue  # another registration was faster: compare with its version
            decision = Decision(promoted=True, replaced=holder, verdicts=verdicts)
            lease.require()
            _write(client, name, alias, version, decision, f"moved from version {holder}" if holder else "first holder")
            lease.require()
            client.set_registered_model_alias(name, alias, version)
            return decision


def rollback(client: MlflowClient, name: str, alias: str) -> tuple[str, str]:
    """Point `alias` back at the version that its holder replaced: (version left, version returned to).

    Raises ValueError if there is none.
    """
    require_names(name, alias)
    known_model(client, name)
    with exclusive(client, f"{name}.{alias}{LOCKED}") as lease:
        left = holder_of(client, name, alias)
        if left is None:
            raise ValueError(f"{name} has no alias {alias!r}: nothing to roll back")
        back = client.get_model_version(name, left).tags.get(f"{alias}.replaced")
        if not back:
            raise ValueError(f"{name}@{alias} is version {left} and replaced no other: there is nothing to return to")
        if if_exists(client.get_model_version, name, back) is None:
            raise ValueError(
                f"{name}@{alias} is version {left}, and version {back}, which it replaced, has been deleted: "
                f"the alias stays"
            )
        lease.require()
        client.set_model_version_tag(name, left, f"{alias}.decision", f"{_now()} rolled back to version {back}")
        lease.require()
        client.set_registered_model_alias(name, alias, back)
        return left, back


def holder_of(client: MlflowClient, name: str, alias: str) -> str | None:
    """The version that the alias points at; None if the model or the alias does not exist."""
    model = registered_model(client, name)
    version = model.aliases.get(alias) if model is not None else None
    return str(version) if version is not None else None


def registered_model(client: MlflowClient, name: str) -> RegisteredModel | None:
    return if_exists(client.get_registered_model, name)


def known_model(client: MlflowClient, name: str) -> RegisteredModel:
    """Raises ValueError, with those there are, where there is no such registered model."""
    model = registered_model(client, name)
    if model is None:
        others = [other.name for other in client.search_registered_models() if not is_lock(other.name)]
        known = ", ".join(others) or "none"
        raise ValueError(f"there is no registered model {name!r} at {tracking_uri()}: known are {known}")
    return model


def _write(client: MlflowClient, name: str, alias: str, version: str, decision: Decision, outcome: str) -> None:
    tags = {
        f"{alias}.decision": f"{_now()} {outcome}",
        f"{alias}.gates": "; ".join(decision.reasons) or "none",
        f"{alias}.replaced": decision.replaced or "",
    }
    for key, value in tags.items():
        client.set_model_version_tag(name, version, key, value[:5000])


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

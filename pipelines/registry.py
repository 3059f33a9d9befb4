"""`rtp registry show|rollback NAME`: where registered models come from, and which of them an alias points at.

An alias moves under a lock, and only if it still points where its gates were judged: of two registrations at once the
second is compared with the first. Every move is written into the tags of the version it moved to, with what it
replaced; that is what a roll-back goes by.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import tyro

from pipelines.config.arguments import parse
from pipelines.publishing.gates import Verdict
from pipelines.publishing.registry_lock import LOCKED, exclusive, found, is_lock
from pipelines.terminal.next_step import print_next
from pipelines.tracking.mlflow_run import connect, explained, tracking_uri

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


def promote(client: Any, name: str, alias: str, version: str, judge: Comparator) -> Decision:
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
                continue  # another registration was faster: compare with what it put there
            decision = Decision(promoted=True, replaced=holder, verdicts=verdicts)
            lease.require()
            _write(client, name, alias, version, decision, f"moved from version {holder}" if holder else "first holder")
            lease.require()
            client.set_registered_model_alias(name, alias, version)
            return decision


def rollback(client: Any, name: str, alias: str) -> tuple[str, str]:
    """Point `alias` back at the version that its holder replaced: (version left, version returned to).

    Raises ValueError where there is none.
    """
    require_names(name, alias)
    _known_model(client, name)
    with exclusive(client, f"{name}.{alias}{LOCKED}") as lease:
        left = holder_of(client, name, alias)
        if left is None:
            raise ValueError(f"{name} has no alias {alias!r}: nothing to roll back")
        back = client.get_model_version(name, left).tags.get(f"{alias}.replaced")
        if not back:
            raise ValueError(f"{name}@{alias} is version {left} and replaced no other: there is nothing to return to")
        if not _is_there(client, name, back):
            raise ValueError(
                f"{name}@{alias} is version {left}, and version {back}, which it replaced, has been deleted: "
                f"the alias stays"
            )
        lease.require()
        client.set_model_version_tag(name, left, f"{alias}.decision", f"{_now()} rolled back to version {back}")
        lease.require()
        client.set_registered_model_alias(name, alias, back)
        return left, back


def holder_of(client: Any, name: str, alias: str) -> str | None:
    """The version that the alias points at; None where the model or the alias does not exist."""
    model = _model(client, name)
    version = model.aliases.get(alias) if model is not None else None
    return str(version) if version is not None else None


def _model(client: Any, name: str) -> Any | None:
    return found(client.get_registered_model, name)


def _is_there(client: Any, name: str, version: str) -> bool:
    return found(client.get_model_version, name, version) is not None


def _known_model(client: Any, name: str) -> Any:
    """Raises ValueError, with those there are, where there is no such registered model."""
    model = _model(client, name)
    if model is None:
        others = [other.name for other in client.search_registered_models() if not is_lock(other.name)]
        known = ", ".join(others) or "none"
        raise ValueError(f"there is no registered model {name!r} at {tracking_uri()}: known are {known}")
    return model


def _write(client: Any, name: str, alias: str, version: str, decision: Decision, outcome: str) -> None:
    tags = {
        f"{alias}.decision": f"{_now()} {outcome}",
        f"{alias}.gates": "; ".join(decision.reasons) or "none",
        f"{alias}.replaced": decision.replaced or "",
    }
    for key, value in tags.items():
        client.set_model_version_tag(name, version, key, value[:5000])


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


# --- what is shown ---


def show(client: Any, name: str) -> dict[str, Any]:
    """Every version, newest first: model -> run -> store fingerprint -> source dataset -> git revision."""
    model = _known_model(client, name)
    aliases: dict[str, list[str]] = {}
    for alias, version in model.aliases.items():
        aliases.setdefault(str(version), []).append(alias)
    versions = client.search_model_versions(filter_string=f"name = '{name}'")
    newest_first = sorted(versions, key=lambda version: int(version.version), reverse=True)
    return {"name": name, "versions": [_lineage(client, v, aliases.get(str(v.version), [])) for v in newest_first]}


def _lineage(client: Any, version: Any, aliases: list[str]) -> dict[str, Any]:
    tags = version.tags
    run = found(client.get_run, version.run_id) if version.run_id else None
    return {
        "version": str(version.version),
        "aliases": sorted(aliases),
        "registered": datetime.fromtimestamp(version.creation_timestamp / 1000, UTC).isoformat(timespec="seconds"),
        "run": _run(run.info) if run else None,
        "checkpoint": tags.get("checkpoint"),
        "step": int(tags.get("step", 0)),
        "contract": tags.get("contract"),
        "stores": [json.loads(tags[key]) for key in sorted(tags) if key.startswith("store.")],
        "git_revision": tags.get("git_revision"),
        "decisions": {key: tags[key] for key in sorted(tags) if key.endswith((".decision", ".gates")) and tags[key]},
    }


def _run(info: Any) -> dict[str, str]:
    return {"id": info.run_id, "name": info.run_name, "status": info.status}


def print_lineage(shown: dict[str, Any]) -> None:
    """As text, one block a version."""
    print(shown["name"])
    for version in shown["versions"]:
        aliases = "".join(f" @{alias}" for alias in version["aliases"])
        print(f"  version {version['version']}{aliases}  registered {version['registered']}")
        if run := version["run"]:
            print(f"    run       {run['id']} ({run['name']}, {run['status']})")
        print(f"    weights   {version['checkpoint']} (step {version['step']}), contract {version['contract']}")
        for store in version["stores"]:
            print(f"    store     {store['path']}, fingerprint {store['fingerprint']}")
            source = f"{store['records']} episodes or images, fingerprint {store['source']}"
            print(f"    source    {store['dataset']}, {source}")
        print(f"    code      git {version['git_revision']}")
        for key, text in version["decisions"].items():
            print(f"    {key}: {text}")


@dataclass(frozen=True, kw_only=True)
class RegistryArguments:
    """Flags of `rtp registry`."""

    action: tyro.conf.Positional[Literal["show", "rollback"]]
    """show: where every version comes from. rollback: point the alias at the version it pointed at before."""
    name: tyro.conf.Positional[str]
    """Name of the registered model."""
    alias: str = "champion"
    """Alias that rollback moves."""


def main(arguments: list[str]) -> dict[str, Any]:
    """Show, or roll back."""
    given = parse(RegistryArguments, arguments, prog="rtp registry", description=__doc__ or "")
    uri = tracking_uri()
    client = connect(uri).MlflowClient()
    with explained(uri):
        if given.action == "show":
            shown = show(client, given.name)
            print_lineage(shown)
            return shown
        left, back = rollback(client, given.name, given.alias)
    print(f"{given.name}@{given.alias}: back from version {left} to version {back}")
    print_next("serve", f"models:/{given.name}@{given.alias}")
    return {"model_uri": f"models:/{given.name}@{given.alias}", "left": left, "version": back}

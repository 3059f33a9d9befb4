"""`rtp registry show|rollback NAME`: where registered models come from, and which of them an alias points at."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import tyro

from pipelines.config.arguments import parse
from pipelines.publishing.aliases import known_model, rollback
from pipelines.publishing.registry_lock import found
from pipelines.terminal.next_step import print_next
from pipelines.tracking.mlflow_run import connect, explained, tracking_uri


def show(client: Any, name: str) -> dict[str, Any]:
    """Every version, newest first: model -> run -> store fingerprint -> source dataset -> git revision."""
    model = known_model(client, name)
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

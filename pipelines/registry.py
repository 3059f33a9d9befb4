"""`rtp registry show|rollback NAME`: where registered models come from, and which of them an alias points at."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

import tyro

from pipelines.config.arguments import parse
from pipelines.publishing.aliases import known_model, rollback
from pipelines.publishing.registry_lock import if_exists
from pipelines.publishing.training_stores import StoreReference
from pipelines.terminal.commands import JsonSummary
from pipelines.terminal.next_step import print_next
from pipelines.tracking.mlflow_run import connect_to_registry, explained, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion


@dataclass(frozen=True, kw_only=True)
class TrainingRunInfo:
    """The MLflow run that made a version."""

    id: str
    name: str | None
    status: str


@dataclass(frozen=True, kw_only=True)
class VersionLineage:
    """Where a version of a model comes from. `run` is None if the run was deleted.

    registered: when, in UTC. stores: the training stores, with fingerprints. decisions: why an alias moved, or did not.
    """

    version: str
    aliases: list[str]
    registered: str
    run: TrainingRunInfo | None
    checkpoint: str | None
    step: int
    contract: str | None
    stores: list[StoreReference]
    git_revision: str | None
    decisions: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class ModelLineage:
    """A registered model and its versions, newest first."""

    name: str
    versions: list[VersionLineage]

    def to_json(self) -> dict[str, object]:
        stores_of = {version.version: [store.lineage() for store in version.stores] for version in self.versions}
        versions = [asdict(version) | {"stores": stores_of[version.version]} for version in self.versions]
        return {"name": self.name, "versions": versions}


def show(client: MlflowClient, name: str) -> ModelLineage:
    """Every version, newest first: model -> run -> store fingerprint -> source dataset -> git revision."""
    model = known_model(client, name)
    aliases: dict[str, list[str]] = {}
    for alias, version in model.aliases.items():
        aliases.setdefault(str(version), []).append(alias)
    versions = client.search_model_versions(filter_string=f"name = '{name}'")
    newest_first = sorted(versions, key=lambda version: int(version.version), reverse=True)
    return ModelLineage(
        name=name, versions=[_lineage(client, v, aliases.get(str(v.version), [])) for v in newest_first]
    )


def _lineage(client: MlflowClient, version: ModelVersion, aliases: list[str]) -> VersionLineage:
    tags: Mapping[str, str] = version.tags
    run = if_exists(client.get_run, version.run_id) if version.run_id else None
    registered = datetime.fromtimestamp(version.creation_timestamp / 1000, UTC)
    return VersionLineage(
        version=str(version.version),
        aliases=sorted(aliases),
        registered=registered.isoformat(timespec="seconds"),
        run=TrainingRunInfo(id=run.info.run_id, name=run.info.run_name, status=run.info.status) if run else None,
        checkpoint=tags.get("checkpoint"),
        step=int(tags.get("step", 0)),
        contract=tags.get("contract"),
        stores=[StoreReference(**json.loads(tags[key])) for key in sorted(tags) if key.startswith("store.")],
        git_revision=tags.get("git_revision"),
        decisions={key: tags[key] for key in sorted(tags) if key.endswith((".decision", ".gates")) and tags[key]},
    )


def print_lineage(model: ModelLineage) -> None:
    """As text, one block per version."""
    print(model.name)
    for version in model.versions:
        aliases = "".join(f" @{alias}" for alias in version.aliases)
        print(f"  version {version.version}{aliases}  registered {version.registered}")
        if run := version.run:
            print(f"    run       {run.id} ({run.name}, {run.status})")
        print(f"    weights   {version.checkpoint} (step {version.step}), contract {version.contract}")
        for store in version.stores:
            print(f"    store     {store.path}, fingerprint {store.fingerprint}")
            print(f"    source    {store.dataset}, {store.records} episodes or images, fingerprint {store.source}")
            if store.licence or store.citation:
                print(f"    rights    {store.licence or 'licence unknown'}; {' '.join(store.citation.split())[:200]}")
        print(f"    code      git {version.git_revision}")
        for key, text in version.decisions.items():
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


def main(arguments: list[str]) -> JsonSummary:
    """Show where versions come from, or roll an alias back."""
    flags = parse(RegistryArguments, arguments, prog="rtp registry", description=__doc__ or "")
    uri = tracking_uri()
    client = connect_to_registry(uri, flags.name).MlflowClient()
    with explained(uri):
        if flags.action == "show":
            model = show(client, flags.name)
            print_lineage(model)
            return model.to_json()
        left, back = rollback(client, flags.name, flags.alias)
    print(f"{flags.name}@{flags.alias}: back from version {left} to version {back}")
    print_next("serve", f"models:/{flags.name}@{flags.alias}")
    return {"model_uri": f"models:/{flags.name}@{flags.alias}", "left": left, "version": back}

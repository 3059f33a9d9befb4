"""`rtp store append|delete|merge|split|log|prune|card`: a store of episodes that grows, shrinks, is joined and divided.

append and delete change the store in place: new files beside the old ones and a new manifest, atomically; the manifest
before it stays under manifests/, so that what was trained on it stays known. merge and split make new stores of links
to the same files. Only shards that are cut are written anew. The audit has to be measured again after a change. card
writes README.md, as the Hugging Face hub shows it, of a store of either kind.
"""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated, Literal

import tyro

from pipelines.config.arguments import parse
from pipelines.terminal.commands import JsonSummary
from pipelines.terminal.next_step import print_next
from pipelines.terminal.progress_bar import share_done
from preprocessing.changes import store_changes
from preprocessing.changes.store_changes import Changed
from preprocessing.store.card import write_card
from preprocessing.store.web_store import open_store


@dataclass(frozen=True, kw_only=True)
class AppendArguments:
    """Flags of `rtp store append`."""

    store: tyro.conf.Positional[str]
    """Store of robot episodes that grows, local or s3://, gs://."""
    sources: tyro.conf.Positional[tuple[str, ...]]
    """Stores whose episodes are added, of the same dataset and preprocessed alike: rtp preprocess makes them."""


@dataclass(frozen=True, kw_only=True)
class DeleteArguments:
    """Flags of `rtp store delete`."""

    store: tyro.conf.Positional[str]
    """Store of robot episodes, local or s3://, gs://."""
    episodes: tuple[int, ...] = ()
    """Numbers of episodes in the store, from 0, as batches and rtp evaluate count them."""
    flag: str | None = None
    """Delete the episodes of which a step carries this flag (rtp inspect lists flags)."""
    expect: str | None = None
    """Fingerprint of the manifest that the numbers are meant for (rtp store log): another one is refused."""


@dataclass(frozen=True, kw_only=True)
class MergeArguments:
    """Flags of `rtp store merge`."""

    out: tyro.conf.Positional[str]
    """Folder that the new store is written below, local or s3://, gs://."""
    stores: tyro.conf.Positional[tuple[str, ...]]
    """Stores of robot episodes, of one dataset and preprocessed alike."""
    split: str | None = None
    """Name of the new store's split; by default that of the first."""


@dataclass(frozen=True, kw_only=True)
class SplitArguments:
    """Flags of `rtp store split`."""

    store: tyro.conf.Positional[str]
    """Store of robot episodes, local or s3://, gs://."""
    out: tyro.conf.Positional[str]
    """Folder that the new stores are written below, local or s3://, gs://."""
    shares: Annotated[dict[str, float], tyro.conf.arg(metavar="NAME SHARE ...")]
    """Share of the episodes of each new split, such as train 0.9 val 0.1; they sum to 1."""
    by: Literal["shards", "episodes"] = "shards"
    """Deal out whole shards, of which one is cut at each border, or single episodes, which writes most shards anew."""
    seed: int = 0
    """Seed of the deal."""


@dataclass(frozen=True, kw_only=True)
class StoreArguments:
    """Flags of `rtp store log`, `rtp store prune` and `rtp store card`."""

    store: tyro.conf.Positional[str]
    """Store of robot episodes (card: or of image-text examples), local or s3://, gs://."""


_EXAMPLES = {
    "append": "rtp store append stores/mine/1.0.0/train more/mine/1.0.0/train",
    "delete": "rtp store delete stores/mine/1.0.0/train --flag failed",
    "merge": "rtp store merge stores/both stores/mine/1.0.0/train more/mine/1.0.0/train",
    "split": "rtp store split stores/mine/1.0.0/train stores/parts --shares train 0.9 val 0.1",
    "log": "rtp store log stores/mine/1.0.0/train",
    "prune": "rtp store prune stores/mine/1.0.0/train",
    "card": "rtp store card stores/mine/1.0.0/train",
}


def main(arguments: list[str]) -> JsonSummary:
    """Change a store and say what it is now."""
    actions: dict[str, Callable[[list[str]], JsonSummary]] = {
        "append": _append,
        "delete": _delete,
        "merge": _merge,
        "split": _split,
        "log": _log,
        "prune": _prune,
        "card": _card,
    }
    if not arguments or arguments[0] not in actions:
        if arguments and arguments[0] in ("-h", "--help"):
            print(f"usage: rtp store {'|'.join(actions)} ... [--json]\n")
            width = shutil.get_terminal_size().columns
            print(*(textwrap.fill(part, width) for part in (__doc__ or "").split("\n\n")), sep="\n\n")
            print("\nrtp store append --help, and so on, lists the flags of each")
            print(f"\nExample:\n  {_EXAMPLES['append']}")
            raise SystemExit(0)
        given = f", not {arguments[0]!r}" if arguments else ""
        raise ValueError(f"rtp store takes {', '.join(actions)}{given}: rtp store append --help")
    return actions[arguments[0]](arguments[1:])


def _append(arguments: list[str]) -> JsonSummary:
    flags = parse(
        AppendArguments, arguments, prog="rtp store append", description=__doc__ or "", example=_EXAMPLES["append"]
    )
    if not flags.sources:
        raise ValueError("rtp store append needs the stores to add: rtp store append STORE OTHER ...")
    with share_done("append") as shown:
        return _said(store_changes.append(flags.store, flags.sources, shown))


def _delete(arguments: list[str]) -> JsonSummary:
    flags = parse(
        DeleteArguments, arguments, prog="rtp store delete", description=__doc__ or "", example=_EXAMPLES["delete"]
    )
    if not flags.episodes and flags.flag is None:
        raise ValueError("rtp store delete needs --episodes or --flag")
    settings = {"episodes": flags.episodes, "flag": flags.flag, "expect": flags.expect}
    with share_done("delete") as shown:
        changed = store_changes.delete(flags.store, **settings, progress=shown)
    summary = _said(changed)
    print(f"files of the manifest before are still there: rtp store prune {changed.store} removes them")
    return summary


def _merge(arguments: list[str]) -> JsonSummary:
    flags = parse(
        MergeArguments, arguments, prog="rtp store merge", description=__doc__ or "", example=_EXAMPLES["merge"]
    )
    with share_done("merge") as shown:
        return _said(store_changes.merge(flags.out, flags.stores, split=flags.split, progress=shown))


def _split(arguments: list[str]) -> JsonSummary:
    flags = parse(
        SplitArguments, arguments, prog="rtp store split", description=__doc__ or "", example=_EXAMPLES["split"]
    )
    settings = {"by": flags.by, "seed": flags.seed}
    with share_done("split") as shown:
        made = store_changes.split(flags.store, flags.out, flags.shares, **settings, progress=shown)
    return {"stores": [dict(_said(changed)) for changed in made]}


def _log(arguments: list[str]) -> JsonSummary:
    flags = parse(StoreArguments, arguments, prog="rtp store log", description=__doc__ or "", example=_EXAMPLES["log"])
    entries = store_changes.log(flags.store)
    for entry in entries:
        how = f"{entry.lineage.change}: {entry.lineage.sentence}" if entry.lineage else "conversion"
        print(f"{entry.manifest}  {entry.episodes} episodes, {entry.steps} steps, contract {entry.contract}  {how}")
        for parent in entry.lineage.parents if entry.lineage else ():
            print(f"    of {parent.store}, manifest {parent.manifest}")
    return {"manifests": [asdict(entry) for entry in entries]}


def _prune(arguments: list[str]) -> JsonSummary:
    flags = parse(
        StoreArguments, arguments, prog="rtp store prune", description=__doc__ or "", example=_EXAMPLES["prune"]
    )
    gone = store_changes.prune(flags.store)
    print(f"{len(gone)} files removed that the present manifest does not list")
    return {"removed": gone}


def _card(arguments: list[str]) -> JsonSummary:
    flags = parse(
        StoreArguments, arguments, prog="rtp store card", description=__doc__ or "", example=_EXAMPLES["card"]
    )
    written = write_card(open_store(flags.store))
    print(f"{written}: licence, citation and source are what the source said of itself; look it through before sharing")
    return {"card": written}


def _said(changed: Changed) -> JsonSummary:
    what = "nothing to do" if changed.unchanged else f"{changed.written} shards written anew"
    print(
        f"{changed.store}\n{changed.episodes} episodes, {changed.steps} steps in {changed.shards} shards; {what}\n"
        f"manifest {changed.manifest}, contract {changed.contract}"
    )
    print_next("inspect", changed.store, "--audit")
    return asdict(changed)

"""The stores that a model was trained on, as its checkpoints and bundles refer to them, and finding them again.

A reference holds the store's path, its relative path from the folder of the run or bundle, and the fingerprint of the
store's manifest, which lists the SHA-256 of every file. The relative path stays right when a whole project moves.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.json_files import JsonObject
from preprocessing.store.lineage import FINGERPRINT_DIGITS, fingerprint
from preprocessing.store.store_manifest import Rights
from preprocessing.store.web_store import WebStore, open_store

log = logging.getLogger(__name__)

REFERENCES = "training_stores"  # in the metadata of a checkpoint or bundle, beside "stores", the bare paths

Store = EpisodeStore | WebStore
_VERSION = re.compile(r"v?\d+(\.\d+)*|\d+px")  # of TFDS, LeRobot and V-D4RL


@dataclass(frozen=True, kw_only=True)
class StoreReference:
    """One training store. Fields that older metadata do not have are empty.

    relative: path from the folder of the run or bundle; "" if one of the two is in an object store.
    dataset: dataset/version/split by the store's manifest; in older metadata the last three parts of its path.
    source: fingerprint of the source's records, as `fingerprint` is of the store's files.
    licence, citation, urls: what the source says of itself.
    """

    path: str
    relative: str = ""
    fingerprint: str = ""
    dataset: str = ""
    records: int = 0
    source: str = ""
    licence: str = ""
    citation: str = ""
    urls: str = ""

    @staticmethod
    def of(store: Store, folder: str) -> StoreReference:
        """A reference from `folder`, the output of a run or a bundle."""
        manifest = store.manifest
        shards, rights = manifest.shards, getattr(manifest, "rights", None) or Rights()
        records = "".join(getattr(shard, "source_sha256_of_crcs", shard.sha256) for shard in shards)
        return StoreReference(
            path=store.root,
            relative=_way(folder, store.root),
            fingerprint=store.manifest_sha256[:FINGERPRINT_DIGITS],
            dataset=f"{manifest.dataset}/{manifest.version}/{manifest.split}",
            records=sum(len(shard.episode_lengths) for shard in shards),
            source=hashlib.sha256(records.encode()).hexdigest()[:FINGERPRINT_DIGITS],
            licence=rights.licence,
            citation=rights.citation,
            urls=rights.source,
        )

    @property
    def name(self) -> str:
        """What others may read: `dataset`, or its last part where it is of a path that need not say a dataset."""
        parts = self.dataset.split("/")
        is_of_path = self.dataset == dataset_of(self.path) != self.path
        is_named = len(parts) == 3 and _VERSION.fullmatch(parts[1]) is not None
        return parts[-1] if is_of_path and not is_named else self.dataset

    def lineage(self) -> dict[str, object]:
        """What a registered version says of the store."""
        return {key: value for key, value in asdict(self).items() if key != "relative"}

    def is_of(self, store: Store) -> bool:
        """Whether this is the very store; any will do where the fingerprint is not known."""
        return store.manifest_sha256[:FINGERPRINT_DIGITS] == self.fingerprint or not self.fingerprint

    def is_at(self, path: str) -> bool:
        """Whether this very store lies at `path`; any store will do where the fingerprint is not known."""
        try:
            return fingerprint(path) == self.fingerprint or not self.fingerprint
        except (FileNotFoundError, NotADirectoryError):
            return False


def dataset_of(path: str) -> str:
    """Dataset, version and split: the last three parts of a store's path."""
    return "/".join(path.rstrip("/").split("/")[-3:])


def references_of(metadata: JsonObject) -> list[StoreReference]:
    """From the metadata of a checkpoint or bundle, older ones too."""
    if REFERENCES in metadata:
        return [StoreReference(**reference) for reference in metadata[REFERENCES]]
    return [StoreReference(path=path, dataset=dataset_of(path)) for path in metadata.get("stores", ())]


def references_json(references: Sequence[StoreReference]) -> dict[str, object]:
    """For the metadata of a checkpoint or bundle."""
    return {**paths_alone(references), REFERENCES: [asdict(reference) for reference in references]}


def paths_alone(references: Sequence[StoreReference]) -> dict[str, object]:
    """As version 0.1 wrote them."""
    return {"stores": [reference.path for reference in references]}


def found_again(reference: StoreReference, folder: str) -> StoreReference:
    """A reference read in `folder`, with the store's present path: the recorded one, or the relative one from `folder`
    if the store is there."""
    if "://" in reference.path or not reference.relative or reference.is_at(reference.path):
        return reference
    path = os.path.normpath(Path(folder).absolute() / reference.relative)
    return replace(reference, path=path) if reference.is_at(path) else reference


def seen_from(reference: StoreReference, folder: str) -> StoreReference:
    """The reference for another `folder`."""
    return replace(reference, relative=_way(folder, reference.path))


def named_anew(references: Sequence[StoreReference], named: Sequence[str]) -> dict[str, str]:
    """{recorded path: the path in `named` where the store is now}, for the stores that have moved.

    Compares fingerprints; if none was recorded, dataset, version and split. `named` may be folders that hold several
    stores of one dataset, one per split.
    """
    lost = [each for each in references if not each.is_at(each.path)]
    return {each.path: path for each in lost for path in named if _is_meant(_root(path, each), each)}


def _is_meant(root: str | None, reference: StoreReference) -> bool:
    if root is None or not reference.is_at(root):
        return False
    return bool(reference.fingerprint) or dataset_of(root) == reference.dataset


def open_training_store(reference: StoreReference, anew: str | None = None) -> Store | None:
    """The store at `anew`, or at its recorded path; None, with a warning, if it is missing or has changed."""
    root = _root(anew or reference.path, reference)
    if root is not None and reference.is_at(root):
        return open_store(root)
    what = "is not there any more" if root is None else "is not the same any more"
    log.warning(
        "%s, which the model was trained on, %s: --data names the place of one that moved", reference.path, what
    )
    return None


def _root(path: str, reference: StoreReference) -> str | None:
    """The store at `path`, or below it the one whose folder is called as the reference's; None if there is none."""
    try:
        return open_store(path, split=reference.path.rstrip("/").rpartition("/")[2]).root
    except (FileNotFoundError, ValueError):
        return None


def _way(folder: str, path: str) -> str:
    return "" if not folder or "://" in folder or "://" in path else os.path.relpath(path, folder)

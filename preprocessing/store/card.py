"""README.md of a store, as the Hugging Face hub shows it: a head for machines, then what the manifest knows.

Nothing is guessed: what the source does not say of its licence or citation is said to be unknown. No path of the
machine that made the store is in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import yaml
from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

from preprocessing.store.episode_store import EpisodeStore, atomic_write
from preprocessing.store.file_system import file_system_of
from preprocessing.store.lineage import fingerprint
from preprocessing.store.store_manifest import Rights
from preprocessing.store.summary import summary
from preprocessing.store.web_store import Store, WebStore

CARD = "README.md"
UNKNOWN = "The source says nothing of it."
_LARGER_THAN = (
    (10**9, "n>1B"),
    (10**8, "100M<n<1B"),
    (10**7, "10M<n<100M"),
    (10**6, "1M<n<10M"),
    (10**5, "100K<n<1M"),
    (10**4, "10K<n<100K"),
    (10**3, "1K<n<10K"),
)


def front_matter(values: Mapping[str, object]) -> str:
    """The YAML head of a card, without what is empty."""
    kept = {key: value for key, value in values.items() if value}
    return f"---\n{yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)}---\n"


def words(text: str) -> str:
    """One line that Markdown does not read as anything else."""
    return " ".join(text.split()).replace("|", "\\|").replace("`", "'").replace("<", "&lt;")


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """A table of Markdown, line by line."""
    yield f"| {' | '.join(head)} |"
    yield f"|{' --- |' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(words(str(cell)) for cell in row)} |"


def rights_lines(rights: Rights) -> Iterator[str]:
    """Licence, source and citation in Markdown."""
    yield f"- Licence: {words(rights.licence) or UNKNOWN}"
    yield f"- Source: {words(rights.source) or UNKNOWN}"
    yield f"- Citation: {'' if rights.citation else UNKNOWN}".rstrip()
    if rights.citation:
        yield from ("", "```", rights.citation.strip().replace("```", "'''"), "```")


def write_card(store: Store) -> str:
    """Write the card of a store beside its manifest; its path."""
    filesystem, root = file_system_of(store.root)
    with atomic_write(filesystem, f"{root}/{CARD}", temporary=root) as file:
        file.write(dataset_card(store).encode())
    return f"{store.root}/{CARD}"


def _files(split: str) -> dict[str, str]:
    """The shards under the split's name; the hub knows words alone, so train[:1000] is train."""
    word = re.match(r"\w+", split)
    return {"split": word.group() if word else "train", "path": "shard-*.parquet"}


def dataset_card(store: Store) -> str:
    """The card of a store of robot episodes or of image-text examples."""
    manifest = store.manifest
    is_web = isinstance(store, WebStore)
    rights = manifest.rights or Rights()
    examples = store.manifest.counts.examples_out if is_web else store.manifest.counts.steps
    head = front_matter(
        {
            "license": hub_licence(rights.licence),
            "task_categories": ["visual-question-answering"] if is_web else ["robotics"],
            "tags": ["rt-pipelines", *([] if is_web else ["robotics", "RT-1", store.manifest.contract.action.name])],
            "pretty_name": f"{manifest.dataset} {manifest.version} {manifest.split}",
            "size_categories": [_size(examples)],
            "configs": [{"config_name": "default", "data_files": [_files(manifest.split)]}],
        }
    )
    body = list(_of_examples(store) if is_web else _of_episodes(store))
    changes = [] if is_web or store.manifest.lineage is None else list(_lineage(store))
    parts = [
        f"# {words(manifest.dataset)} {words(manifest.version)}, {words(manifest.split)}",
        "",
        *body,
        "",
        "## Rights",
        "",
        *rights_lines(rights),
        "",
        "## Where it comes from",
        "",
        f"Made by rt-pipelines; manifest `{fingerprint(store.root)}`, which lists the SHA-256 of every file.",
        *changes,
    ]
    return head + "\n".join(parts) + "\n"


def hub_licence(licence: str) -> str:
    """As the hub's identifiers are written; "" for a text that is none, and then for the hub to be unknown."""
    found = licence.strip().lower().replace(" ", "-")
    return found if found in _LICENCES else ""


def is_known_licence(licence: str) -> bool:
    """Whether it is an identifier of the hub that is known here, or an SPDX expression such as MIT OR Apache-2.0."""
    try:
        canonicalize_license_expression(licence.strip())
    except InvalidLicenseExpression:
        return bool(hub_licence(licence))
    return True


_CREATIVE_COMMONS = ("by", "by-sa", "by-nc", "by-nd", "by-nc-sa", "by-nc-nd")
_LICENCES = frozenset(
    (
        *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "gpl-3.0", "cc0-1.0", "odc-by", "gemma"),
        *(f"cc-{kind}-{version}" for kind in _CREATIVE_COMMONS for version in ("2.0", "3.0", "4.0")),
    )
)


def _size(count: int) -> str:
    return next((name for least, name in _LARGER_THAN if count >= least), "n<1K")


def _of_episodes(store: EpisodeStore) -> Iterator[str]:
    about = summary(store)
    counts = about["counts"]
    yield (
        f"Robot episodes, a step a row: {counts['episodes_out']} episodes, {counts['steps']} steps. Of "
        f"{counts['episodes_in']} in the source {counts['quarantined']} are left out, each with its reason in "
        "`quarantine.jsonl`."
    )
    yield from ("", "## What its numbers mean", "")
    yield from table(
        ["", ""],
        [
            ("contract", about["contract_id"]),
            ("action space", about["space"]),
            ("control rate", f"{about['control_hz']:g} Hz"),
            ("gripper", about["gripper"]),
            ("frames", f"{about['image']}, resize {about['resize']}"),
            ("cameras", ", ".join(about["cameras"])),
            ("instruction vectors", about["encoder"]),
            ("not in this dataset", ", ".join(about["dimensions_lacking"]) or "nothing"),
        ],
    )
    yield ""
    rows = about["dimensions"].items()
    head = ["dimension", "unit", "min", "max", "mean", "std"]
    yield from table(head, [(name, r["unit"], *(f"{r[key]:.4g}" for key in head[2:])) for name, r in rows])
    if "audit" in about:
        yield from ("", "## Do the data bear that out?", "")
        yield from table(["", "", ""], [(v["finding"], v["name"], v["sentence"]) for v in about["audit"]["verdicts"]])
    if about["remarks"] or about["notes"]:
        yield from ("", "## Remarks", "", *(f"- {words(text)}" for text in (*about["remarks"], about["notes"]) if text))


def _of_examples(store: WebStore) -> Iterator[str]:
    manifest = store.manifest
    counts = manifest.counts
    filtered = 0 if manifest.filtered is None else sum(manifest.filtered.filtered.values())
    yield (
        f"Image-text examples: {counts.examples_in} in = {counts.examples_out} out + {counts.quarantined} quarantined "
        f"+ {manifest.duplicates} duplicates + {filtered} filtered; {counts.images} pictures."
    )
    if manifest.filtered is not None:
        yield from ("", "Languages: " + ", ".join(f"{code} {n}" for code, n in manifest.filtered.languages.items()))


def _lineage(store: EpisodeStore) -> Iterator[str]:
    lineage = store.manifest.lineage
    if lineage is not None:
        parents = ", ".join(f"`{parent.manifest}`" for parent in lineage.parents)
        yield f"Changed ({lineage.change}): {words(lineage.sentence)}; from manifest {parents}."

"""`rtp filter STORE OUT`: of a store of image-text examples the best by similarity, each once, as RT-2's web data were.

Keeps the highest scores (by default a tenth), takes copies of a picture out, and counts languages. The account adds up:
examples in = kept + filtered + duplicates + quarantined. decisions.parquet in the new store says of every example what
became of it, filter.html shows some of each kind. Run again, it resumes; a finished store stays.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated

import tyro

from cluster.session import on_demand
from pipelines.config.arguments import parse
from pipelines.preprocess_web import ray_session
from pipelines.reports.filter_page import PAGE, page
from pipelines.terminal.commands import JsonSummary
from pipelines.terminal.next_step import print_next
from preprocessing.filtering.filter_config import FilterConfig
from preprocessing.filtering.filter_store import FilterSummary, filter_store
from preprocessing.store.episode_store import atomic_write
from preprocessing.store.file_system import file_system_of
from preprocessing.store.web_store import WebStore


@dataclass(frozen=True, kw_only=True)
class FilterArguments:
    """Flags of `rtp filter`."""

    store: tyro.conf.Positional[str]
    """A store of image-text examples that rtp preprocess wrote, local or s3://, gs://."""
    out: tyro.conf.Positional[str]
    """Folder that the filtered store is written below, local or s3://, gs://."""
    pictures: int = 24
    """Pictures of each kind on the page filter.html."""
    config: Annotated[FilterConfig, tyro.conf.arg(name="")]

    def __post_init__(self) -> None:
        if self.pictures < 0:
            raise ValueError(f"--pictures must be 0 or more, got {self.pictures}")


def main(arguments: list[str]) -> JsonSummary:
    """Run the command line and print the account."""
    flags = parse(FilterArguments, arguments, prog="rtp filter", description=__doc__ or "")
    with on_demand(ray_session(flags.config.workers)) as reach_ray:
        summary = filter_store(flags.store, flags.out, flags.config, reach_ray)
    _write_page(summary, pictures=flags.pictures)
    print(f"{summary.store}\n{account(summary)}")
    for reason, count in {**summary.filtered, **summary.reasons}.items():
        print(f"{count:>8}  {reason}")
    print(f"languages kept: {', '.join(f'{code} {count}' for code, count in summary.languages.items())}")
    if summary.lowest_score is not None and flags.config.scorer != "none":
        print(f"lowest score that passed: {summary.lowest_score:.6g}")
    print(f"page: {summary.store}/{PAGE}")
    print_next("inspect", summary.store)
    return asdict(summary)


def account(summary: FilterSummary) -> str:
    """The sum in words."""
    return (
        f"examples in {summary.examples_in} = kept {summary.kept} + filtered {sum(summary.filtered.values())} + "
        f"duplicates {summary.duplicates} + quarantined {summary.quarantined}; {summary.images} images in "
        f"{summary.shards} shards, {summary.seconds:.1f} s"
    )


def _write_page(summary: FilterSummary, *, pictures: int) -> None:
    filesystem, root = file_system_of(summary.store)
    text = page(WebStore.open(summary.source), WebStore.open(summary.store), pictures=pictures)
    with atomic_write(filesystem, f"{root}/{PAGE}", temporary=root) as file:
        file.write(text.encode())

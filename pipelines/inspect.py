"""`rtp inspect STORE`: counts, statistics with units, instructions, quarantine of an episode store; --html draws it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from pipelines.arguments import parse
from preprocessing import report
from preprocessing.episode_store import EpisodeStore


@dataclass(frozen=True, kw_only=True)
class InspectArguments:
    """Flags of `rtp inspect`."""

    store: tyro.conf.Positional[str]
    """Episode store: a folder that rtp preprocess wrote, local or s3://, gs://."""
    split: str | None = None
    """Split, where the folder holds several stores."""
    html: str | None = None
    """File to write a self-contained page to: film strips, action curves, histograms, quarantine."""
    episodes: int = 12
    """Episodes drawn on the page."""
    verify: bool = False
    """Read every file and compare its checksum with the manifest."""


def inspect(
    store: str, *, split: str | None = None, html: str | None = None, episodes: int = 12, verify: bool = False
) -> dict[str, Any]:
    """The summary of a store; with `html`, its page is written there too. Raises ValueError where `verify` fails."""
    opened = EpisodeStore.open(store, split=split)
    if verify:
        opened.verify()
    found = report.summary(opened)
    if html is not None:
        Path(html).parent.mkdir(parents=True, exist_ok=True)
        Path(html).write_text(report.page(opened, found, episodes=episodes))
    return found


def main(arguments: list[str]) -> dict[str, Any]:
    """Run the command line and print the summary."""
    given = parse(InspectArguments, arguments, prog="rtp inspect", description=__doc__ or "")
    found = inspect(given.store, split=given.split, html=given.html, episodes=given.episodes, verify=given.verify)
    print(report.text(found))
    if given.html:
        print(f"page: {given.html}")
    return found

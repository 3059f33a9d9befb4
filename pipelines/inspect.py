"""`rtp inspect STORE`: counts, statistics with units, instructions, quarantine of an episode store; --html draws it.

--audit measures from the data whether the declared conventions hold, and keeps the verdicts beside the store.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from pipelines.arguments import parse
from preprocessing import audit as auditing
from preprocessing import report, web_report
from preprocessing.episode_store import EpisodeStore
from preprocessing.store_check import require_whole
from preprocessing.web_store import WebStore, open_store


@dataclass(frozen=True, kw_only=True)
class InspectArguments:
    """Flags of `rtp inspect`."""

    store: tyro.conf.Positional[str]
    """Store of episodes, or of image-text examples: a folder that rtp preprocess wrote, local or s3://, gs://."""
    split: str | None = None
    """Split, where the folder holds several stores."""
    html: str | None = None
    """File to write a self-contained page to: film strips, action curves, histograms, quarantine."""
    episodes: int = 12
    """Episodes drawn on the page."""
    verify: bool = False
    """Read every file and compare its checksum with the manifest."""
    audit: bool = False
    """Measure whether the declared conventions hold (gripper sign, displacements, units, lag, colours, repeated frames,
    instructions, flags) and save the verdicts as audit.json in the store."""
    reference: str | None = None
    """For --audit: a store of the same cameras whose colours are known to be right, such as another split."""


def inspect(
    store: str,
    *,
    split: str | None = None,
    html: str | None = None,
    episodes: int = 12,
    verify: bool = False,
    audit: bool = False,
    reference: str | None = None,
) -> dict[str, Any]:
    """The summary of a store, with the audit's verdicts where there is one; with `html`, its page is written there too.

    Raises ValueError where `verify` fails.
    """
    if reference is not None and not audit:
        raise ValueError("--reference is for the audit's colours: add --audit")
    if html is not None and "://" in html:
        raise ValueError(f"--html {html} must be a local file: copy the page there afterwards")
    if episodes < 0:
        raise ValueError(f"--episodes must be 0 or more, got {episodes}")
    opened = open_store(store, split=split)
    if split is not None and opened.manifest["split"] != split:
        raise ValueError(f"{opened.root} holds split {opened.manifest['split']!r}, not {split!r}: give its folder")
    if verify:
        require_whole(opened, checksum_bytes=float("inf"))
    if isinstance(opened, WebStore):
        if html is not None or audit:
            raise ValueError(f"{store} holds image-text examples: --html and --audit are for stores of robot episodes")
        return web_report.summary(opened)
    if audit:
        measured = auditing.audit(opened, reference=EpisodeStore.open(reference) if reference else None)
        auditing.save(opened, measured)
    found, verdicts = report.summary(opened), auditing.saved(opened)
    if verdicts is not None:
        found["audit"] = verdicts.to_json() | {"blocking": auditing.blocking(verdicts.verdicts)}
    if html is not None:
        Path(html).parent.mkdir(parents=True, exist_ok=True)
        Path(html).write_text(report.page(opened, found, episodes=episodes))
    return found


def main(arguments: list[str]) -> dict[str, Any]:
    """Run the command line and print the summary."""
    given = parse(InspectArguments, arguments, prog="rtp inspect", description=__doc__ or "")
    found = inspect(**vars(given))
    print(web_report.text(found) if "kind" in found else report.text(found))
    if given.html:
        print(f"page: {given.html}")
    return found

"""`rtp inspect PATH`: the content of a store or of a trained model's folder.

A store of episodes: counts, statistics with units, instructions, quarantine. A store of image-text examples: counts. A
run, checkpoint or bundle: the model, its contract and its origin. --html draws a store of episodes. --audit measures
whether the declared conventions hold, and saves the verdicts beside the store.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import tyro

from pipelines.config.arguments import parse
from pipelines.config.output_paths import require_output_file
from pipelines.publishing import model_summary
from pipelines.publishing.model_summary import MODELS, kind_of_model
from pipelines.reports.store_page import page
from pipelines.terminal.atomic_files import write_whole
from pipelines.terminal.commands import JsonSummary
from pipelines.terminal.next_step import print_next, print_next_evaluation
from preprocessing.audit import store_audit
from preprocessing.store import summary as store_summary
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.integrity import require_whole
from preprocessing.store.web_store import WebStore, open_store
from preprocessing.web import web_summary

_RECIPES = {
    "metaworld_sample": "rt1_metaworld",
    "bridge_dataset": "rt1_bridge_overfit",
    "fractal20220817_data": "rt1_fractal",
}


@dataclass(frozen=True, kw_only=True)
class InspectArguments:
    """Flags of `rtp inspect`."""

    store: tyro.conf.Positional[str]
    """A store that rtp preprocess wrote, or the folder of a run, checkpoint or bundle; local or s3://, gs://."""
    split: str | None = None
    """Split, if the folder holds several stores."""
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
) -> JsonSummary:
    """The summary of a store or model, with the audit's verdicts if the store has them. html: file for the page.

    Raises ValueError if `verify` fails.
    """
    if store.startswith("models:/"):
        raise ValueError(f"{store} is a registered model: rtp registry show NAME says where its versions come from")
    if reference is not None and not audit:
        raise ValueError("--reference is for the audit's colours: add --audit")
    if html is not None and "://" in html:
        raise ValueError(f"--html {html} must be a local file: copy the page there afterwards")
    require_output_file(html, "--html")
    if episodes < 0:
        raise ValueError(f"--episodes must be 0 or more, got {episodes}")
    kind = kind_of_model(store)
    if kind is not None:
        if html is not None or audit or verify:
            raise ValueError(f"{store} is a {kind}: --html, --audit and --verify are for stores")
        return dict(model_summary.summary(store, kind))
    opened = open_store(store, split=split)
    if split is not None and opened.manifest.split != split:
        raise ValueError(f"{opened.root} holds split {opened.manifest.split!r}, not {split!r}: give its folder")
    if verify:
        require_whole(opened, checksum_bytes=float("inf"))
    if isinstance(opened, WebStore):
        if html is not None or audit:
            raise ValueError(f"{store} holds image-text examples: --html and --audit are for stores of robot episodes")
        return dict(web_summary.summary(opened))
    if audit:
        verdicts = store_audit.audit(opened, reference=EpisodeStore.open(reference) if reference else None)
        unsaved = _why_not_saved(opened, verdicts)
    else:
        verdicts = store_audit.saved(opened)
        unsaved = ""
    summary = store_summary.summary(opened)
    if verdicts is not None:
        summary["audit"] = store_audit.audit_summary(verdicts)
    if unsaved:
        summary["remarks"].append(unsaved)
    if html is not None:
        write_whole(str(Path(html).absolute()), page(opened, summary, episodes=episodes))
    return dict(summary)


def _why_not_saved(store: EpisodeStore, audit: store_audit.Audit) -> str:
    """Save the audit; the sentence for the user if the store cannot be written to, else ""."""
    try:
        store_audit.save(store, audit)
    except OSError as error:
        reason = error.strerror or str(error)
        return f"the verdicts are not saved in {store.root} ({reason}): rtp train measures them again"
    return ""


def main(arguments: list[str]) -> JsonSummary:
    """Run the command line and print the summary."""
    flags = parse(InspectArguments, arguments, prog="rtp inspect", description=__doc__ or "")
    summary = inspect(**vars(flags))
    if summary.get("kind") in MODELS:
        model = cast(model_summary.ModelSummary, summary)
        print(model_summary.text(model))
        print_next_evaluation(flags.store, trained_on=model["stores"])
        return summary
    if "kind" in summary:
        store = cast(web_summary.WebStoreSummary, summary)
        print(web_summary.text(store))
    else:
        store = cast(store_summary.StoreSummary, summary)
        print(store_summary.text(store))
    if flags.html:
        print(f"page: {flags.html}")
    _print_next(store)
    return summary


def _print_next(summary: web_summary.WebStoreSummary | store_summary.StoreSummary) -> None:
    """Print the next command: training on a store of training data, else evaluation."""
    if summary["split"].partition("-")[0] != "train":
        print(f"next: give it to rtp train as --validation, or to rtp evaluate as --data: {summary['store']}")
    elif "kind" in summary:
        print_next("train", "rt2_tiny", "--data", "ROBOT_STORE", summary["store"], "--output", "runs/rt2")
    else:
        recipe = _RECIPES.get(summary["dataset"], "rt1_tiny")
        print_next("train", recipe, "--data", summary["store"], "--output", f"runs/{recipe}")

"""`rtp mask STORE --detector ...`: marks of the objects meant, beside the frames of a store (MOO, arXiv 2303.00905).

Each episode gets one pixel at the middle of the box of the object that it is about, 1.0, and one for a second object,
0.5, found in its first frame; the instruction becomes its verb alone. A model with --model.image-channels rgb+mask
reads them. Frames are not written anew. Run again, it resumes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated

import tyro

from cluster.session import on_demand
from pipelines.config.arguments import parse
from pipelines.preprocess_web import ray_session
from pipelines.terminal.commands import JsonSummary
from pipelines.terminal.next_step import print_next
from preprocessing.masks.mask_store import MaskConfig, mask_store


@dataclass(frozen=True, kw_only=True)
class MaskArguments:
    """Flags of `rtp mask`."""

    store: tyro.conf.Positional[str]
    """A store of robot episodes, local or s3://, gs://."""
    config: Annotated[MaskConfig, tyro.conf.arg(name="")]


def main(arguments: list[str]) -> JsonSummary:
    """Run the command line and print the account."""
    flags = parse(MaskArguments, arguments, prog="rtp mask", description=__doc__ or "")
    with on_demand(ray_session(flags.config.workers)) as reach_ray:
        summary = mask_store(flags.store, flags.config, reach_ray)
    left = sum(summary.not_marked.values())
    print(
        f"{summary.store}\nepisodes {summary.episodes} = marked {summary.marked} + not marked {left}; "
        f"{summary.with_second} with a second object"
    )
    for reason, count in summary.not_marked.items():
        print(f"{count:>8}  {reason}: not trained on")
    print(f"instructions: {', '.join(f'{verb!r} {count}' for verb, count in summary.verbs.items())}")
    print_next(
        "train", "rt1_tiny", "--data", summary.store, "--model.image-channels", "rgb+mask", "--output", "runs/moo"
    )
    return asdict(summary)

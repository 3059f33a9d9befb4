"""`rtp preprocess SOURCE OUT --format F`: image-text data (VQA, captions) -> a store of examples for RT-2."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated

import tyro

from cluster.session import RaySession, on_demand
from pipelines.config.arguments import parse
from pipelines.terminal.commands import JsonSummary
from pipelines.terminal.next_step import print_next
from preprocessing.conversion.run_shards import OBJECT_STORE_MB
from preprocessing.web.convert_web import WebConvertConfig, convert_web
from preprocessing.web.web_summary import account


@dataclass(frozen=True, kw_only=True)
class PreprocessWebArguments:
    """Flags of `rtp preprocess` for image-text data."""

    source: tyro.conf.Positional[str]
    """Folder of the image-text data, or of a store of episodes (--format episodes), local or s3://, gs://."""
    out: tyro.conf.Positional[str]
    """Folder that stores are written below, local or s3://, gs://."""
    address: str | None = None
    """Ray cluster that converts, as auto or host:6379; default: RAY_ADDRESS, else this machine. Every node must see
    SOURCE and OUT."""
    config: Annotated[WebConvertConfig, tyro.conf.arg(name="")]


def ray_session(workers: int | None, address: str | None = None) -> RaySession:
    """The Ray that converts: a cluster where `address` or RAY_ADDRESS names one, else one of our own."""
    return RaySession(address=address, num_cpus=workers or None, object_store_mb=OBJECT_STORE_MB, log_to_driver=False)


def main(arguments: list[str]) -> JsonSummary:
    """Run the command line and print the account."""
    flags = parse(
        PreprocessWebArguments,
        arguments,
        prog="rtp preprocess",
        description=__doc__ or "",
        example="rtp preprocess gqa stores --format gqa --split val_balanced --images gqa/images",
    )
    with on_demand(ray_session(flags.config.workers, flags.address)) as reach_ray:
        summary = convert_web(flags.source, flags.out, flags.config, reach_ray)
    converted = f"{summary.shards_converted} of {summary.shards} shards converted in {summary.seconds:.1f} s"
    print(
        f"{summary.store}\n{account(asdict(summary), duplicates=summary.duplicates, unread=summary.unread)}; "
        f"{summary.images} images; {converted if summary.shards_converted else 'nothing left to do'}"
    )
    for task, lack in summary.not_asked.items():
        print(f"not asked: {task}, since {lack}")
    if flags.config.format == "gqa" and summary.duplicates:
        print(f"questions that stand in several files count once; --split {summary.split}_balanced takes those alone")
    print_next("inspect", summary.store)
    return asdict(summary)

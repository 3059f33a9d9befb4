"""`rtp export-lerobot STORE OUT`: an episode store becomes a LeRobot v3.0 dataset.

Numbers are exactly those of the store, the source's own fields among them; pictures go into videos, whose loss is
measured and printed, or with --pictures stored into Parquet as they are. Units and conventions, which LeRobot's files
do not hold, stand in meta/rt_pipelines.json.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated

import tyro

from pipelines.config.arguments import parse
from pipelines.config.output_paths import output_folder
from pipelines.terminal.commands import JsonSummary
from pipelines.terminal.next_step import command_line
from pipelines.terminal.progress_bar import share_done
from preprocessing.lerobot.export import ExportConfig, ExportSummary, export_store
from preprocessing.store.episode_store import EpisodeStore


@dataclass(frozen=True, kw_only=True)
class ExportLeRobotArguments:
    """Flags of `rtp export-lerobot`."""

    store: tyro.conf.Positional[str]
    """A store of robot episodes that rtp preprocess wrote, local or s3://, gs://."""
    out: tyro.conf.Positional[str]
    """Folder to write, local or s3://, gs://; it must not exist."""
    config: Annotated[ExportConfig, tyro.conf.arg(name="")]


def export_lerobot(store: str, out: str, config: ExportConfig) -> ExportSummary:
    """Export behind a progress bar."""
    opened = EpisodeStore.open(store)
    total = min(opened.num_episodes, config.limit or opened.num_episodes)
    with share_done("export") as shown:
        return export_store(opened, out, config, lambda done: shown(done, total))


def main(arguments: list[str]) -> JsonSummary:
    """Parse the command line, write, and say what was written and what was lost."""
    flags = parse(ExportLeRobotArguments, arguments, prog="rtp export-lerobot", description=__doc__ or "")
    output_folder(flags.out, "OUT")
    summary = export_lerobot(flags.store, flags.out, flags.config)
    print(f"{summary.output}: {summary.episodes} episodes, {summary.frames} frames, {summary.tasks} tasks")
    print(f"action holds the store's column {summary.action}; features: {', '.join(summary.features)}")
    for camera, psnr_db in summary.psnr_db.items():
        loss = "as stored" if psnr_db is None else f"{flags.config.pictures}, {psnr_db:.1f} dB against the store"
        print(f"{camera}: {loss}")
    print(f"left out: {', '.join(summary.left_out)}")
    print(f"read again: {command_line('rtp', 'preprocess', summary.output, 'OUT', '--draft-spec', 'spec.yaml')}")
    return asdict(summary)

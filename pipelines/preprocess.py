"""`rtp preprocess SOURCE OUT`: an RLDS, LeRobot or V-D4RL dataset -> an episode store. Run again, it resumes; a
finished one stays.

With --format (vqav2, coco, jsonl, ...; rtp preprocess --format jsonl --help): image-text data -> a store of examples.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro

from cluster.session import on_demand
from pipelines import preprocess_web
from pipelines.config.arguments import parse, require_local
from pipelines.config.output_paths import require_output_file
from pipelines.preprocess_web import ray_session
from pipelines.terminal.commands import JsonSummary
from pipelines.terminal.next_step import command_line, print_next
from preprocessing.convert import ConvertConfig, Summary, convert
from preprocessing.episode_source import open_source
from preprocessing.spec_file import draft

PreprocessConfig = ConvertConfig


@dataclass(frozen=True, kw_only=True)
class PreprocessArguments:
    """Flags of `rtp preprocess`."""

    source: tyro.conf.Positional[str]
    """Version folder of a TFDS dataset (features.json, dataset_info.json, shards), a LeRobot folder (v3.0 or v2:
    meta/info.json) or one of V-D4RL (.hdf5 or .npz files), local or s3://, gs://."""
    out: tyro.conf.Positional[str]
    """Folder that stores are written below, local or s3://, gs://."""
    address: str | None = None
    """Ray cluster that converts, as auto or host:6379; default: RAY_ADDRESS, else this machine. Every node must see
    SOURCE and OUT."""
    draft_spec: str | None = None
    """Write a draft of a dataset spec for SOURCE to this .yaml file and stop; filled in, it goes to --dataset."""
    config: Annotated[ConvertConfig, tyro.conf.arg(name="")]


def preprocess(source: str, out: str, config: ConvertConfig, address: str | None = None) -> Summary:
    """Convert, on the Ray cluster at `address` if there is one, and return the closing account."""
    with on_demand(ray_session(config.workers, address)) as reach_ray:
        return convert(source, out, config, reach_ray)


def write_draft(source: str, path: Path) -> JsonSummary:
    """Write the draft of a spec for the dataset in `source`. Raises FileExistsError rather than overwrite."""
    require_output_file(str(path), "--draft-spec")
    if path.exists():
        raise FileExistsError(f"--draft-spec {path} is there already: give another file")
    text = draft(open_source(source))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("x") as file:
        file.write(text)
    print(f"{path}: fill in every '?', then {command_line('rtp', 'preprocess', source, 'OUT', '--dataset', path)}")
    return {"draft_spec": str(path)}


def main(arguments: list[str]) -> JsonSummary:
    """Run the command line and print the account."""
    if any(word.partition("=")[0] == "--format" for word in arguments):
        return preprocess_web.main(arguments)
    flags = parse(PreprocessArguments, arguments, prog="rtp preprocess", description=__doc__ or "")
    if flags.draft_spec is not None:
        return write_draft(flags.source, Path(require_local(flags.draft_spec, "--draft-spec")))
    summary = preprocess(flags.source, flags.out, flags.config, flags.address)
    converted = f"{summary.shards_converted} of {summary.shards} shards converted in {summary.seconds:.1f} s"
    if not summary.shards_converted:
        converted = "nothing left to do"
    print(
        f"{summary.store}\n"
        f"episodes in {summary.episodes_in} = out {summary.episodes_out} + quarantined {summary.quarantined}; "
        f"{summary.steps} steps,\n{summary.instructions} distinct instructions by the encoder "
        f"{summary.encoder}\n{converted}"
    )
    for remark in summary.remarks:
        print(f"remark: {remark}")
    print_next("inspect", summary.store)
    return asdict(summary)

"""`rtp preprocess SOURCE OUT`: RLDS shards -> an episode store. Run again, it resumes; a finished one stays."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any

import tyro

from pipelines.arguments import parse
from preprocessing.convert import ConvertConfig, convert

PreprocessConfig = ConvertConfig


@dataclass(frozen=True, kw_only=True)
class PreprocessArguments:
    """Flags of `rtp preprocess`."""

    source: tyro.conf.Positional[str]
    """Version folder of a TFDS dataset (features.json, dataset_info.json, shards), local or s3://, gs://."""
    out: tyro.conf.Positional[str]
    """Folder that stores are written below, local or s3://, gs://."""
    config: Annotated[ConvertConfig, tyro.conf.arg(name="")]


def preprocess(source: str, out: str, config: ConvertConfig) -> dict[str, Any]:
    """Convert, and return the closing account."""
    return asdict(convert(source, out, config))


def main(arguments: list[str]) -> dict[str, Any]:
    """Run the command line and print the account."""
    given = parse(PreprocessArguments, arguments, prog="rtp preprocess", description=__doc__ or "")
    summary = preprocess(given.source, given.out, given.config)
    converted = f"{summary['shards_converted']} of {summary['shards']} shards converted in {summary['seconds']:.1f} s"
    if not summary["shards_converted"]:
        converted = "nothing left to do"
    print(
        f"{summary['store']}\n"
        f"episodes in {summary['episodes_in']} = out {summary['episodes_out']} + quarantined {summary['quarantined']}; "
        f"{summary['steps']} steps, {summary['instructions']} distinct instructions ({summary['encoder']}); {converted}"
    )
    return summary

"""`rtp export`: a checkpoint becomes one folder: `model.safetensors`, configuration, contract, instruction table.

The folder loads with neither Ray nor DeepSpeed installed, and goes wherever a checkpoint goes: `rtp evaluate`, `rtp
register`, `rtp train --init`. From Python: `pipelines.publishing.policy.load_policy(folder)` acts,
`pipelines.publishing.folder.read_bundle(folder)` is the bare model.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fsspec
import tyro

from pipelines.config.arguments import parse
from pipelines.publishing.folder import DESCRIPTION, WEIGHTS, TrainedModel, write_bundle
from pipelines.publishing.trained_model import Which, load_trained, with_instructions
from pipelines.publishing.training_stores import referred_from
from pipelines.terminal.next_step import print_next_evaluation
from preprocessing.store.shard_files import is_local


@dataclass(frozen=True, kw_only=True)
class ExportArguments:
    """Flags of `rtp export`."""

    checkpoint: tyro.conf.Positional[str]
    """The output folder of rtp train, for its newest checkpoint, or one checkpoint in it; local or s3://, gs://."""
    out: tyro.conf.Positional[str]
    """Folder to write, local or s3://, gs://; it must not exist."""
    weights: Which | None = None
    """The running average of the weights (EMA) or the last ones; by default averaged where engine.ema_decay kept it."""


def main(arguments: list[str]) -> dict[str, Any]:
    """Parse the command line, write, and say what was written."""
    given = parse(ExportArguments, arguments, prog="rtp export", description=__doc__ or "")
    require_new(given.out)
    trained = with_instructions(load_trained(given.checkpoint, given.weights))
    publish_bundle(trained, given.out)
    parameters = sum(parameter.numel() for parameter in trained.model.parameters())
    which = trained.metadata.get("weights", "last")
    print(f"{given.out}/{WEIGHTS}: {parameters:,} parameters of step {trained.step}, {which} weights")
    print(f"in Python: from pipelines.publishing.policy import load_policy; policy = load_policy({given.out!r})")
    print_next_evaluation(given.out, trained_on=trained.metadata.get("stores") or [])
    return {
        "output": given.out,
        "checkpoint": trained.source,
        "step": trained.step,
        "parameters": parameters,
        "weights": which,
        "contract": trained.contract.id,
    }


def require_new(out: str) -> None:
    """Raise FileExistsError where something lies at `out`, a path or URL."""
    files, root = fsspec.core.url_to_fs(out)
    if files.exists(root):
        raise FileExistsError(f"{out} exists: give a new folder")


def publish_bundle(trained: TrainedModel, out: str) -> None:
    """Write a new folder, local or remote. It appears whole; in an object store its description comes last."""
    files, root = fsspec.core.url_to_fs(out)
    trained = replace(trained, metadata=referred_from(trained.metadata, root if is_local(files) else out))
    parent = Path(root).parent if is_local(files) else None
    if parent is not None:
        parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".bundle-", dir=parent) as scratch:
        folder = Path(scratch, "bundle")
        folder.mkdir()
        write_bundle(trained, folder)
        if parent is not None:
            folder.rename(root)
            return
        for file in sorted(folder.iterdir(), key=lambda file: file.name == DESCRIPTION):
            files.put_file(str(file), f"{root}/{file.name}")

"""`rtp import-weights`: a flax or Orbax checkpoint of the JAX RT-1 or RT-1-X becomes a model that can be evaluated,
registered and served.

The weights hold no statistics of data, so the contract takes dimensions, units and statistics from the stores in
--data. Model values are RT-1-X's for the datasets it was trained on, and physical values for all others. Without --data
the model has weights, action space, encoder and image recipe, and is bound to no dataset.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

import tyro

from pipelines.config.arguments import absolute, parse
from pipelines.config.output_paths import output_folder
from pipelines.terminal.commands import JsonSummary
from pipelines.terminal.next_step import print_next
from preprocessing.conversion.embeddings import USE_ENCODER


@dataclass(frozen=True, kw_only=True)
class ImportArguments:
    """Flags of `rtp import-weights`."""

    source: tyro.conf.Positional[str]
    """Folder of a flax or Orbax checkpoint, such as rt_1_x_jax, or flax's msgpack file; local or s3://, gs://."""
    out: tyro.conf.Positional[str]
    """Folder to write, local or s3://, gs://; it must not exist."""
    data: tuple[str, ...] = ()
    """Episode stores that the model is to act on: their dimensions, units and statistics enter the contract."""
    encoder: str = USE_ENCODER
    """Id of the instruction encoder that the weights were trained with."""
    world_vector_limit: float | None = None
    """Largest arm displacement per axis and step in model values; by default 2 for 512 bins (RT-1-X), else 1."""
    scaling: Literal["released", "identity"] = "released"
    """Model values: "released", for weights of 512 bins RT-1-X's own constants of each dataset it knows, and physical
    values (metres, radians) otherwise; "identity", physical values always."""


def main(arguments: list[str]) -> JsonSummary:
    """Run the command line and say what was written."""
    flags = parse(ImportArguments, arguments, prog="rtp import-weights", description=__doc__ or "")
    from pipelines.publishing.imported_weights import import_weights  # torch: --help is at once

    source = absolute(flags.source)
    out = output_folder(flags.out, "OUT")
    imported = import_weights(
        source,
        out,
        data=flags.data,
        encoder=flags.encoder,
        scaling=flags.scaling,
        world_vector_limit=flags.world_vector_limit,
    )
    datasets = ", ".join(imported.datasets) or "no dataset (give --data to evaluate or register)"
    print(
        f"{flags.out}: {imported.parameters:,} parameters, {imported.steps} frames of {imported.image_tokens} tokens, "
        f"{imported.bins} bins; bound to {datasets}"
    )
    if flags.data:
        print_next("evaluate", flags.out, "--data", *flags.data)
    return {**asdict(imported), "output": flags.out}

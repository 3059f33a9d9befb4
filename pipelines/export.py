"""`rtp export`: a checkpoint becomes one folder: `model.safetensors`, configuration, contract, instruction table, card.

The folder loads with neither Ray nor DeepSpeed installed, and goes wherever a checkpoint goes: `rtp evaluate`, `rtp
register`, `rtp serve`, `rtp train --init`. From Python: `pipelines.publishing.policy.load_policy(folder)` acts,
`pipelines.publishing.folder.read_bundle(folder)` is the bare model.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

import tyro

from pipelines.config.arguments import parse
from pipelines.config.output_paths import output_folder
from pipelines.terminal.commands import JsonSummary
from pipelines.terminal.next_step import print_next_evaluation

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ExportArguments:
    """Flags of `rtp export`."""

    model: tyro.conf.Positional[str]
    """The output folder of rtp train, for its newest checkpoint, one checkpoint in it (local or s3://, gs://), or
    models:/NAME@ALIAS."""
    out: tyro.conf.Positional[str]
    """Folder to write, local or s3://, gs://; it must not exist."""
    weights: Literal["averaged", "last"] | None = None
    """The running average of the weights (EMA) or the last ones; by default averaged where engine.ema_decay kept it."""
    licence: str = ""
    """Licence of these weights for the card README.md, as the Hugging Face hub names it, such as apache-2.0."""
    push: str | None = None
    """Also bring it, without paths of this machine, to hf://OWNER/MODEL (a repository that is not there is made,
    private; in one that is there it takes the place of all files; HF_TOKEN says who you are), or to a new folder
    s3://BUCKET/FOLDER or gs://BUCKET/FOLDER."""

    def __post_init__(self) -> None:
        if not self.licence.isprintable():
            raise ValueError(f"--licence {self.licence!r} has a line break or another control character: give one line")


def main(arguments: list[str]) -> JsonSummary:
    """Parse the command line, write, and say what was written."""
    flags = parse(ExportArguments, arguments, prog="rtp export", description=__doc__ or "")
    from pipelines.evaluation.record import kept  # torch: --help is at once
    from pipelines.publishing.folder import WEIGHTS
    from pipelines.publishing.model_card import model_card
    from pipelines.publishing.push import address_of, push, require_destination
    from pipelines.publishing.trained_model import load_trained, publish_bundle, require_new, with_instructions
    from preprocessing.store.card import is_known_licence

    if flags.licence and not is_known_licence(flags.licence):
        log.warning("--licence %s is no SPDX identifier that is known here: the card names it as it is", flags.licence)
    output_folder(flags.out, "OUT")
    require_new(flags.out)
    if flags.push is not None:
        require_destination(flags.push)
    trained = with_instructions(load_trained(flags.model, flags.weights))
    scores = kept(flags.model, trained)
    named = (flags.push or flags.out).rstrip("/").rpartition("/")[2]
    address = address_of(flags.push or flags.out)
    card = model_card(trained, scores, name=named, address=address, licence=flags.licence)
    publish_bundle(trained, flags.out, card)
    parameters = sum(parameter.numel() for parameter in trained.model.parameters())
    which = trained.origin.weights or "last"
    print(f"{flags.out}/{WEIGHTS}: {parameters:,} parameters of step {trained.step}, {which} weights")
    print(f"in Python: from pipelines.publishing.policy import load_policy; policy = load_policy({flags.out!r})")
    pushed = None if flags.push is None else push(trained, card, flags.push, whole_in=flags.out)
    if pushed:
        print(f"pushed: {pushed}")
    print_next_evaluation(flags.out, trained_on=[reference.path for reference in trained.origin.stores])
    return {
        "output": flags.out,
        "checkpoint": trained.source,
        "step": trained.step,
        "parameters": parameters,
        "weights": which,
        "contract": trained.contract.id,
        "pushed": pushed,
    }

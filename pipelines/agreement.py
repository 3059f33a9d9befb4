"""`rtp agreement FILE...`: whether an offline score ranks checkpoints as success in a simulator does.

Give evaluations of two checkpoints or more, each scored with --data and acted with --env: the files that rtp evaluate
writes, or the folder evaluations/ of a run. For every offline score:

- MMRV, the mean maximum rank violation: for each checkpoint the largest gap of success to one that the score ranks the
  other way, averaged; 0 is the same order, and the gaps are in units of success (or return)
- r, Pearson's correlation

A score with a large MMRV says nothing here about which checkpoint to keep.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import tyro

from pipelines.config.arguments import parse
from pipelines.terminal.commands import JsonSummary


@dataclass(frozen=True, kw_only=True)
class AgreementArguments:
    """Flags of `rtp agreement`."""

    files: tyro.conf.Positional[tuple[str, ...]]
    """JSON files that rtp evaluate wrote, or folders of them."""


def main(arguments: list[str]) -> JsonSummary:
    """Parse the command line and print the table."""
    flags = parse(AgreementArguments, arguments, prog="rtp agreement", description=__doc__ or "")
    from pipelines.evaluation.agreement import read_scores
    from pipelines.evaluation.tables import print_rows

    found = read_scores(flags.files).agreements()
    print(f"{found[0].checkpoints} checkpoints" if found else "no offline score with an interval")
    rows = [[e.score, f"{e.mmrv:.3f}", "" if e.pearson is None else f"{e.pearson:+.3f}"] for e in found]
    print_rows(["offline score", "MMRV", "r"], rows)
    return {"agreements": [asdict(each) for each in found]}

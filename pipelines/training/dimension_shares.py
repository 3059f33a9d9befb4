"""Of a mixture: which part of the samples of each action dimension comes from which dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

from pipelines.families.models import family_of
from pipelines.training.job import PreparedJob
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.web_store import Store
from rt_models.spec import Contract

Shares = dict[str, dict[str, float]]


def shares_of(job: PreparedJob, stores: Sequence[Store]) -> Shares:
    """Of the job's robot stores, by dimension and dataset; empty for one dataset."""
    if len(job.contract.datasets) < 2:
        return {}
    drawn = family_of(job.experiment.model).sample_shares(job.experiment, stores)
    masses = [float(s.num_steps) if isinstance(s, EpisodeStore) else 0.0 for s in stores] if drawn is None else drawn
    robots = {s.name: mass for s, mass in zip(stores, masses, strict=True) if isinstance(s, EpisodeStore)}
    return dimension_shares(job.contract, robots)


def dimension_shares(contract: Contract, masses: Mapping[str, float]) -> Shares:
    """{dimension: {dataset: its part of the samples that have the dimension}}; `masses` are the datasets' samples."""
    shares: Shares = {}
    for place, name in enumerate(contract.action.names):
        having = {d.name: masses[d.name] for d in contract.datasets if d.action_mask[place]}
        total = sum(having.values())
        if total:
            shares[name] = {dataset: mass / total for dataset, mass in having.items()}
    return shares


def share_lines(shares: Mapping[str, Mapping[str, float]]) -> list[str]:
    """One line for each run of dimensions with the same parts."""
    lines = []
    for parts, names in groupby(shares, key=lambda name: shares[name]):
        said = list(names)
        run = said[0] if len(said) == 1 else f"{said[0]} to {said[-1]}"
        lines.append(f"{run}: {', '.join(f'{dataset} {100 * part:.1f} %' for dataset, part in parts.items())}")
    return lines

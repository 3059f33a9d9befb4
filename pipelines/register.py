"""`rtp register`: a trained model becomes a version of a registered MLflow model that acts on raw camera frames.

The version carries weights (safetensors), configuration, contract, the instruction table of its training stores and
the code it needs; `pipelines/publishing/mlflow_policy.py` is how it predicts. An alias such as champion, which
robots load by, moves only if all gates pass.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Annotated

import tyro

from pipelines.config.arguments import parse
from pipelines.config.compute import Compute
from pipelines.terminal.commands import JsonSummary
from pipelines.terminal.next_step import print_next


@dataclass(frozen=True, kw_only=True)
class RegisterArguments:
    """Flags of `rtp register`."""

    model: tyro.conf.Positional[str]
    """The output folder of rtp train, one checkpoint in it, a folder that rtp export or rtp import-weights wrote, or
    models:/NAME@ALIAS."""
    name: str
    """Name of the registered model."""
    alias: str | None = None
    """Alias to point at the new version, such as champion."""
    gate: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Condition for --alias to move, over the metrics of rtp evaluate: 'token_accuracy>=0.6', or against the version it
    points at now: 'scaled_error<=champion'. May be given several times."""
    data: tuple[str, ...] = ()
    """Held-out episode stores that gates are judged on; without a --gate, scaled_error<=champion is: the mean absolute
    error in physical units, each dimension over its range, is not larger. A training store that has moved is named here
    too, and known by its fingerprint; nothing is judged on it."""
    split: str = "val"
    """Split of each store, where --data names a folder that holds several."""
    env: str | None = None
    """Simulator and tasks that the model acts in, such as metaworld:faucet-open,door-lock, for gates on success;
    without a --gate, success>=champion: acting under the same seeds does not show that it is below."""
    episodes: int = 20
    """With --env, episodes of each task."""
    workers: int = 0
    """With --env, processes that simulate, under Ray; 0 simulates in this process."""
    compute: Annotated[Compute, tyro.conf.arg(name="")] = field(default_factory=Compute)


def main(arguments: list[str]) -> JsonSummary:
    """Parse the command line and register; exit code 1 if a gate kept the alias from moving."""
    flags = parse(RegisterArguments, arguments, prog="rtp register", description=__doc__ or "")
    from pipelines.publishing.registration import PromotionPolicy, register  # torch and MLflow: --help is at once
    from pipelines.publishing.success_gates import Trial

    flags.compute.resolved()
    trial = None
    if flags.env is not None:
        trial = Trial(environment=flags.env, episodes=flags.episodes, workers=flags.workers)
    guard = PromotionPolicy.of(flags.alias, flags.gate, flags.data, flags.split, trial)
    guard = replace(guard, compute=flags.compute)
    result = register(flags.model, name=flags.name, alias=flags.alias, guard=guard)
    print(f"registered {result.model_uri} (version {result.version}) at {result.tracking_uri}")
    for reason in result.gates:
        print(f"  {reason}")
    if flags.alias and not guard.gates:
        print(f"  {flags.alias} moved without a gate: --data STORE lets it move only to a version that is not worse")
    if flags.alias and not result.promoted:
        holder = f"version {result.holder}" if result.holder else "no version"
        print(f"{flags.name}@{flags.alias} stays with {holder}: a gate failed")
    print_next("serve", result.model_uri)
    return asdict(result) | {"exit_code": 0 if result.promoted or not flags.alias else 1}

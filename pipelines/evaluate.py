"""`rtp evaluate`: how well a trained policy predicts the actions of episodes it has not seen.

Every non-terminal step of every episode is predicted from the recorded frames up to it. Scored are only dimensions that
the dataset has and that vary in it; a constant dimension would be right for free. Beside the policy stand three lazy
ones. Their constants are taken from the evaluated episodes themselves, which favours them.

- token accuracy: the share of exactly right bins; it compares only models with the same bins
- scaled error: mean absolute error in physical units, each dimension over its range in the store; it compares any two

- most frequent token: per dimension, always the commonest bin
- mean action: per dimension, always the bin of the mean
- previous action: repeat the recorded action of the step before (at an episode's first step: the commonest bin)

Intervals are 95 % bootstrap intervals over episodes, because steps of one episode are not independent.

With --env the policy acts instead, in a simulator: success by task with intervals, beside baselines that look at no
frame, and against another model under the same seeds. How well actions are predicted finds faults; it does not tell
whether a robot succeeds.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Annotated

import tyro

from pipelines.config.arguments import parse
from pipelines.config.output_paths import output_folder, require_output_file
from pipelines.evaluation.closed_loop_config import ClosedLoopConfig
from pipelines.evaluation.config import EvaluationConfig
from pipelines.evaluation.suites import read_suites
from pipelines.evaluation.wordings import read_wordings
from pipelines.terminal.commands import JsonSummary
from pipelines.terminal.next_step import print_next


@dataclass(frozen=True, kw_only=True)
class EvaluateArguments:
    """Flags of `rtp evaluate`."""

    model: tyro.conf.Positional[str]
    """The output folder of rtp train, one checkpoint in it, a folder that rtp export or rtp import-weights wrote, or
    models:/NAME@ALIAS."""
    data: tuple[str, ...] = ()
    """Stores to score on: of episodes, and for RT-2 of image-text examples too. With --env, the stores whose
    demonstrations are replayed, by default those that the model was trained on."""
    before: str | None = None
    """An earlier model, scored on the same stores and printed beside: what was learnt since, and what is forgotten."""
    behaviour: str | None = None
    """With --off-policy, a model of the policy that acted the recorded episodes, such as one trained to imitate it."""
    split: str = "val"
    """Split of each store, where --data names a folder that holds several."""
    output: str | None = None
    """File to save the report to as JSON, local or s3://, gs://; default: evaluations/ beside the run's checkpoints,
    where alone rtp export looks for the scores of a model card."""
    html: str | None = None
    """File to write a self-contained page to: the scores, and predicted beside recorded actions under their frames."""
    rerun: str | None = None
    """File to write a Rerun recording to (.rrd, extra rerun): frames, recorded beside predicted actions and
    where the model looks, step by step; of as many episodes as the page has. For one store of --data."""
    episodes: int | None = None
    """With --data, episodes of each store drawn on the page, by default 6. With --env, episodes of each task, by
    default 20; their seeds begin at 2000000 + --seed, where no demonstration's are."""
    closed_loop: Annotated[ClosedLoopConfig, tyro.conf.arg(name="")] = field(default_factory=ClosedLoopConfig)
    evaluation: Annotated[EvaluationConfig, tyro.conf.arg(name="")] = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        for flag, path in (("html", self.html), ("rerun", self.rerun)):
            if path is not None and "://" in path:
                raise ValueError(f"--{flag} {path} must be a local file: copy it there afterwards")
        if self.rerun is not None and (self.closed_loop.env is not None or len(self.data) != 1):
            raise ValueError("--rerun records the steps of one store: give one with --data, and no --env")
        if self.episodes is not None and self.episodes < 0:
            raise ValueError(f"--episodes must be 0 or more, got {self.episodes}")
        if not self.data and self.closed_loop.env is None:
            raise ValueError("nothing to evaluate on: give --data STORE, or --env SIMULATOR:TASK to act in")
        if self.closed_loop.env is None and (unread := _changed(self.closed_loop)):
            raise ValueError(f"--{unread[0]} belongs to episodes in a simulator: give --env SIMULATOR:TASK too")
        if self.closed_loop.env is not None and (unread := set(_changed(self.evaluation)) & set(_OF_STORES)):
            raise ValueError(f"--{min(unread)} belongs to scores on stores: leave it out with --env")
        if self.closed_loop.env is None and self.evaluation.paraphrases and not self.evaluation.robustness:
            raise ValueError("--paraphrases are scored with --robustness, or acted with --env: give one of them")
        if self.behaviour is not None and not self.evaluation.off_policy:
            raise ValueError("--behaviour is for estimates of the return: add --off-policy")
        if self.before is not None and self.closed_loop.env is not None:
            raise ValueError("--before compares scores on stores: in a simulator --against MODEL does")


_OF_STORES = ("batch", "off-policy", "perturbations", "robustness", "suites", "web")


def _changed(settings: ClosedLoopConfig | EvaluationConfig) -> list[str]:
    """The flags whose values are not the default ones."""
    named = [
        each.name for each in fields(settings) if getattr(settings, each.name) != getattr(type(settings)(), each.name)
    ]
    return [name.replace("_", "-") for name in named]


def main(arguments: list[str]) -> JsonSummary:
    """Parse the command line, score, print the tables, and save and track what came of it."""
    flags = parse(EvaluateArguments, arguments, prog="rtp evaluate", description=__doc__ or "")
    read_suites(flags.evaluation.suites)
    read_wordings(flags.evaluation.paraphrases)
    flags.evaluation.compute.resolved()  # a GPU that is not there is said before anything is read
    if flags.rerun is not None:
        from pipelines.reports.rerun_recording import load_rerun

        load_rerun()
    for flag, path in (("--output", flags.output), ("--html", flags.html), ("--rerun", flags.rerun)):
        require_output_file(path, flag)
    if flags.closed_loop.video is not None:
        output_folder(str(flags.closed_loop.video), "--video")
    return _on_stores(flags) if flags.closed_loop.env is None else _in_simulator(flags)


def _in_simulator(flags: EvaluateArguments) -> JsonSummary:
    """Act, and show what came of it."""
    from pipelines.evaluation.closed_loop_output import keep_report, show, write_page
    from pipelines.evaluation.closed_loop_setup import prepare
    from preprocessing.store.episode_store import EpisodeStore
    from preprocessing.store.web_store import open_store

    stores = [open_store(path, split=flags.split) for path in flags.data]
    loop = prepare(
        flags.model,
        flags.closed_loop,
        episodes=20 if flags.episodes is None else flags.episodes,
        seed=flags.evaluation.seed,
        compute=flags.evaluation.compute,
        wordings=read_wordings(flags.evaluation.paraphrases),
        data=[store for store in stores if isinstance(store, EpisodeStore)],
    )
    report = loop.run(flags.evaluation.bootstrap())
    show(report)
    summary = keep_report(loop, report, flags.model, flags.output)
    if flags.html is not None:
        write_page(flags.html, loop, report, flags.model)
    return summary


def _on_stores(flags: EvaluateArguments) -> JsonSummary:
    """Score, and show what came of it."""
    # torch and the models: --help is at once
    from pipelines.evaluation.comparison import compared
    from pipelines.evaluation.off_policy_store import require_rewards
    from pipelines.evaluation.record import is_seen
    from pipelines.evaluation.store_evaluations import (
        keep_reports,
        named,
        next_command,
        off_policy,
        scored,
        write_html,
        write_rerun,
    )
    from pipelines.evaluation.tables import print_tables
    from pipelines.publishing.trained_model import load_trained
    from preprocessing.store.web_store import open_store

    stores = [open_store(path, split=flags.split) for path in flags.data]
    for store in stores if flags.evaluation.off_policy else ():
        require_rewards(store)
    # Beside others each lies on the CPU until it is at work: a GPU need hold but one.
    is_alone = flags.before is None and flags.behaviour is None
    trained = load_trained(flags.model, device=flags.evaluation.compute.resolved() if is_alone else None)
    earlier = None if flags.before is None else load_trained(flags.before)
    behaviour = None if flags.behaviour is None else load_trained(flags.behaviour)
    evaluations = []
    for store in stores:
        evaluation = scored(trained, store, flags.evaluation, f"evaluate {store.name}")
        seen = is_seen(trained, store)
        report = replace(evaluation.report, **named(store), seen_in_training=seen)
        if earlier is not None:
            before = scored(earlier, store, flags.evaluation, "evaluate the earlier model").report
            report = replace(report, before=compared(report, before, me=flags.model, them=flags.before or ""))
        if flags.evaluation.off_policy:
            report = off_policy(replace(evaluation, report=report), behaviour, store, flags.evaluation)
        evaluations.append(replace(evaluation, report=report))
        print_tables(report)
        if seen:
            print(f"{store.root} is among the training stores of this model: {_SEEN}")
    reports = [evaluation.report for evaluation in evaluations]
    summary = keep_reports(flags.model, trained, stores, reports, flags.output)
    episodes = 6 if flags.episodes is None else flags.episodes
    if flags.html is not None:
        write_html(flags.html, flags.model, trained, stores, evaluations, episodes=episodes)
    if flags.rerun is not None:
        write_rerun(flags.rerun, trained, stores[0], evaluations[0], episodes=episodes)
    if command := next_command(flags.model, trained, reports):
        print_next(*command)
    return summary


_SEEN = "these scores say what it has by heart, not what it does on new episodes"

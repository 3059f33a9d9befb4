"""Whether a policy follows the meaning of an instruction or its very words: the shipped tasks, said in other words.

The policy is scored on the same held-out steps with the instructions of its training, with three paraphrases of each
that it has never seen, and, where a task has an opposite, with the opposite task's instruction, which it should not
take for its own.

Axes: N scored steps, A action dimensions, R wordings.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipelines.evaluation.config import EvaluationConfig
from pipelines.evaluation.predictions import Predictions, instructions_of, predict_store
from pipelines.evaluation.scoring import correct_share, scored_dimensions
from pipelines.evaluation.statistics import Interval
from pipelines.publishing.folder import TrainedModel
from pipelines.reports.run_page import percent
from preprocessing.store.episode_store import EpisodeStore

PARAPHRASES = {
    "turn the faucet on": ("switch the faucet on", "turn on the tap", "open the faucet"),
    "turn the faucet off": ("switch the faucet off", "turn off the tap", "shut the faucet off"),
    "open the drawer": ("pull the drawer open", "slide the drawer open", "open up the drawer"),
    "close the drawer": ("push the drawer closed", "slide the drawer closed", "push the drawer shut"),
    "press the button": ("push the button", "push down on the button", "hit the button"),
    "put the ring on the peg": (
        "place the ring onto the peg",
        "slide the ring over the peg",
        "set the ring on the peg",
    ),
}
OPPOSITES = {
    "turn the faucet on": "turn the faucet off",
    "turn the faucet off": "turn the faucet on",
    "open the drawer": "close the drawer",
    "close the drawer": "open the drawer",
}


@dataclass(frozen=True, kw_only=True)
class ParaphraseScores:
    """Token accuracies on held-out steps, with 95 % intervals over episodes."""

    original: Interval
    paraphrased: Interval
    ratio: float
    """`paraphrased` over `original`."""
    own_instruction: Interval
    """On the episodes of tasks that have an opposite, with their own instruction."""
    opposite_instruction: Interval
    """On the same episodes, with the instruction of the opposite task."""
    per_task: dict[str, tuple[float, ...]]
    """By task: accuracy with the original words, then with each paraphrase."""

    def __str__(self) -> str:
        original, paraphrased = percent(self.original), percent(self.paraphrased)
        tail = f"opposite task {percent(self.opposite_instruction)} of {percent(self.own_instruction)}"
        return f"{original}; paraphrased {paraphrased}, {100 * self.ratio:.0f} % of it; {tail}"


def paraphrase_rows(words: dict[str, ParaphraseScores]) -> tuple[list[str], list[list[str]]]:
    """(head, rows) of a table: every task's wordings with the token accuracy under each encoder."""
    rows = []
    for text in next(iter(words.values())).per_task:
        for number, wording in enumerate((text, *PARAPHRASES[text])):
            accuracies = [f"{100 * scores.per_task[text][number]:.1f} %" for scores in words.values()]
            rows.append([wording, "" if number else "trained on", *accuracies])
    totals = {"all tasks": "original", "all paraphrases": "paraphrased", "opposite task": "opposite_instruction"}
    for title, name in totals.items():
        rows.append([title, "", *(percent(getattr(scores, name)) for scores in words.values())])
    return ["instruction", "", *words], rows


def score_paraphrases(trained: TrainedModel, store: EpisodeStore, config: EvaluationConfig) -> ParaphraseScores:
    """Scores of a policy on the shipped tasks. Raises ValueError for a store with other instructions."""
    unknown = set(store.instruction_texts) - set(PARAPHRASES)
    if unknown:
        raise ValueError(f"{store.root} has instructions without paraphrases here, such as {min(unknown)!r}")

    def predict(rewording: dict[str, str] | None) -> Predictions:
        with config.compute.at_work(trained.model):
            return predict_store(trained.model, trained.contract, store, batch=config.batch, rewording=rewording)

    plain = predict(None)
    dims = scored_dimensions(trained.contract.dataset(store.name), plain)
    numbers = range(len(next(iter(PARAPHRASES.values()))))
    rewordings = [{text: others[number] for text, others in PARAPHRASES.items()} for number in numbers]
    own_N = correct_share(plain.tokens_NA, plain, dims)
    paraphrased_RN = [correct_share(predict(rewording).tokens_NA, plain, dims) for rewording in rewordings]
    opposite_N = correct_share(predict(OPPOSITES).tokens_NA, plain, dims)
    text_N = np.array(instructions_of(store))[plain.episode_N]
    has_opposite_N = np.isin(text_N, list(OPPOSITES))
    all_steps = config.bootstrap().over(plain.episode_N)
    some_steps = config.bootstrap().over(plain.episode_N[has_opposite_N])
    original, paraphrased = all_steps(own_N), all_steps(np.mean(paraphrased_RN, axis=0))
    per_task = {}
    for text in np.unique(text_N):
        per_task[str(text)] = tuple(float(share_N[text_N == text].mean()) for share_N in (own_N, *paraphrased_RN))
    return ParaphraseScores(
        original=original,
        paraphrased=paraphrased,
        ratio=paraphrased.mean / original.mean if original.mean else 0.0,
        own_instruction=some_steps(own_N[has_opposite_N]),
        opposite_instruction=some_steps(opposite_N[has_opposite_N]),
        per_task=per_task,
    )

"""Whether a policy follows the meaning of an instruction or its very words: the shipped tasks, said in other words.

The policy is scored on the same held-out steps with the instructions of its training, with three paraphrases of each
that it has never seen, and, where a task has an opposite, with the opposite task's instruction, which it should not
take for its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.bootstrap import Interval
from pipelines.bundle import TrainedModel
from pipelines.evaluate import EvaluationConfig, scored_dimensions
from pipelines.predictions import Predictions, predict_store
from pipelines.run_report import percent
from preprocessing.episode_store import EpisodeStore

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
    """Token accuracies on held-out steps; `opposite` and `opposed` (with the right words) on tasks with an opposite."""

    original: Interval
    paraphrased: Interval
    ratio: float
    """`paraphrased` over `original`."""
    opposed: Interval
    opposite: Interval
    per_task: dict[str, tuple[float, ...]]
    """By task: accuracy with the original words, then with each paraphrase."""

    def __str__(self) -> str:
        original, paraphrased = percent(self.original), percent(self.paraphrased)
        tail = f"opposite task {percent(self.opposite)} of {percent(self.opposed)}"
        return f"{original}; paraphrased {paraphrased}, {100 * self.ratio:.0f} % of it; {tail}"


def paraphrase_rows(words: dict[str, ParaphraseScores]) -> tuple[list[str], list[list[str]]]:
    """(head, rows) of a table: every task's wordings with the token accuracy under each encoder."""
    rows = []
    for text in next(iter(words.values())).per_task:
        for number, wording in enumerate((text, *PARAPHRASES[text])):
            accuracies = [f"{100 * scores.per_task[text][number]:.1f} %" for scores in words.values()]
            rows.append([wording, "" if number else "trained on", *accuracies])
    for title, name in (("all tasks", "original"), ("all paraphrases", "paraphrased"), ("opposite task", "opposite")):
        rows.append([title, "", *(percent(getattr(scores, name)) for scores in words.values())])
    return ["instruction", "", *words], rows


def score_paraphrases(trained: TrainedModel, store: EpisodeStore, config: EvaluationConfig) -> ParaphraseScores:
    """Scores of a policy on the shipped tasks. Raises ValueError for a store with other instructions."""
    unknown = set(store.instruction_texts) - set(PARAPHRASES)
    if unknown:
        raise ValueError(f"{store.root} has instructions without paraphrases here, such as {min(unknown)!r}")

    def predict(rewording: dict[str, str] | None) -> Predictions:
        return predict_store(trained.model, trained.contract, store, batch=config.batch, rewording=rewording)

    plain = predict(None)
    dims = scored_dimensions(trained.contract.dataset(store.contract.datasets[0].name), plain)
    number = range(len(next(iter(PARAPHRASES.values()))))
    said = [None, *({text: others[n] for text, others in PARAPHRASES.items()} for n in number), OPPOSITES]
    right_RN = [_right(plain if words is None else predict(words), plain, dims) for words in said]
    text_N = np.array(_texts(store))[plain.episode_N]
    has_opposite_N = np.isin(text_N, list(OPPOSITES))
    all_steps = config.bootstrap().over(plain.episode_N)
    some_steps = config.bootstrap().over(plain.episode_N[has_opposite_N])
    original, paraphrased = all_steps(right_RN[0]), all_steps(np.mean(right_RN[1:-1], axis=0))
    tasks = {text: tuple(float(right[text_N == text].mean()) for right in right_RN[:-1]) for text in np.unique(text_N)}
    return ParaphraseScores(
        original=original,
        paraphrased=paraphrased,
        ratio=paraphrased["mean"] / original["mean"] if original["mean"] else 0.0,
        opposed=some_steps(right_RN[0][has_opposite_N]),
        opposite=some_steps(right_RN[-1][has_opposite_N]),
        per_task={str(text): scores for text, scores in tasks.items()},
    )


def _right(predictions: Predictions, truth: Predictions, dims: np.ndarray) -> np.ndarray:
    """float (N,): the share of the scored dimensions of each step that is right."""
    return (predictions.tokens_NA == truth.target_tokens_NA)[:, dims].mean(axis=1)


def _texts(store: EpisodeStore) -> list[Any]:
    """The instruction of each episode, in the store's order."""
    text_of = dict(zip(store.instruction_ids.tolist(), store.instruction_texts, strict=True))
    texts = []
    for number, shard in enumerate(store.shards):
        ids = store.read_shard(number, ["instruction"])["instruction"].to_numpy()
        texts += [text_of[ids[end - 1]] for end in np.cumsum(shard.episode_lengths)]
    return texts

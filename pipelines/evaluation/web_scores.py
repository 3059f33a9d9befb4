"""Image-text examples: VQA accuracy and caption score of a model, beside those of who does not look.

- most frequent answer: always the commonest answer
- question only: the commonest answer to the same question, learnt on one half of the images and scored on the other
- shuffled images: the model itself, with the picture of another example

The constants of the first two come from the evaluated examples, which favours them. Intervals are 95 % bootstrap
intervals over images, because questions about one image are not independent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.evaluation.answers import cider_d, normalised, vqa_accuracy
from pipelines.evaluation.config import WebScoreConfig
from pipelines.evaluation.report import CaptionScores, QuestionScores, ShuffledAnswers, ShuffledCaptions, WebReport
from pipelines.evaluation.statistics import Bootstrap
from pipelines.families.base import WebAnswers
from pipelines.families.models import Model, family_of
from pipelines.terminal.progress_bar import Count, uncounted
from preprocessing.loading.web_reader import WebText
from preprocessing.store.web_store import WebStore
from rt_models.spec import Contract


@dataclass(frozen=True, kw_only=True)
class _Scored:
    """Examples with the model's answers: to their own image, and to that of another example."""

    texts: list[WebText]
    answers: list[str]
    shuffled: list[str]

    def only(self, captions: bool) -> _Scored:
        kept = [i for i, text in enumerate(self.texts) if (not text.prompt) == captions]
        columns = ([column[i] for i in kept] for column in (self.texts, self.answers, self.shuffled))
        texts, answers, shuffled = columns
        return _Scored(texts=texts, answers=answers, shuffled=shuffled)  # type: ignore[arg-type]


def score_web(
    model: Model,
    contract: Contract,
    store: WebStore,
    config: WebScoreConfig,
    *,
    batch: int,
    bootstrap: Bootstrap,
    counted: Count = uncounted,
) -> WebReport:
    """Scores of a model on a store of image-text examples; `counted` is called for every answer.

    There are two answers per example. Raises ValueError for a model that answers no questions.
    """
    answering = family_of(model).web_answers(model, contract, store)
    count = store.num_examples
    rows = np.unique(np.linspace(0, count - 1, min(config.examples, count)).astype(np.int64))
    scored = _Scored(
        texts=answering.texts(rows),
        answers=_answers(answering, rows, rows, config, batch, counted),
        shuffled=_answers(answering, rows, np.roll(rows, len(rows) // 2), config, batch, counted),
    )
    answering.close()
    questions, captions = scored.only(captions=False), scored.only(captions=True)
    return WebReport(
        store=store.root,
        contract=contract.id,
        examples=len(rows),
        questions=_question_scores(questions, bootstrap) if questions.texts else None,
        captions=_caption_scores(captions, bootstrap) if captions.texts else None,
    )


def _answers(
    answering: WebAnswers, rows: np.ndarray, images: np.ndarray, config: WebScoreConfig, batch: int, counted: Count
) -> list[str]:
    """The answers to the prompts of `rows`, given the pictures of `images`."""
    answers: list[str] = []
    for first in range(0, len(rows), batch):
        piece, seen = rows[first : first + batch], images[first : first + batch]
        answers += answering.answers(piece, seen, max_new_tokens=config.answer_tokens)
        counted(len(piece))
    return answers


def _question_scores(scored: _Scored, bootstrap: Bootstrap) -> QuestionScores:
    groups = _image_numbers(scored.texts)
    own = _accuracies(scored.answers, scored.texts)
    lazy = {
        "most_frequent_answer": _accuracies(_most_frequent(scored.texts), scored.texts),
        "question_only": _accuracies(_question_only(scored.texts, groups), scored.texts),
    }
    shuffled = _accuracies(scored.shuffled, scored.texts)
    interval = bootstrap.over(groups)
    return QuestionScores(
        questions=len(own),
        vqa_accuracy=interval(own),
        lazy={name: interval(values) for name, values in lazy.items()},
        margin={name: interval(own - values) for name, values in lazy.items()},
        perturbed={"shuffled_images": ShuffledAnswers(vqa_accuracy=interval(shuffled), fall=interval(own - shuffled))},
    )


def _caption_scores(scored: _Scored, bootstrap: Bootstrap) -> CaptionScores:
    """One caption an image, although every reference is an example of its own."""
    first = list({text.images: i for i, text in reversed(list(enumerate(scored.texts)))}.values())
    references = [scored.texts[i].references for i in first]
    interval = bootstrap.over(np.arange(len(first)))
    own, shuffled = (
        np.array(cider_d([captions[i] for i in first], references)) for captions in (scored.answers, scored.shuffled)
    )
    return CaptionScores(
        images=len(first),
        cider_d=interval(own),
        shuffled_images=ShuffledCaptions(cider_d=interval(shuffled), fall=interval(own - shuffled)),
    )


def _accuracies(answers: Sequence[str], texts: Sequence[WebText]) -> np.ndarray:
    pairs = zip(answers, texts, strict=True)
    return np.array([vqa_accuracy(answer, text.references or (text.answer,)) for answer, text in pairs])


def _most_frequent(texts: Sequence[WebText]) -> list[str]:
    (commonest, _), *_ = Counter(normalised(text.answer) for text in texts).most_common(1)
    return [commonest] * len(texts)


def _question_only(texts: Sequence[WebText], groups: np.ndarray) -> list[str]:
    """The commonest answer to the question among the images of the other half; else the commonest answer there."""
    guesses = [""] * len(texts)
    for half in (0, 1):
        answers: dict[str, Counter[str]] = {}
        for text, group in zip(texts, groups, strict=True):
            if group % 2 != half:
                answer = normalised(text.answer)
                answers.setdefault(normalised(text.prompt), Counter())[answer] += 1
                answers.setdefault("", Counter())[answer] += 1
        for i in np.flatnonzero(groups % 2 == half).tolist():
            known = answers.get(normalised(texts[i].prompt)) or answers.get("", Counter())
            guesses[i] = known.most_common(1)[0][0] if known else ""
    return guesses


def _image_numbers(texts: Sequence[WebText]) -> np.ndarray:
    """int64: equal for examples of the same pictures; an example without any stands alone."""
    keys = [text.images or ("none", i) for i, text in enumerate(texts)]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return np.array([numbers[key] for key in keys])

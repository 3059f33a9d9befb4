"""How good a said answer is: VQA accuracy (Antol et al. 2015) and CIDEr-D for captions (Vedantam et al. 2015).

Pure functions of texts.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

_NUMBERS = ("none", "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(max(number - 1, 0)) for number, word in enumerate(_NUMBERS)}
_ARTICLES = {"a", "an", "the"}
_SEVERAL = 4  # from so many people's answers on, three of them make an answer right
_NGRAMS = (1, 2, 3, 4)
_LENGTH_SIGMA = 6.0


def normalised(answer: str) -> str:
    """As VQA's evaluation compares answers: lower case, no articles and punctuation, numbers as digits.

    Apostrophes are dropped, so that contractions with and without them agree.
    """
    text = re.sub(r"['’]", "", answer.lower())
    text = re.sub(r"(?<=\d),(?=\d)", "", text)
    text = re.sub(r"(?<!\d)\.|\.(?!\d)|[^\w\s.]", " ", text)
    return " ".join(_DIGITS.get(word, word) for word in text.split() if word not in _ARTICLES)


def vqa_accuracy(answer: str, references: Sequence[str]) -> float:
    """Score in [0, 1] of an answer beside those that people gave.

    With ten people, as in VQAv2 and OK-VQA: the mean, over leaving out one of them, of min(those who agree / 3, 1).
    With fewer than four: whether anyone agrees.
    """
    answer = normalised(answer)
    agree = [normalised(reference) == answer for reference in references]
    if len(agree) < _SEVERAL:
        return float(any(agree))
    total = sum(agree)
    return sum(min((total - agreed) / 3, 1.0) for agreed in agree) / len(agree)


def cider_d(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """CIDEr-D of each candidate, 0 to 10: TF-IDF similarity of its n-grams, n = 1..4, to those of its references.

    Counts are clipped to the reference's and lengths compared by a Gaussian of 6 words. An n-gram's document frequency
    is the number of images among `references` with it, so scores of different sets do not compare.
    """
    documents = Counter(
        gram for captions in references for gram in {g for caption in captions for g in _ngrams(caption)}
    )
    log_images = math.log(max(len(references), 2))

    def vectors(caption: str) -> list[dict[tuple[str, ...], float]]:
        counts = _ngrams(caption)
        weighed = {gram: count * (log_images - math.log(max(documents[gram], 1))) for gram, count in counts.items()}
        return [{gram: weight for gram, weight in weighed.items() if len(gram) == n} for n in _NGRAMS]

    scores = []
    for caption, own_references in zip(candidates, references, strict=True):
        own, length = vectors(caption), len(_words(caption))
        per_reference = []
        for reference in own_references:
            penalty = math.exp(-((length - len(_words(reference))) ** 2) / (2 * _LENGTH_SIGMA**2))
            pairs = zip(own, vectors(reference), strict=True)
            per_reference.append(penalty * sum(_similarity(a, b) for a, b in pairs) / len(_NGRAMS))
        scores.append(10 * sum(per_reference) / max(len(per_reference), 1))
    return scores


def _similarity(own: dict[tuple[str, ...], float], reference: dict[tuple[str, ...], float]) -> float:
    norms = math.sqrt(sum(w * w for w in own.values())) * math.sqrt(sum(w * w for w in reference.values()))
    clipped = sum(min(weight, reference[gram]) * reference[gram] for gram, weight in own.items() if gram in reference)
    return clipped / norms if norms else 0.0


def _words(text: str) -> list[str]:
    return re.findall(r"[\w']+", text.lower())


def _ngrams(text: str) -> Counter[tuple[str, ...]]:
    words = _words(text)
    return Counter(tuple(words[i : i + n]) for n in _NGRAMS for i in range(len(words) - n + 1))

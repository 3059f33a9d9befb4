"""Instructions in other words, from a YAML file: {turn the faucet on: [open the tap, switch the faucet on]}."""

from __future__ import annotations

from collections.abc import Mapping

from pipelines.config.serialization import read_yaml

Wordings = Mapping[str, tuple[str, ...]]
"""By instruction."""


def read_wordings(path: str | None) -> Wordings:
    """None without a file. Raises ValueError for a file that says anything else."""
    if path is None:
        return {}
    data = read_yaml(path)
    if not isinstance(data, dict) or not data:
        raise ValueError(f"{path} has no instructions: give INSTRUCTION: [OTHER WORDS, ...]")
    for instruction, words in data.items():
        good = isinstance(words, list) and words and all(isinstance(word, str) and word.strip() for word in words)
        if not (isinstance(instruction, str) and good):
            raise ValueError(f"{path}: {instruction!r} needs a list of texts, got {words!r}")
    return {instruction: tuple(words) for instruction, words in data.items()}


def require_known(wordings: Wordings, instructions: list[str], what: str) -> None:
    """Raise ValueError if none of the instructions has other words."""
    if wordings and not set(wordings) & set(instructions):
        raise ValueError(
            f"--paraphrases has other words for {min(wordings)!r}, and none for {what}, such as {instructions[0]!r}"
        )


def most_wordings(wordings: Wordings) -> int:
    return max(map(len, wordings.values()))


def reworded(wordings: Wordings, number: int) -> dict[str, str]:
    """By instruction its wording of this number, counted round."""
    return {text: words[number % len(words)] for text, words in wordings.items()}

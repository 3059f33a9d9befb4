"""An instruction taken apart as MOO does it: a verb that the language says, and objects that marks in the image say."""

from __future__ import annotations

import re
from dataclasses import dataclass

_INSTRUCTION = re.compile(
    r"(?P<verb>\w+(?: (?:up|down|over|off|out))?) (?:the |a |an |some )?(?P<object>.+?)"
    r"(?: (?P<relation>next to|near|into|onto|inside|in|on|to|from|with) (?:the |a |an |some )?(?P<second>.+?))?"
    r"(?: (?P<after>over|upright|up|down|open|closed|off|away))?[.!]?"
)


@dataclass(frozen=True, kw_only=True)
class Phrase:
    """`verb` is the instruction without its objects: "move near" of "move the can near the apple"."""

    verb: str
    object: str
    second: str | None


def phrase_of(instruction: str) -> Phrase | None:
    """The parts of an instruction; None where it names no object."""
    match = _INSTRUCTION.fullmatch(" ".join(instruction.lower().split()))
    if match is None:
        return None
    words = (match["verb"], match["relation"], match["after"])
    return Phrase(verb=" ".join(word for word in words if word), object=match["object"], second=match["second"])

"""What Python, tyro and argparse say of a value, in words of the person who gave it."""

from __future__ import annotations

import re

_GIVEN = r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
_WORDS = (
    (re.compile(rf"invalid literal for int\(\) with base \d+: {_GIVEN}"), r"\1 is no whole number"),
    (
        re.compile(r"Could not find valid parse for arguments: \[(.*?)\]"),
        r"\1 cannot be read as what is asked for (several values stand with spaces between them)",
    ),
    (re.compile(r"Failed to parse key-value pairs!"), "give pairs of a name and a value"),
    (re.compile(rf"could not convert string to float: {_GIVEN}"), r"\1 is no number"),
)
_UNION = re.compile(
    r"no type matching (\S+) could be instantiated from \[(.*?)\]\.? Got errors: .*?(?= \((?:--|[A-Z])|$)"
)
_KINDS = {"INT": "a whole number", "FLOAT": "a number", "STR": "a text", "PATH": "a path"}


def plain_words(text: str) -> str:
    """`text` without the words that only a programmer knows: of numbers that are none, and of values that may be of
    several kinds."""
    text = _UNION.sub(_of_union, text)
    for pattern, words in _WORDS:
        text = pattern.sub(words, text)
    return text


def _of_union(match: re.Match[str]) -> str:
    kinds = [kind for kind in re.findall(r"\{[^}]*\}|[^|]+", match[1]) if kind != "{None}"]
    named = [_KINDS.get(kind, f"one of {kind.strip('{}')}") for kind in kinds]
    return f"{match[2]} is not {' or '.join(named)}"

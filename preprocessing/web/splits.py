"""Which files of a source are of a split: by its exact name, whatever stands around it.

A path is of split `val` where `val` stands in it as a whole word (`captions_val2017.json`, `val/0001.tar`,
`val-00000-of-00002.parquet`): between separators, followed by nothing but a year, shard numbers and words that say what
a file holds. `val_seen`, `val-dev`, `valminusminival` and `test-dev` are splits of their own and have to be named so.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_PARTIAL = ("partial", "mini", "minus", "no", "non", "without")  # before a split's name: another split than it
_SPLITS = ("train", "val", "validation", "test", "dev")
_WORDS = ("questions", "annotations", "captions", "images", "instances", "data", "shard", "part", "chunk", "of")
_NAMES_A_SPLIT = re.compile(
    r"(?<![a-z])(mini|test|train)?(train(ing)?|val(id|idation)?(minus\w*)?|test(ing|a|b)?|dev|std)(?![a-z])",
    re.IGNORECASE,
)


def files_of_split(names: Sequence[str], split: str, *, subsets: Sequence[str] = ()) -> list[str]:
    """Those of `names` (paths below a source) that are of `split`: all, if none is named after any split.

    `subsets` are words after a split's name that do not make it another one. Raises FileNotFoundError if the names
    are of other splits, ValueError if `split` may mean several; their words go on from "SOURCE holds no FILE".
    """
    years = {name: year for name in names if (year := _year(name, split, subsets)) is not None}
    meant = sorted({year for year in years.values() if year})
    if len(meant) > 1 and all(re.fullmatch(r"(19|20)\d\d", year) for year in meant):
        several = " or ".join(f"{split}{year}" for year in meant)
        raise ValueError(f"for split {split!r} alone, which may mean {shortened(list(years))}: give --split {several}")
    if not years and any(_NAMES_A_SPLIT.search(name) for name in names):
        raise FileNotFoundError(f"of split {split!r}, only {shortened(names)}: give --split as one of the names has it")
    return list(years) or list(names)


def is_of_split(name: str, split: str) -> bool:
    """Whether the path `name` says that it is of `split`."""
    return _year(name, split, ()) is not None


def shortened(names: Sequence[str]) -> str:
    """The first of `names`, to show."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _year(name: str, split: str, subsets: Sequence[str]) -> str | None:
    """The digits behind the split's name in `name`, "" for none, or None if `name` is not of the split."""
    *folders, file = name.split("/")
    stem = re.sub(r"(\.tar)?\.[a-z]+$", "", file, flags=re.IGNORECASE)
    digits = r"(?!\d)()" if split[-1:].isdigit() else r"(\d*)"
    pattern = re.compile(rf"(?<![^\W_]){re.escape(split)}{digits}(?![^\W_])(.*)")
    matches = [(part[: match.start()], match) for part in (*folders, stem) if (match := pattern.search(part))]
    if not matches or not all(_is_whole(before, match[2], subsets) for before, match in matches):
        return None
    return next((match[1] for _, match in reversed(matches) if match[1]), "")


def _is_whole(before: str, after: str, subsets: Sequence[str]) -> bool:
    """Whether what stands around a split's name leaves it the whole name of a split."""
    last = re.split(r"[\W_]+", before.lower().rstrip("-_. "))[-1].rstrip("0123456789")
    rest = (word.rstrip("0123456789") for word in re.split(r"[\W_]+", after.lower()) if not _is_hash(word))
    return last not in (*_PARTIAL, *_SPLITS) and all(word in ("", *_WORDS, *subsets) for word in rest)


def _is_hash(word: str) -> bool:
    """Whether a word is the fingerprint that the Hugging Face hub puts into file names."""
    return re.fullmatch(r"[0-9a-f]{16}", word) is not None

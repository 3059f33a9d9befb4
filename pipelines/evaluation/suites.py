"""Suites: scores by declared split, as RT-1's tables have them (seen tasks; unseen instructions, objects, scenes).

A file names the suites and says which instructions, or which stores, belong to each:

    seen tasks: {instructions: ["turn the faucet *", "open the drawer"]}
    unseen instructions: {instructions: ["close the drawer"]}
    unseen environments: {stores: [kitchen_two]}

Words may hold * and ?. An episode may belong to several suites. What was unseen is the declaration's to know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase

import numpy as np

from pipelines.config.serialization import did_you_mean, read_yaml


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Which episodes belong to it: of these instructions, in these stores; what is left empty takes all."""

    instructions: tuple[str, ...] = ()
    stores: tuple[str, ...] = ()

    def has(self, instruction: str, store: str) -> bool:
        of_store = not self.stores or any(fnmatchcase(store, word) for word in self.stores)
        return of_store and (not self.instructions or any(fnmatchcase(instruction, word) for word in self.instructions))


def read_suites(path: str | None) -> dict[str, Suite]:
    """From a YAML file, none without one. Raises ValueError for one that declares no suites."""
    if path is None:
        return {}
    data = read_yaml(path)
    if not isinstance(data, dict) or not data:
        raise ValueError(f"{path} declares no suites: give NAME: {{instructions: [...]}}")
    return {str(name): _suite(f"{path}: suite {name!r}", entry) for name, entry in data.items()}


def _suite(what: str, entry: object) -> Suite:
    if not isinstance(entry, dict) or not entry:
        raise ValueError(f"{what} says nothing: give {{instructions: [...]}} or {{stores: [...]}}")
    known = [each.name for each in fields(Suite)]
    for key, words in entry.items():
        if key not in known:
            raise ValueError(f"{what} has no {key!r}{did_you_mean(str(key), known)}")
        if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
            raise ValueError(f"{what}: {key} is a list of texts, got {words!r}")
    return Suite(**{key: tuple(words) for key, words in entry.items()})


def members(suites: Mapping[str, Suite], instructions: Sequence[str], store: str) -> dict[str, np.ndarray]:
    """By suite bool (E,): the episodes with these instructions that belong to it; suites without one are left out."""
    found = {name: np.array([suite.has(text, store) for text in instructions], bool) for name, suite in suites.items()}
    return {name: member_E for name, member_E in found.items() if member_E.any()}

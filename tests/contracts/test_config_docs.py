"""Every setting that a flag, a recipe or a sweep can give is explained by the string below it: `--help` shows that."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import textwrap
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.cluster_files import KINDS
from pipelines.config.experiment import Experiment
from pipelines.config.serialization import members
from tuning.sweep import Sweep

REPOSITORY = Path(__file__).resolve().parents[2]


def argument_classes() -> Iterator[type]:
    """What the commands hand to `parse`."""
    for file in sorted((REPOSITORY / "pipelines").glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "parse" and isinstance(node.args[0], ast.Name):
                yield getattr(importlib.import_module(f"pipelines.{file.stem}"), node.args[0].id)


def reachable(kind: Any, seen: set[type]) -> set[type]:
    """`seen` with the dataclasses of ours that the type hint `kind` leads to."""
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        for part in typing.get_args(kind):
            reachable(part, seen)
    elif kind not in seen:
        seen.add(kind)
        for hint in typing.get_type_hints(kind, include_extras=True).values():
            reachable(hint, seen)
    return seen


def undocumented(kind: type) -> list[str]:
    """The fields of a dataclass, inherited ones too, without a string below them.

    A field that is a config itself is explained by the docstring of its class: it heads the group of its flags.
    """
    documented: set[str] = set()
    for owner in kind.__mro__[:-1]:
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
        assert isinstance(definition, ast.ClassDef)
        for node, below in zip(definition.body, definition.body[1:], strict=False):
            is_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and is_text:
                documented.add(node.target.id)
    hints = typing.get_type_hints(kind)
    return [
        each.name
        for each in dataclasses.fields(kind)
        if each.name not in documented and not all(map(dataclasses.is_dataclass, members(hints[each.name])))
    ]


def config_classes() -> list[type]:
    classes: set[type] = set()
    for root in (Experiment, Sweep, *KINDS.values(), *argument_classes()):
        reachable(root, classes)
    return sorted(classes, key=lambda kind: (kind.__module__, kind.__qualname__))


CLASSES = config_classes()


def test_the_walk_reaches_what_it_should() -> None:
    names = {kind.__name__ for kind in CLASSES}
    assert {"RT1Config", "RT2Config", "ZeroConfig", "RayLaunch", "Asha", "Uniform", "SubmitArguments"} <= names


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: f"{kind.__module__}.{kind.__qualname__}")
def test_every_field_is_explained(kind: type) -> None:
    assert undocumented(kind) == []
    assert kind.__doc__ and not kind.__doc__.startswith(f"{kind.__name__}("), "dataclass's own is no explanation"


ROOMS = ("pipelines", "preprocessing", "rt_models", "cluster", "tuning")
WRITTEN = sorted(
    path.relative_to(REPOSITORY)
    for pattern in ("*.md", "docs/*.md", "docs/*/*.md", *(f"{room}/**/*.py" for room in ROOMS))
    for path in REPOSITORY.glob(pattern)
)


def misspelt(text: str) -> list[str]:
    """Flags that are written with an underscore: `--help` shows them with dashes."""
    return re.findall(r"(?<![\w-])--[a-z][a-z.-]*_[a-z_.-]+", text)


def test_flags_are_spelt_as_help_shows_them() -> None:
    flags = {str(file): misspelt((REPOSITORY / file).read_text()) for file in WRITTEN}
    assert {file: found for file, found in flags.items() if found} == {}


def test_a_flag_with_an_underscore_goes_red() -> None:
    assert misspelt("give --loop.global_batch 30, not --loop.steps") == ["--loop.global_batch"]


def test_a_field_without_a_word_goes_red() -> None:
    assert undocumented(_HalfExplained) == ["silent"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _HalfExplained:
    spoken: int = 0
    """Explained."""
    silent: int = 0

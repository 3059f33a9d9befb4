"""`rtp list`: the recipes, sweeps, datasets, mixtures and encoders that a command line can name; a recipe by its name.

Imports neither torch nor a recipe until one is loaded, so that the list appears at once.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
import shutil
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.config.arguments import UsageError, parse
from pipelines.config.serialization import did_you_mean
from pipelines.terminal.commands import JsonSummary

if TYPE_CHECKING:
    from pipelines.config.experiment import Experiment


@dataclass(frozen=True, kw_only=True)
class ListArguments:
    """`rtp list` has no flags of its own."""


def recipe_names() -> list[str]:
    """The recipes, by file name."""
    import pipelines.recipes

    return sorted(module.name for module in pkgutil.iter_modules(pipelines.recipes.__path__))


def load_recipe(name: str) -> Experiment:
    """The experiment of a recipe. Raises UsageError with the nearest name for one that does not exist."""
    if name not in recipe_names():
        raise UsageError(f"there is no recipe {name!r}{did_you_mean(name, recipe_names())}")
    recipe: Callable[[], Experiment] = importlib.import_module(f"pipelines.recipes.{name}").recipe
    return recipe()


def recipe_summary(name: str) -> str:
    """The first sentence of a recipe's file, without importing it."""
    import pipelines.recipes

    return _first_line(Path(next(iter(pipelines.recipes.__path__)), f"{name}.py"))


def sweep_summary(name: str) -> str:
    """The first sentence of a sweep's file, without importing it."""
    import tuning.sweeps

    return _first_line(Path(next(iter(tuning.sweeps.__path__)), f"{name}.py"))


def _first_line(path: Path) -> str:
    return (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]


def require_first(command: str, arguments: list[str]) -> None:
    """Check, before anything heavy is imported, that `rtp train` names a recipe or `rtp tune` a sweep.

    `--help` without one lists them and exits. Raises UsageError if it is missing.
    """
    from tuning.sweep import sweep_names

    kind = "sweep" if command == "tune" else "recipe"
    if arguments and not arguments[0].startswith("-"):
        return
    names = sweep_names() if kind == "sweep" else recipe_names()
    if not any(word in ("-h", "--help") for word in arguments):
        raise UsageError(f"rtp {command}: name a {kind} first, one of {', '.join(names)}")
    summary = sweep_summary if kind == "sweep" else recipe_summary
    print(f"usage: rtp {command} {kind.upper()} --data STORE ... --output DIR [OPTIONS] [--json]\n\n{kind}s:")
    _print_rows({name: summary(name) for name in names})
    if kind == "sweep":
        print("  or a Python file with a function sweep()")
    print(f"\nrtp {command} {kind.upper()} --help lists the options, with the {kind}'s values as defaults")
    raise SystemExit(0)


def main(arguments: list[str]) -> JsonSummary:
    """Print the names of recipes, sweeps, datasets and encoders."""
    from preprocessing.conversion.embeddings import ENCODERS
    from preprocessing.dataset_spec import names as dataset_names
    from preprocessing.mixture import names as mixture_names
    from rt_models.action_space import SPACES
    from tuning.sweep import sweep_names

    if arguments and not arguments[0].startswith("-"):
        raise UsageError(f"rtp list takes no arguments, got {arguments[0]!r}")
    parse(ListArguments, arguments, prog="rtp list", description="rtp list: recipes, sweeps, datasets and encoders.")
    names_by_kind = {
        "recipes": recipe_names(),
        "sweeps": sweep_names(),
        "datasets": dataset_names(),
        "mixtures": mixture_names(),
        "action_spaces": list(SPACES),
        "encoders": list(ENCODERS),
    }
    print("recipes, for rtp train:")
    _print_rows({name: recipe_summary(name) for name in names_by_kind["recipes"]})
    print("\nsweeps, for rtp tune:")
    _print_rows({name: sweep_summary(name) for name in names_by_kind["sweeps"]})
    print("\ndatasets, for rtp preprocess --dataset (or a .yaml file, see --draft-spec):")
    print(_wrapped(", ".join(names_by_kind["datasets"]), 2))
    print("\nmixtures of datasets, for rtp train --mixture.name:")
    print(_wrapped(", ".join(names_by_kind["mixtures"]), 2))
    print("\naction spaces, for space: in a dataset's .yaml file and rtp train --mixture.space:")
    print(_wrapped(", ".join(names_by_kind["action_spaces"]), 2))
    print("\nencoders of instructions, for rtp preprocess --encoder:")
    print(_wrapped(", ".join(names_by_kind["encoders"]), 2))
    print("\nnext: rtp train RECIPE --help")
    return names_by_kind


def _print_rows(rows: dict[str, str]) -> None:
    width = max(map(len, rows)) + 4
    for name, text in rows.items():
        print(f"  {name:<{width - 2}}{_wrapped(text, width).lstrip()}")


def _wrapped(text: str, indent: int) -> str:
    lead = " " * indent
    width = min(100, shutil.get_terminal_size((80, 24)).columns)
    lines = textwrap.wrap(
        text, width, initial_indent=lead, subsequent_indent=lead, break_long_words=False, break_on_hyphens=False
    )
    return "\n".join(lines)

"""`rtp list`, and finding a recipe by its name."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

from pipelines.arguments import UsageError
from pipelines.experiment import Experiment
from pipelines.serialization import did_you_mean


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


def main(arguments: list[str]) -> dict[str, Any]:
    """Print what can be named on a command line."""
    from preprocessing.dataset_spec import names
    from preprocessing.embeddings import ENCODERS
    from tuning.sweep import sweep_names

    if arguments:
        raise UsageError(f"rtp list takes no arguments, got {arguments[0]!r}")
    found = {"recipes": recipe_names(), "sweeps": sweep_names(), "datasets": names(), "encoders": list(ENCODERS)}
    for kind, values in found.items():
        print(f"{kind}: {', '.join(values)}")
    return found

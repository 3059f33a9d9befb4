"""The source files of ours that a registered policy carries: `mlflow_policy.py`, what it imports, and so on.

Found by reading the sources, so that a package which the command line alone needs is neither copied nor imported where
a policy is served. Imports inside functions count; the families of models are found by listing their folder.
"""

from __future__ import annotations

import ast
import importlib.util
import pkgutil
import shutil
from collections.abc import Iterator
from pathlib import Path

from pipelines import families

ENTRY = "pipelines.publishing.mlflow_policy"
FAMILIES = "pipelines.families"
_OURS = ("pipelines", "preprocessing", "rt_models", "cluster", "tuning")


def copy_policy_code(target: Path) -> list[str]:
    """Copy the files into the new folder `target`; the packages in it, as MLflow's `code_paths` takes them."""
    for module, source in policy_files().items():
        inside = "/".join(module.split("."))
        copied = target / (f"{inside}/__init__.py" if source.name == "__init__.py" else f"{inside}.py")
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copied)
    return sorted(str(package) for package in target.iterdir())


def policy_files() -> dict[str, Path]:
    """Module -> file, of every module of ours that `ENTRY` and the families need, with the packages they lie in."""
    files: dict[str, Path] = {}
    waiting = [ENTRY, *(f"{FAMILIES}.{module.name}" for module in pkgutil.iter_modules(families.__path__))]
    while waiting:
        module = waiting.pop()
        if module in files or (file := _file(module)) is None:
            continue
        files[module] = file
        waiting += [package for package in [module.rpartition(".")[0]] if package]
        waiting += [name for name in _imported(file) if name.partition(".")[0] in _OURS]
    return files


def _imported(file: Path) -> Iterator[str]:
    """`from a import b` names a and a.b, which may be a module or not."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _file(module: str) -> Path | None:
    """The file of a module; None for a name in a module. Nothing is imported but the module's first package."""
    package, *inside = module.split(".")
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.submodule_search_locations is not None
    path = Path(spec.submodule_search_locations[0], *inside)
    found = (file for file in (path / "__init__.py", path.with_name(f"{path.name}.py")) if file.is_file())
    return next(found, None)

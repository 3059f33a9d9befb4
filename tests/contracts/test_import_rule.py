"""Which room may import what. Lazy and TYPE_CHECKING imports count: the tree is read, not run."""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

OURS = {
    "pipelines": {"pipelines", "preprocessing", "rt_models", "cluster", "tuning"},
    "preprocessing": {"preprocessing", "rt_models.spec", "rt_models.action_space"},
    "rt_models": {"rt_models"},
    "cluster": {"cluster"},
    "tuning": {"tuning"},
}
THEIRS = {  # library -> the only files, or folders, that may import it
    "tensorflow": ("preprocessing/conversion/embeddings.py", "preprocessing/saved_model/tensorflow_export.py"),
    "tensorflow_hub": (),
    "deepspeed": ("cluster/engine.py", "cluster/zero.py"),
    "mlflow": (
        "pipelines/tracking/",
        "pipelines/publishing/",
        "pipelines/register.py",
        "pipelines/registry.py",
        "pipelines/serve.py",
    ),
    "ray": (
        "preprocessing/convert.py",
        "preprocessing/conversion/",
        "preprocessing/loading/loader.py",
        "cluster/",
        "tuning/",
        "pipelines/",
    ),
    "metaworld": ("preprocessing/simulation/",),
    "mujoco": ("preprocessing/simulation/",),
    "dm_control": ("preprocessing/simulation/",),
}
FILES = sorted(path.relative_to(REPOSITORY) for room in OURS for path in (REPOSITORY / room).rglob("*.py"))


def imported_modules(source: str) -> list[str]:
    """Every module that the source imports anywhere; `from a import b` counts as a.b too, in case b is a module."""
    modules = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the room"
            modules += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__"):
            modules += [a.value for a in node.args[:1] if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    return modules


def _module(file: Path) -> str:
    return ".".join(file.with_suffix("").parts).removesuffix(".__init__")


def import_graph() -> dict[str, set[str]]:
    """Every module of ours -> those of ours that it imports."""
    modules = {_module(file): imported_modules((REPOSITORY / file).read_text()) for file in FILES}
    found = {name for name in modules if "." in name}
    graph: dict[str, set[str]] = {}
    for name, imports in modules.items():
        wanted = {part for module in imports for part in (module, module.rpartition(".")[0])}
        graph[name] = (wanted & found) - {name}
    return graph


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle; empty if there is none."""
    order = graphlib.TopologicalSorter(graph)
    try:
        order.prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def upward(file: str, source: str) -> list[str]:
    """In `pipelines/`: what a file in a folder imports of the files at the top, which join the folders."""
    if not file.startswith("pipelines/") or file.count("/") < 2:
        return []
    tops = {_module(path) for path in FILES if path.parts[0] == "pipelines" and len(path.parts) == 2}
    imports = imported_modules(source)
    return [module for module in imports if {module, module.rpartition(".")[0]} & (tops - {"pipelines"})]


def violations(file: str, source: str) -> list[str]:
    """The imports of `source`, standing in `file`, that the rule forbids."""
    allowed = OURS[file.split("/")[0]]
    wrong = []
    for module in imported_modules(source):
        top = module.split(".")[0]
        if top in OURS and not any(module == name or module.startswith(name + ".") for name in allowed):
            wrong.append(module)
        if top in THEIRS and not file.startswith(THEIRS[top]):
            wrong.append(module)
    return wrong


@pytest.mark.parametrize("file", FILES, ids=str)
def test_a_file_imports_only_what_its_room_may(file: Path) -> None:
    source = (REPOSITORY / file).read_text()
    assert violations(file.as_posix(), source) + upward(file.as_posix(), source) == []


def test_no_files_import_each_other_in_a_circle() -> None:
    assert circle(import_graph()) == []


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("rt_models/rt1.py", "import ray"),
        ("rt_models/rt1.py", "from cluster.engine import TorchEngine"),
        ("rt_models/rt1.py", "def f():\n    import preprocessing.rlds"),
        ("preprocessing/rlds.py", "from rt_models.rt1 import RT1"),
        ("preprocessing/rlds.py", "import tensorflow as tf"),
        ("preprocessing/store/statistics.py", "import ray.data"),
        ("cluster/launch.py", "if TYPE_CHECKING:\n    from pipelines.train_loop import train"),
        ("cluster/launch.py", "import deepspeed"),
        ("tuning/sweep.py", "importlib.import_module('pipelines.train')"),
        ("pipelines/train_loop.py", "from mlflow import log_metric"),
        ("pipelines/sweeps/trials.py", "from pipelines.train import run_training"),
        ("pipelines/capacity/trial_steps.py", "def f():\n    from pipelines import train_loop"),
    ],
)
def test_the_rule_goes_red(file: str, source: str) -> None:
    assert violations(file, source) + upward(file, source) != []


def test_a_circle_goes_red() -> None:
    graph = import_graph()
    graph["rt_models.action_space"] = {"rt_models.spec"}  # as spec imports action_space
    assert {"rt_models.spec", "rt_models.action_space"} <= set(circle(graph))


def test_no_room_of_leftovers() -> None:
    forbidden = {"utils.py", "common.py", "helpers.py"}
    assert [file for file in FILES if file.name in forbidden] == []


def test_every_folder_is_a_package_that_the_build_finds() -> None:
    folders = {(REPOSITORY / file).parent for file in FILES}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_package_init_files_are_empty() -> None:
    assert [file for file in FILES if file.name == "__init__.py" and (REPOSITORY / file).read_text()] == []

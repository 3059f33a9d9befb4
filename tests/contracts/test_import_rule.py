"""Which room may import what. Lazy and TYPE_CHECKING imports count: the tree is read, not run."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

OURS = {
    "pipelines": {"pipelines", "preprocessing", "rt_models", "cluster", "tuning"},
    "preprocessing": {"preprocessing", "rt_models.spec"},
    "rt_models": {"rt_models"},
    "cluster": {"cluster"},
    "tuning": {"tuning"},
}
THEIRS = {  # library -> the only files, or folders, that may import it
    "tensorflow": ("preprocessing/embeddings.py",),
    "tensorflow_hub": (),
    "deepspeed": ("cluster/engine.py", "cluster/zero.py"),
    "mlflow": (
        "pipelines/tracking.py",
        "pipelines/register.py",
        "pipelines/mlflow_policy.py",
        "pipelines/policy_server.py",
        "pipelines/serve.py",
    ),
    "ray": ("preprocessing/convert.py", "preprocessing/loading/loader.py", "cluster/", "tuning/", "pipelines/"),
    "metaworld": ("pipelines/simulate.py",),
    "mujoco": ("pipelines/simulate.py",),
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
    assert violations(file.as_posix(), (REPOSITORY / file).read_text()) == []


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("rt_models/rt1.py", "import ray"),
        ("rt_models/rt1.py", "from cluster.engine import TorchEngine"),
        ("rt_models/rt1.py", "def f():\n    import preprocessing.rlds"),
        ("preprocessing/rlds.py", "from rt_models.rt1 import RT1"),
        ("preprocessing/rlds.py", "import tensorflow as tf"),
        ("preprocessing/statistics.py", "import ray.data"),
        ("cluster/launch.py", "if TYPE_CHECKING:\n    from pipelines.train_loop import train"),
        ("cluster/launch.py", "import deepspeed"),
        ("tuning/sweep.py", "importlib.import_module('pipelines.train')"),
        ("pipelines/train_loop.py", "from mlflow import log_metric"),
    ],
)
def test_the_rule_goes_red(file: str, source: str) -> None:
    assert violations(file, source) != []


def test_no_room_of_leftovers() -> None:
    forbidden = {"utils.py", "common.py", "helpers.py"}
    assert [file for file in FILES if file.name in forbidden] == []


def test_packages_are_all_listed_for_the_build() -> None:
    import tomllib

    listed = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {".".join(file.parent.parts) for file in FILES}
    assert found == set(listed)


def test_package_init_files_are_empty() -> None:
    assert [file for file in FILES if file.name == "__init__.py" and (REPOSITORY / file).read_text()] == []

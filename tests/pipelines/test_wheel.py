"""The wheel, installed outside of the checkout: commands start, and the shipped episodes and all modules come along."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.command_line import REPOSITORY, SAMPLE

ROOMS = ("rt_models", "preprocessing", "cluster", "tuning", "pipelines")
HERE = ("--workers", "0", "--json")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that the checkout gets no build folder."""
    copy = tmp_path_factory.mktemp("checkout")
    for room in (*ROOMS, "examples"):
        shutil.copytree(REPOSITORY / room, copy / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, copy)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*build, "--wheel-dir", "dist", "."], cwd=copy, check=True)
    return next((copy / "dist").glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment that holds the wheel, and sees this one's third-party packages behind it."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    install = [sys.executable, "-m", "pip", "--python", str(folder), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, wheel], check=True, env=outside())
    site = next((folder / "lib").glob("python*/site-packages"))
    theirs = [path for path in sys.path if path.endswith("site-packages")]
    (site / "third_party.pth").write_text("\n".join(theirs))
    return folder / "bin"


def outside() -> dict[str, str]:
    """This process's environment without the way to the checkout."""
    return {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "MLFLOW_TRACKING_URI")}


def run(installed: Path, folder: Path, *arguments: str) -> str:
    """What a command of the environment prints, run in a folder outside of the checkout."""
    command = [installed / arguments[0], *arguments[1:]]
    return subprocess.run(command, cwd=folder, env=outside(), check=True, capture_output=True, text=True).stdout


def test_it_holds_every_module_and_the_episodes_and_no_tests(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    ours = {str(path.relative_to(REPOSITORY)) for room in ROOMS for path in (REPOSITORY / room).rglob("*.py")}
    assert ours <= set(names)
    assert {name.split("/")[0] for name in names if "/" in name and ".d" not in name.split("/")[0]} == set(ROOMS)
    episodes = {path.name for path in SAMPLE.iterdir()}
    assert episodes == {Path(name).name for name in names if "/examples/metaworld_sample/1.0.0/" in name}


def test_the_demo_finds_the_episodes_that_came_with_it(installed: Path, tmp_path: Path) -> None:
    where = "import pipelines.demo as demo; print(demo.__file__); print(demo.DemoArguments().source)"
    module, source = run(installed, tmp_path, "python", "-c", where).splitlines()
    assert Path(module).is_relative_to(installed.parent) and Path(source).is_relative_to(installed.parent)
    store = str(tmp_path / "stores")
    printed = run(installed, tmp_path, "rtp", "preprocess", source, store, "--split", "val", "--limit", "2", *HERE)
    assert json.loads(printed.splitlines()[-1])["episodes_out"] == 2


def test_every_command_starts(installed: Path, tmp_path: Path) -> None:
    assert "rt1_metaworld" in run(installed, tmp_path, "rtp", "list")
    assert run(installed, tmp_path, "rtp", "--version").startswith("rtp ")

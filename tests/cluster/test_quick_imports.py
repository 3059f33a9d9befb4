"""Searches for garbage: none while modules come, none of what they leave, and as ever afterwards."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.quick_imports import end_quick_start, quick_imports, quick_start
from tests.support.command_line import environment

MODULES = 150


@pytest.fixture(autouse=True)
def nothing_frozen() -> Iterator[None]:
    """At first; and afterwards what the tests before had frozen."""
    gc.unfreeze()
    yield
    gc.unfreeze()
    gc.collect()
    gc.freeze()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a package of many modules, each with objects enough to make the collector search."""
    folder = tmp_path / "many_modules"
    folder.mkdir()
    (folder / "__init__.py").write_text("".join(f"from many_modules import m{i}\n" for i in range(MODULES)))
    for number in range(MODULES):
        (folder / f"m{number}.py").write_text("held = [[] for _ in range(1000)]\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "many_modules"
    for name in [name for name in sys.modules if name.partition(".")[0] == "many_modules"]:
        del sys.modules[name]


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """One entry for each search for garbage."""
    found: list[Any] = []

    def note(phase: str, info: object) -> None:
        found.append(info)

    gc.callbacks.append(note)
    yield found
    gc.callbacks.remove(note)


def test_without_it_imports_are_searched(package: str, searches: list[Any]) -> None:
    __import__(package)
    assert searches and gc.get_freeze_count() == 0


def test_nothing_is_searched_inside_and_what_came_is_kept_out_of_later_searches(
    package: str, searches: list[Any]
) -> None:
    with quick_imports():
        with quick_imports():
            __import__(package)
        assert not gc.isenabled(), "the inner block ends no more than itself"
    assert not searches and gc.isenabled() and gc.get_freeze_count() > MODULES * 1000
    cycle: list[Any] = []
    cycle.append(cycle)
    del cycle
    assert gc.collect() > 0 and searches


def test_a_small_import_freezes_nothing_and_a_failed_one_leaves_the_collector_on(searches: list[Any]) -> None:
    with pytest.raises(ModuleNotFoundError), quick_imports():
        import no_such_module  # type: ignore[import-not-found]  # noqa: F401
    assert gc.isenabled() and gc.get_freeze_count() == 0


def test_who_has_switched_the_collector_off_finds_it_off(package: str) -> None:
    gc.disable()
    try:
        with quick_imports():
            __import__(package)
        assert not gc.isenabled() and gc.get_freeze_count() == 0
    finally:
        gc.enable()


def test_a_start_lasts_until_so_many_objects_or_until_it_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    before = gc.get_threshold()
    quick_start()
    quick_start()
    assert gc.get_threshold()[0] > 100_000
    held = [[] for _ in range(gc.get_threshold()[0] + 10)]
    assert gc.get_threshold() == before and gc.get_freeze_count() > len(held) - 1000
    gc.unfreeze()
    quick_start()
    end_quick_start()
    assert gc.get_threshold() == before and gc.get_freeze_count() > 0
    gc.unfreeze()
    end_quick_start()
    assert gc.get_freeze_count() == 0, "once"


ASKED = """
import sys
import pipelines.train
print(*sorted({"torch._dynamo", "sympy", "pandas", "mlflow", "ray", "deepspeed", "transformers"} & set(sys.modules)))
"""


def test_a_training_begins_without_torchs_compiler_and_other_large_packages() -> None:
    """A second each, of every process: whoever needs one imports it where it is needed."""
    command = [sys.executable, "-c", ASKED]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""

"""Garbage collection: none during imports, none of the objects that they leave, and as usual afterwards."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.quick_imports import defer_collection, quick_imports, resume_collection
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
    """The name of a package of many modules, each with objects enough for a garbage collection."""
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
def collections(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """One entry for each start and end of a garbage collection."""
    found: list[Any] = []

    def note(phase: str, info: object) -> None:
        found.append(info)

    gc.callbacks.append(note)
    yield found
    gc.callbacks.remove(note)


def test_without_it_garbage_is_collected_during_imports(package: str, collections: list[Any]) -> None:
    __import__(package)
    assert collections and gc.get_freeze_count() == 0


def test_none_is_collected_inside_and_later_collections_leave_out_what_was_imported(
    package: str, collections: list[Any]
) -> None:
    with quick_imports():
        collections.clear()
        with quick_imports():
            __import__(package)
        assert not gc.isenabled(), "the inner block ends no more than itself"
        assert not collections
    assert gc.isenabled() and gc.get_freeze_count() > MODULES * 1000
    cycle: list[Any] = []
    cycle.append(cycle)
    del cycle
    assert gc.collect() > 0 and collections


def test_a_small_import_freezes_nothing_and_a_failed_one_leaves_the_collector_on(collections: list[Any]) -> None:
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


def test_collection_is_deferred_until_so_many_objects_or_until_it_is_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    before = gc.get_threshold()
    defer_collection()
    defer_collection()
    assert gc.get_threshold()[0] > 100_000
    held = [[] for _ in range(gc.get_threshold()[0] + 10)]
    assert gc.get_threshold() == before and gc.get_freeze_count() > len(held) - 1000
    gc.unfreeze()
    defer_collection()
    resume_collection()
    assert gc.get_threshold() == before and gc.get_freeze_count() > 0
    gc.unfreeze()
    resume_collection()
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

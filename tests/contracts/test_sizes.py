"""Sizes that keep a file readable: no function over 60 lines, no file over 400."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
ROOMS = ("pipelines", "preprocessing", "rt_models", "cluster", "tuning", "tests", "benchmarks")
FILES = sorted(path.relative_to(REPOSITORY) for room in ROOMS for path in (REPOSITORY / room).rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=str)
def test_sizes(file: Path) -> None:
    source = (REPOSITORY / file).read_text()
    functions = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    too_long = [f.name for f in functions if (f.end_lineno or f.lineno) - f.lineno + 1 > 60]
    assert too_long == [] and source.count("\n") <= 400

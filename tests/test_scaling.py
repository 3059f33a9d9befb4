"""The tables of docs/scaling.md are those of benchmarks/scaling.py, whose formulas are the published ones."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import pytest

from tests.support.command_line import REPOSITORY


@pytest.fixture
def scaling(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    import scaling

    return scaling


def test_the_page_has_the_computed_tables(scaling: ModuleType) -> None:
    page = (REPOSITORY / "docs/scaling.md").read_text()
    for name in scaling.TABLES:
        assert scaling.table(name) in page, name


def test_memory_and_exchange_follow_zero(scaling: ModuleType) -> None:
    """ZeRO's own example has 16 bytes a parameter too; stage 3 exchanges 1.5 times what stage 0 does."""
    model = replace(scaling.MODELS[1], parameters=1.0, accumulation=1)
    assert [scaling.rank_memory(model, stage, 4) for stage in range(4)] == [16, 10, 7, 4]
    sent = [scaling.exchanged(model, stage, 2) for stage in range(4)]
    assert sent == [4, 4, 4, 6]
    assert scaling.exchanged(replace(model, accumulation=4), 2, 2) == 10


def test_more_nodes_take_less_time_in_proportion(scaling: ModuleType) -> None:
    found = scaling.sources()
    assert sum(source.size for source in found) == 6_718_951_903_985
    one, four = scaling.preprocessing(1, 16, found), scaling.preprocessing(4, 16, found)
    assert one == pytest.approx([4 * hours for hours in four])

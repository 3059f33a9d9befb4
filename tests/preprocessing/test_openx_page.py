"""docs/openx.md says of every dataset what its spec and its provenance say."""

from __future__ import annotations

from pathlib import Path

import pytest

from preprocessing import dataset_spec
from preprocessing.provenance import provenance

PAGE = Path(__file__).parents[2] / "docs/openx.md"


def row(name: str) -> str:
    spec, said = dataset_spec.load(name), provenance(name)
    flags = ", ".join(f"`{flag.name}`" for flag in spec.flags) or "-"
    rate = f"{spec.control_hz:g}" if isinstance(spec.control_hz, int | float) else "recorded"
    cells = (f"`{name}`", rate, ", ".join(spec.cameras), said.units, said.rotation, said.gripper, flags)
    return f"| {' | '.join((*cells, '; '.join(said.unknown) or '-'))} |"


@pytest.mark.parametrize("name", dataset_spec.names())
def test_the_page_has_the_row_of_a_dataset(name: str) -> None:
    assert row(name) in PAGE.read_text().splitlines(), f"docs/openx.md must have: {row(name)}"


def test_the_page_has_no_other_rows() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    assert rows == [row(name) for name in dataset_spec.names()]

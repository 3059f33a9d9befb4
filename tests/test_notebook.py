"""The notebook in examples/, its cells run one after another with small sizes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command_line import REPOSITORY, environment

NOTEBOOK = REPOSITORY / "examples/closed_loop.ipynb"
SMALL = 'TASKS, DEMONSTRATIONS, STEPS, EPISODES = ("faucet-open-v3", "faucet-close-v3"), 2, 2, 1'
NO_JUPYTER = """
import sys, types
display = types.ModuleType("IPython.display")
display.Video = lambda path, embed: print("shown", path)
python = types.ModuleType("IPython")
python.get_ipython = lambda: None  # as where no notebook runs
sys.modules["IPython"], sys.modules["IPython.display"] = python, display
"""


def cells(kind: str) -> list[tuple[str, list[str]]]:
    """(source, tags)."""
    found = json.loads(NOTEBOOK.read_text())["cells"]
    return [("".join(c["source"]), c["metadata"].get("tags", [])) for c in found if c["cell_type"] == kind]


def test_a_reader_gets_cells_without_outputs_and_one_with_the_sizes() -> None:
    assert [tags for _, tags in cells("code")].count(["parameters"]) == 1
    assert all(not c.get("outputs") for c in json.loads(NOTEBOOK.read_text())["cells"])
    for source, _ in cells("code"):
        compile(source, str(NOTEBOOK), "exec")


@pytest.mark.slow
def test_the_notebook_goes_from_demonstrations_to_a_video(tmp_path: Path) -> None:
    code = [SMALL if "parameters" in tags else source for source, tags in cells("code")]
    script = tmp_path / "notebook.py"
    script.write_text("\n".join([NO_JUPYTER, *code]))
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "expert" in done.stdout and "shown runs/notebook/videos/faucet-" in done.stdout

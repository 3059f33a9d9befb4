"""hf:// where a folder is taken: a store and a model read from a server that answers as the Hugging Face hub does."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from preprocessing.store.episode_store import EpisodeStore
from tests.support.command_line import environment
from tests.support.hub_server import hub_server
from tests.support.untrained import write_untrained

# One process, which imports huggingface_hub after HF_ENDPOINT is set.
_READ = """
    import json, sys
    from pipelines.cli import main
    from pipelines.publishing.trained_model import load_trained

    store, model = sys.argv[1:]
    assert main(["inspect", store, "--verify"]) == 0
    assert main(["inspect", "hf://datasets/me/nothing"]) == 2
    assert main(["export", model, "copy"]) == 0
    trained = load_trained(model)
    print(json.dumps({"contract": trained.contract.id, "texts": sorted(trained.instructions.vectors)}))
"""


def test_a_store_and_a_model_on_the_hub(store: str, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub", reason="needs the extra hub")
    shutil.copytree(store, tmp_path / "hub/datasets/me/arms/store")
    write_untrained(store, tmp_path / "policy")
    shutil.copytree(tmp_path / "policy", tmp_path / "hub/models/me/policy")
    command = [sys.executable, "-c", textwrap.dedent(_READ), "hf://datasets/me/arms/store", "hf://me/policy"]
    (tmp_path / "here").mkdir()
    with hub_server(tmp_path / "hub") as address:
        variables = environment() | {
            "HF_ENDPOINT": address,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_XET": "1",
        }
        done = subprocess.run(
            command, env=variables, cwd=tmp_path / "here", capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    opened = EpisodeStore.open(store)
    assert said["texts"] == sorted(opened.instruction_texts) and said["contract"]
    assert "hf://datasets/me/arms/store" in done.stdout and "datasets/me/nothing" in done.stderr
    assert (tmp_path / "here/copy/model.safetensors").read_bytes() and "Traceback" not in done.stderr

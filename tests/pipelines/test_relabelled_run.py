"""A run on actions relabelled from the state: it is part of the contract, and evaluation follows it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from pipelines.cli import main
from pipelines.evaluation.predictions import predict_store
from pipelines.publishing.trained_model import load_trained
from preprocessing.store.episode_store import EpisodeStore

TRAIN = ["train", "rt1_tiny", "--output", "run", "--loop.checkpoint_every", "1"]


pytestmark = pytest.mark.usefixtures("own_folder")


def test_trained_evaluated_and_continued_on_what_was_reached(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [*TRAIN, "--data", store, "--validation", store, "--loader.relabel", "metaworld_sample"]
    assert main([*asked, "--loop.steps", "1"]) == 0
    assert yaml.safe_load(Path("run/experiment.yaml").read_text())["loader"]["relabel"] == ["metaworld_sample"]
    assert main([*TRAIN, "--data", store, "--loop.steps", "2", "--resume"]) == 2
    assert "was trained under contract" in capsys.readouterr().err
    assert main([*asked, "--loop.steps", "2", "--resume"]) == 0

    trained, opened = load_trained("run"), EpisodeStore.open(store)
    found = predict_store(trained.model, trained.contract, opened, batch=64)
    table = opened.read_shard(0, ["proprio", "is_terminal"])
    state = np.array(table["proprio"].to_pylist())[:, :3]
    own = [np.diff(piece, axis=0) for piece in np.split(state, np.cumsum(opened.shards[0].episode_lengths)[:-1])]
    reached = np.concatenate(own)[: len(found.physical_NA)]
    np.testing.assert_allclose(found.physical_NA[: len(reached), 1:4], reached, atol=1e-5)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ["--loader.relabel", "bridge"],
            "loader.relabel names 'bridge', which no store has: there are metaworld_sample",
        ),
        (["--loader.mask-flags", "failed"], "loader.mask_flags names 'failed', which no store has: there are none"),
    ],
)
def test_what_no_store_has_is_told_before_anything_starts(
    store: str, flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*TRAIN, "--data", store, *flags]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1
    assert not Path("run").exists()

"""Weights of a mixture on the real command line: they are part of the run, and wrong ones end it before it starts."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pipelines.cli import main

TRAIN = ["train", "rt1_tiny", "--output", "run", "--loop.steps", "1", "--loop.checkpoint_every", "1"]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_weights_stand_in_the_run_and_hold_for_its_continuation(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [*TRAIN, "--data", store, "--mixture.weights", "metaworld_sample", "2"]
    assert main(asked) == 0
    assert yaml.safe_load(Path("run/experiment.yaml").read_text())["mixture"]["weights"] == {"metaworld_sample": 2.0}
    assert main([*asked[:-1], "3", "--resume"]) == 2
    assert "mixture.weights.metaworld_sample was 2.0 and is now 3.0" in capsys.readouterr().err
    assert main([*TRAIN, "--data", store, "--resume"]) == 2
    assert "mixture.weights.metaworld_sample was 2.0 and is now None" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--mixture.weights", "brigde", "1"], "mixture.weights names 'brigde', which no store holds"),
        (["--mixture.weights", "metaworld_sample", "0"], "every weight must be above 0 and finite"),
        (["--mixture.name", "rt1y"], "there is no mixture 'rt1y': did you mean 'rt1x'"),
        (["--mixture.name", "rt1x"], "mixture rt1x has no weight for 'metaworld_sample'"),
    ],
)
def test_what_cannot_be_drawn_is_told_before_anything_starts(
    store: str, flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*TRAIN, "--data", store, *flags]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1
    assert not Path("run").exists()


def test_a_damaged_shard_is_told_before_anything_starts(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    shard = next(Path(store).glob("shard-*.parquet"))
    whole = shard.read_bytes()
    try:
        shard.write_bytes(whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:])
        assert main([*TRAIN, "--data", store]) == 2
    finally:
        shard.write_bytes(whole)
    assert f"{shard} differs from its checksum in the manifest" in capsys.readouterr().err
    assert not Path("run").exists()

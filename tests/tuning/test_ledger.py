"""What is written is what is read, whatever the moment of a kill."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuning.ledger import Exploit, Ledger, Report, TrialRecord

RECORD = TrialRecord(
    number=3,
    point=1,
    seed=7,
    parameters={"optimizer.lr": 0.1, "engine": {"type": "TorchEngineConfig"}},
    state="stopped",
    step=20,
    reports=(Report(step=10, values={"loss": 0.5}), Report(step=20, values={"loss": 0.25})),
    lineage=(Exploit(step=10, parent=2, checkpoint="c", before={"a": 1}, after={"a": 2}),),
)


def test_a_record_survives_the_way_to_disk_and_back(tmp_path: Path) -> None:
    Ledger(str(tmp_path)).put(RECORD)
    assert Ledger.load(str(tmp_path)).trials == {3: RECORD}


@pytest.mark.parametrize("name", ["run?1", "[ab]", "*", "a%2Fb #1"])
def test_a_folder_of_any_name_holds_its_own_trials_alone(name: str, tmp_path: Path) -> None:
    Ledger(str(tmp_path / "runs1")).put(replace(RECORD, number=9))
    Ledger(str(tmp_path / "a")).put(replace(RECORD, number=9))
    Ledger(str(tmp_path / name)).put(RECORD)
    assert Ledger.load(str(tmp_path / name)).trials == {3: RECORD}


def test_remote_folders_hold_the_same() -> None:
    Ledger("memory://sweep").put(RECORD)
    assert Ledger.load("memory://sweep").trials == {3: RECORD}


def test_what_ran_when_the_sweep_was_killed_is_interrupted_and_half_a_file_is_nothing(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    ledger.put(replace(RECORD, state="running"))
    (tmp_path / "trials/0003/trial.partial").write_text('{"number": 3, "sta')
    loaded = Ledger.load(str(tmp_path))
    assert loaded.trials[3].state == "interrupted"
    assert loaded.description() is None


def test_a_record_of_another_version_is_refused_by_name(tmp_path: Path) -> None:
    Ledger(str(tmp_path)).put(RECORD)
    path = tmp_path / "trials/0003/trial.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "flavour": 1}))
    with pytest.raises(ValueError, match="flavour"):
        Ledger.load(str(tmp_path))


@pytest.mark.parametrize(("name", "text"), [("sweep.json", ""), ("trials/0003/trial.json", "{"), ("sweep.json", "3")])
def test_what_is_no_record_is_named(name: str, text: str, tmp_path: Path) -> None:
    Ledger(str(tmp_path)).put(RECORD)
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=f"{Path(name).name} is not a record of a sweep"):
        Ledger.load(str(tmp_path)).description()


@given(st.lists(st.tuples(st.integers(1, 9), st.sampled_from(["a", "b", None])), max_size=30))
def test_reports_are_in_order_and_the_newest_of_a_step_counts(events: list[tuple[int, str | None]]) -> None:
    record, newest = TrialRecord(number=0, point=0, seed=0, parameters={}), {}
    for value, (step, metric) in enumerate(events):
        record = record.reported(step, {metric: float(value)} if metric else {})
        if metric:
            newest = {key: v for key, v in newest.items() if key[0] <= step} | {(step, metric): float(value)}
        assert record.step == step
    steps = [report.step for report in record.reports]
    assert steps == sorted(set(steps))
    assert {(r.step, name): v for r in record.reports for name, v in r.values.items()} == newest


def test_the_scratch_folder_is_empty_at_the_start_and_gone_at_the_end(tmp_path: Path) -> None:
    (tmp_path / ".scratch").mkdir()
    (tmp_path / ".scratch/old").write_text("left by a kill")
    with Ledger(str(tmp_path)).scratch() as (path, files):
        assert not Path(path).exists() and files is None
        Path(path).mkdir()
    assert not Path(path).exists()

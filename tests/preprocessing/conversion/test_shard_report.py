"""A shard's report comes back from the progress folder as it was written, also one of an earlier version."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from preprocessing.conversion.shard_report import QuarantinedRecord, ShardReport, read_report, report_name
from preprocessing.store.file_system import file_system_of
from preprocessing.store.json_records import to_text
from preprocessing.store.statistics import Moments
from preprocessing.store.store_manifest import ShardEntry

REPORT = ShardReport(
    file="shard-00000-of-00001.parquet",
    rows=5,
    bytes=100,
    sha256="0" * 64,
    source="data.tfrecord-00000-of-00001",
    source_bytes=120,
    source_records=3,
    source_sha256_of_crcs="1" * 64,
    episode_lengths=(2, 3),
    quarantine=(QuarantinedRecord(shard="data.tfrecord-00000-of-00001", record=1, offset=40, reason="cut"),),
    frame_size=(8, 16),
    rates_hz=(3.0,),
    moments=Moments.of(np.arange(10.0).reshape(5, 2)),
    unread={"reward": 1},
    states_not_finite=(2,),
)


def read(folder: Path, text: str) -> ShardReport:
    (folder / report_name(0)).write_text(text)
    return read_report(ShardReport, *file_system_of(str(folder)), 0)


def test_a_report_comes_back_as_it_was_written(tmp_path: Path) -> None:
    report = read(tmp_path, to_text(REPORT))
    assert to_text(report) == to_text(REPORT)
    assert report.quarantine == REPORT.quarantine and report.frame_size == (8, 16)


def test_the_manifest_gets_no_more_than_its_entry() -> None:
    entry = REPORT.entry()
    assert type(entry) is ShardEntry and entry.episode_lengths == (2, 3)
    assert "moments" not in to_text(entry)


def test_a_report_of_an_earlier_version_leaves_out_what_is_empty(tmp_path: Path) -> None:
    data = json.loads(to_text(REPORT)) | {"frame_size": None, "quarantine": []}
    del data["unread"], data["states_not_finite"]
    report = read(tmp_path, json.dumps(data))
    assert (report.frame_size, report.unread, report.states_not_finite) == (None, {}, ())


def test_a_report_of_an_earlier_version_has_histograms_of_plain_numbers(tmp_path: Path) -> None:
    histograms = REPORT.moments.histograms
    data = json.loads(to_text(REPORT))
    data["moments"]["histograms"] = [[keys.tolist(), counts.tolist()] for keys, counts in histograms]
    assert to_text(read(tmp_path, json.dumps(data))) == to_text(REPORT)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "cannot be read as JSON"),
        ("{}", "is not as it was written (no 'file')"),
        (to_text(REPORT).replace('"rows": 5', '"rows": "5"'), 'rows is "5", not a whole number'),
        (
            to_text(REPORT).replace('"histograms": [["', '"histograms": [["A'),
            "letters that are no base64 of whole numbers",
        ),
    ],
)
def test_a_damaged_report_is_named_with_the_remedy(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ValueError, match=r"00000\.json .*: delete the store's folder") as failure:
        read(tmp_path, text)
    assert words in str(failure.value)

"""`rtp preprocess` from S3 to S3: the local store's bytes, also when it is given twice."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from pipelines.cli import main
from pipelines.preprocess import main as preprocess
from preprocessing.conversion.resume import names_in
from tests.support.file_contents import file_contents
from tests.support.servers import Bucket, s3_bucket

SAMPLE = Path(__file__).resolve().parents[2] / "examples/metaworld_sample/1.0.0"


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    with s3_bucket(tmp_path) as served:
        for name, value in served.environment.items():
            monkeypatch.setenv(name, value)
        fsspec.filesystem("s3").clear_instance_cache()
        yield served
        fsspec.filesystem("s3").clear_instance_cache()


def test_source_and_target_on_s3(bucket: Bucket, tmp_path: Path) -> None:
    shutil.copytree(SAMPLE, bucket.folder / "sample/1.0.0")
    flags = ["--split", "train[:20]", "--encoder", "hash", "--workers", "0"]
    command = [f"{bucket.url}/sample/1.0.0", f"{bucket.url}/stores", *flags]
    first, again = preprocess(command), preprocess(command)
    assert (first["episodes_out"], first["quarantined"]) == (20, 0)
    assert first["shards_converted"] > 0 and again["shards_converted"] == 0
    preprocess([str(SAMPLE), str(tmp_path / "local"), *flags])
    assert file_contents(bucket.folder / "stores") == file_contents(tmp_path / "local")


def test_a_listing_does_not_hide_what_other_nodes_write_later(bucket: Bucket) -> None:
    ours, theirs = fsspec.filesystem("s3"), fsspec.filesystem("s3", skip_instance_cache=True)
    theirs.pipe_file(f"{bucket.url}/progress/00000.json", b"{}")
    assert names_in(ours, "bucket/progress") == {"00000.json"}
    theirs.pipe_file(f"{bucket.url}/progress/00001.json", b"{}")
    assert ours.exists("bucket/progress/00001.json")


@pytest.mark.parametrize(
    "command",
    [
        ["preprocess", "s3://bucket/sample/1.0.0", "out"],
        ["preprocess", str(SAMPLE), "s3://bucket/stores", "--encoder", "hash", "--split", "val"],
        ["inspect", "s3://bucket/stores"],
        ["train", "rt1_tiny", "--data", "s3://bucket/stores", "--output", "run"],
    ],
)
def test_a_store_that_does_not_answer_is_one_sentence(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in {"ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "ENDPOINT_URL": "http://127.0.0.1:1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setitem(fsspec.config.conf, "s3", {"config_kwargs": {"retries": {"max_attempts": 0}}})
    monkeypatch.setattr(fsspec.get_filesystem_class("s3"), "retries", 1)
    fsspec.filesystem("s3").clear_instance_cache()
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "cannot be reached" in said and "s3://bucket" in said and said.count("\n") == 1
    assert not list(tmp_path.iterdir())

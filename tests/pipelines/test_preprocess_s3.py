"""`rtp preprocess` from S3 to S3: the local store's bytes, also when it is given twice."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from servers import Bucket, s3_bucket

from pipelines.preprocess import main as preprocess

SAMPLE = Path(__file__).resolve().parents[2] / "examples/metaworld_sample/1.0.0"


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    with s3_bucket(tmp_path) as served:
        for name, value in served.environment.items():
            monkeypatch.setenv(name, value)
        fsspec.filesystem("s3").clear_instance_cache()
        yield served
        fsspec.filesystem("s3").clear_instance_cache()


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_source_and_target_on_s3(bucket: Bucket, tmp_path: Path) -> None:
    shutil.copytree(SAMPLE, bucket.folder / "sample/1.0.0")
    flags = ["--split", "train[:20]", "--encoder", "hash", "--workers", "0"]
    command = [f"{bucket.url}/sample/1.0.0", f"{bucket.url}/stores", *flags]
    first, again = preprocess(command), preprocess(command)
    assert (first["episodes_out"], first["quarantined"]) == (20, 0)
    assert first["shards_converted"] > 0 and again["shards_converted"] == 0
    preprocess([str(SAMPLE), str(tmp_path / "local"), *flags])
    assert files(bucket.folder / "stores") == files(tmp_path / "local")

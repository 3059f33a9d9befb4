"""The first episodes of the shipped sample as a dataset of their own, for commands that take their time for each."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

from preprocessing.tfds.tfrecord import Record, read_records
from tests.support.command_line import SAMPLE
from tests.support.tiny_rlds import frame_record


def short_sample(folder: Path, **episodes: int) -> Path:
    """So many episodes of each split, in one shard each, below `folder`; the version folder."""
    version = folder / "metaworld_sample/1.0.0"
    version.mkdir(parents=True)
    shutil.copy(SAMPLE / "features.json", version)
    info = json.loads((SAMPLE / "dataset_info.json").read_text())
    for split in info["splits"]:
        name = f"metaworld_sample-{split['name']}.tfrecord"
        shard = next(iter(sorted(SAMPLE.glob(f"{name}-00000-of-*"))))
        with shard.open("rb") as file:
            records = list(itertools.islice(read_records(file, shard.stat().st_size), episodes[split["name"]]))
        payloads = [record.payload for record in records if isinstance(record, Record)]
        assert len(payloads) == episodes[split["name"]]
        (version / f"{name}-00000-of-00001").write_bytes(b"".join(map(frame_record, payloads)))
        split |= {"shardLengths": [str(len(payloads))], "numBytes": str(sum(map(len, payloads)))}
    (version / "dataset_info.json").write_text(json.dumps(info))
    return version

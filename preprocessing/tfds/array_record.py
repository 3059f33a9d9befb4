"""ArrayRecord files, the other format of TFDS: records by number, checked by the format itself.

Records have no byte offset here: the number of a record stands for it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from preprocessing.store.file_system import FileSystem, is_local
from preprocessing.store.shard_files import with_retries
from preprocessing.tfds.tfrecord import Damage, Record, masked_crc32c


def read_array_records(filesystem: FileSystem, path: str, *, first: int, stop: int | None) -> Iterator[Record | Damage]:
    """Records `first` to `stop` (None: the end). A file that is not local is fetched whole to a temporary one first.

    Raises ValueError if the array_record package is not installed.
    """
    with tempfile.TemporaryDirectory() as folder:
        local = path
        if not is_local(filesystem):
            local = f"{folder}/{Path(path).name}"
            with_retries(lambda: filesystem.get_file(path, local), what=path)
        yield from _records(local, first, stop)


def _records(path: str, first: int, stop: int | None) -> Iterator[Record | Damage]:
    try:
        from array_record.python.array_record_module import ArrayRecordReader
    except ImportError:
        raise ValueError(f"{path} is an ArrayRecord file: pip install array_record") from None
    try:
        reader = ArrayRecordReader(path, options="readahead_buffer_size:0")
        count = reader.num_records()
    except (RuntimeError, ValueError, IndexError) as error:  # the file's own index of records is damaged
        yield Damage(offset=first, reason=" ".join(str(error).split()))
        return
    for number in range(first, count if stop is None else min(stop, count)):
        yield _record(reader, number)


def _record(reader: Any, number: int) -> Record | Damage:
    try:
        (payload,) = reader.read([number])
    except (RuntimeError, ValueError, IndexError) as error:
        return Damage(offset=number, reason=" ".join(str(error).split()))
    return Record(offset=number, payload=payload, crc=masked_crc32c(payload))

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from preprocessing.loading.reader import LoaderConfig
from preprocessing.loading.web_reader import WebReader
from preprocessing.store.images import decode_image, resize_image
from preprocessing.store.web_store import WebStore
from preprocessing.web import convert_web as web_data
from preprocessing.web import sources as web_sources
from preprocessing.web.convert_web import WebConvertConfig, convert_web

SIZES = [(20, 30), (30, 20), (24, 24), (50, 10), (12, 12)]


def encoded(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*SIZES[seed % 5], 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[WebStore]]:
    """Two stores of several shards and row groups: picture n of each has 1 + n mod 3 questions."""
    made = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(web_sources, "_RECORDS_PER_PIECE", 5)
        patch.setattr(web_data, "WEB_ROW_GROUP_ROWS", 2)
        for name in ("first", "second"):
            folder = tmp_path_factory.mktemp(name) / name
            folder.mkdir()
            lines = []
            for number in range(12):
                (folder / f"{number}.png").write_bytes(encoded(number))
                for question in range(1 + number % 3):
                    text = {"question": f"{name} {number} {question}?", "answer": str(number)}
                    lines.append({"image": f"{number}.png", **text})
            (folder / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
            config = WebConvertConfig(format="jsonl", workers=0)
            made.append(WebStore.open(convert_web(str(folder), str(folder.parent / "stores"), config).store))
    yield made


def test_examples_count_through_stores_shards_and_rows(stores: list[WebStore]) -> None:
    expected = [
        (f"{name} {number} {question}?", str(number))
        for name in ("first", "second")
        for number in range(12)
        for question in range(1 + number % 3)
    ]
    with closing(WebReader(stores, frame_size=(16, 16), config=LoaderConfig())) as reader:
        assert sum(reader.store_rows) == len(expected) == 48
        order = np.random.default_rng(0).permutation(48)
        found = reader.texts(order)
        assert [(text.prompt, text.answer) for text in found] == [expected[i] for i in order]
        images = [image for text in found for image in text.images]
        assert len(set(images)) == 24
        frames = reader.frames(images)
    for frame, text in zip(frames, found, strict=True):
        original = decode_image(encoded(int(text.answer)))
        assert (frame == resize_image(original, 16, 16, "pad")).all()


def test_an_image_that_cannot_be_read_is_named(stores: list[WebStore], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(encoded: bytes) -> np.ndarray:
        raise ValueError("cut")

    monkeypatch.setattr("preprocessing.loading.web_reader.decode_image", broken)
    with closing(WebReader(stores, frame_size=(16, 16), config=LoaderConfig())) as reader:
        (text,) = reader.texts(np.array([47]))
        with pytest.raises(
            ValueError, match=r"row 1 of .*/second/.*shard-00002.*parquet cannot be decoded \(cut\): del"
        ):
            reader.frames(text.images)


def test_memory_is_bounded_in_row_groups(stores: list[WebStore], tmp_path: Path) -> None:
    with closing(WebReader(stores, frame_size=(8, 8), config=LoaderConfig(memory_mb=1))) as reader:
        reader.texts(np.arange(48))
        kept = reader._group.cache_info()
    total = sum(store.num_bytes for store in stores)
    groups = sum(-(-shard.rows // 2) for store in stores for shard in store.shards)
    assert kept.maxsize is not None and kept.maxsize * total / groups <= 2**20 / 4

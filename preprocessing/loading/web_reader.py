"""Reads image-text examples by number: their texts, and their pictures decoded and fitted to one size.

Examples count through the stores in their order, and in a store through its rows. Axes: F frames, HW pixels, C colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from preprocessing.loading.reader import LoaderConfig
from preprocessing.store.images import decode_image, resize_image
from preprocessing.store.web_store import TEXT_COLUMNS, WebStore, pictures_of

PicturePlace = tuple[int, int, int, int]
"""Where a picture lies: (store, shard, row, number in the row)."""


@dataclass(frozen=True, kw_only=True)
class WebText:
    """One example's texts. `prompt` is empty for a caption; `images` name its pictures among all stores, in order."""

    prompt: str
    answer: str
    references: tuple[str, ...]
    images: tuple[PicturePlace, ...]


class WebReader:
    """Texts and images of the examples of `stores`; images come as `frame_size` (height, width), padded with black."""

    def __init__(self, stores: Sequence[WebStore], *, frame_size: tuple[int, int], config: LoaderConfig) -> None:
        self.store_rows = [store.num_examples for store in stores]
        self._stores, self._frame_size = stores, frame_size
        self._first_example = np.concatenate([[0], np.cumsum(self.store_rows)])
        self._first_row = [np.cumsum([0, *(shard.rows for shard in store.shards)]) for store in stores]
        self._group = lru_cache(_groups_in_memory(stores, config))(self._read_group)
        self.most_pictures = max((store.most_pictures for store in stores), default=1)
        self._pool = ThreadPoolExecutor(config.decode_threads, thread_name_prefix="decode-web")

    def texts(self, examples: np.ndarray) -> list[WebText]:
        """The texts of examples (B,)."""
        store_B = np.searchsorted(self._first_example, examples, side="right") - 1
        texts = []
        for number, example in zip(store_B, examples - self._first_example[store_B], strict=True):
            store = self._stores[number]
            (record,), (inside,) = store.index.episodes(np.array([example]))
            shard = int(np.searchsorted(self._first_row[number], record, side="right")) - 1
            row = int(record - self._first_row[number][shard])
            texts.append(self._text(int(number), shard, row, int(inside)))
        return texts

    def frames(self, images: Sequence[PicturePlace]) -> list[np.ndarray]:
        """uint8 (H, W, 3) of each picture, decoded side by side."""
        return list(self._pool.map(self._frame, images))

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _text(self, number: int, shard: int, row: int, inside: int) -> WebText:
        group, place = divmod(row, self._stores[number].shards[shard].row_group_rows)
        columns = self._group(number, shard, group)
        prompt, answer, references = (columns[name][place][inside] for name in TEXT_COLUMNS)
        seen = pictures_of(columns[self._stores[number].picture_column][place])
        images = tuple((number, shard, row, picture) for picture in range(len(seen)))
        return WebText(prompt=prompt, answer=answer, references=tuple(references), images=images)

    def _frame(self, image: PicturePlace) -> np.ndarray:
        number, shard, row, picture = image
        store = self._stores[number]
        group, place = divmod(row, store.shards[shard].row_group_rows)
        cell = self._group(number, shard, group)[store.picture_column][place]
        try:
            decoded = decode_image(pictures_of(cell)[picture])
        except ValueError as error:
            path = store.shards[shard].path
            raise ValueError(
                f"the image in row {row} of {path} cannot be decoded ({error}): delete the store and preprocess again, "
                f"images that cannot be read are then left out"
            ) from error
        return resize_image(decoded, *self._frame_size, "pad")

    def _read_group(self, number: int, shard: int, group: int) -> dict[str, list[Any]]:
        store = self._stores[number]
        return store.read_rows(shard, group, [store.picture_column, *TEXT_COLUMNS]).to_pydict()


def _groups_in_memory(stores: Sequence[WebStore], config: LoaderConfig) -> int:
    """Row groups that a quarter of the loader's memory holds, by their mean size in the files."""
    groups = sum(-(-shard.rows // shard.row_group_rows) for store in stores for shard in store.shards)
    mean_bytes = sum(store.num_bytes for store in stores) / max(groups, 1)
    return max(int(config.memory_mb * 2**20 / 4 / max(mean_bytes, 1)), 2)

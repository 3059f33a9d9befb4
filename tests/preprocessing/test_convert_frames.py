"""Frames on their way into a store: resized, passed through, judged once at the door."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from preprocessing.convert import ConvertConfig, convert
from preprocessing.loading.loader import LoaderConfig, WindowReader
from preprocessing.rlds import Episode, open_dataset
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.images import decode_image, image_size
from rt_models.spec import AffineTransform
from tests.support.tiny_rlds import bridge_episode, bridge_features, jpeg, write_dataset

HERE = ConvertConfig(workers=0)


def saved(image: np.ndarray, kind: str, **options: Any) -> bytes:
    page = io.BytesIO()
    Image.fromarray(image).save(page, kind, **options)
    return page.getvalue()


def png(rng: np.random.Generator) -> bytes:
    return saved(rng.integers(0, 255, (16, 24, 3), np.uint8), "PNG")


def rows(store: EpisodeStore) -> dict[str, list]:
    table = pq.read_table([shard.path for shard in store.shards])
    return table.to_pydict()


@pytest.mark.parametrize("resize", ["pad", "squash", "crop"])
def test_resizing(make_bridge: Callable[..., Path], tmp_path: Path, resize: str) -> None:
    source = str(make_bridge([3], [2]))
    config = ConvertConfig(workers=0, image_size="8x8", resize=resize, cameras=("image", "2"))  # type: ignore[arg-type]
    convert(source, str(tmp_path / "out"), config)
    store = EpisodeStore.open(str(tmp_path / "out"))
    image = store.contract.image
    assert (image.height, image.width, image.resize) == (8, 8, resize)
    found = rows(store)
    assert {decode_image(frame).shape for frame in found["image"] + found["image_2"]} == {(8, 8, 3)}


def test_frames_of_other_sizes_need_a_size_and_equal_ones_pass_through(
    make_bridge: Callable[..., Path], tmp_path: Path
) -> None:
    source = make_bridge([3])
    convert(str(source), str(tmp_path / "same"), ConvertConfig(workers=0, image_size="16x24"))
    frames = rows(EpisodeStore.open(str(tmp_path / "same")))["image"]
    assert {image_size(frame) for frame in frames} == {(16, 24)}
    original = next(open_dataset(str(source)).episodes("train"))
    assert isinstance(original, Episode) and frames == original.steps["observation/image_0"]
    mixed = next(source.glob("*.tfrecord*"))
    other = next(make_bridge([2], size=(8, 8), name="other").glob("*.tfrecord*"))
    mixed.write_bytes(mixed.read_bytes() + other.read_bytes())
    with pytest.raises(ValueError, match=r"frames differ in size, 8x8 and 16x24 in record 1 of .*: give --image-size"):
        convert(str(source), str(tmp_path / "mixed"), HERE)


def test_frames_are_judged_once_and_what_is_let_in_is_read(tmp_path: Path) -> None:
    """A frame that is whole stays as it is, byte for byte, whatever its kind; any other costs its episode."""
    rng = np.random.default_rng(3)
    whole, exif = jpeg(rng), Image.Exif()
    exif[0x0112] = 6
    lying = saved(rng.integers(0, 255, (24, 16, 3), np.uint8), "JPEG", exif=exif)
    middle = png(rng)[:60] + bytes(20) + png(rng)[80:]
    frames = {
        "stray bytes before its end": (whole[:-2] + b"\0" * 17 + whole[-2:], ""),
        "lying": (lying, ""),
        "grey": (saved(rng.integers(0, 255, (16, 24), np.uint8), "PNG"), ""),
        "16 bits": (saved(rng.integers(0, 4000, (16, 24), np.uint16), "PNG"), "mode I;16, as depth images have"),
        "cut": (whole[:-60], "Premature end of JPEG file"),
        "cut, with an end": (whole[:-60] + whole[-2:], "premature end of data segment"),
        "damaged in the middle": (middle, "cannot be decoded"),
        "no picture": (b"", "0 bytes that are no image"),
        "a header that lies": (png(rng).replace(b"IHDR\0\0\0", b"IHDR\x7f\0\0"), "claims 16x2130706456"),
    }
    episodes = [bridge_episode(rng, 3) for _ in frames]
    for episode, (frame, _) in zip(episodes, frames.values(), strict=True):
        episode["steps"][1]["observation"]["image_0"] = frame
    source = write_dataset(tmp_path / "source", "bridge_dataset", bridge_features(), [episodes])
    convert(str(source), str(tmp_path / "out"), HERE)
    store = EpisodeStore.open(str(tmp_path / "out"))
    lines = [json.loads(line) for line in Path(store.root, "quarantine.jsonl").read_text().splitlines()]
    left_out = {line["record"]: line["reason"] for line in lines}
    for record, (name, (_, reason)) in enumerate(frames.items()):
        assert reason in left_out.get(record, "") and bool(reason) == (record in left_out), name
    assert all(line["reason"].startswith("observation/image_0 of step 1: ") for line in lines)
    kept = [frame for frame, reason in frames.values() if not reason]
    assert rows(store)["image"][1::3] == kept
    config = LoaderConfig(frames="windows")
    identity = AffineTransform(name="identity", scale=(1.0,) * 11, offset=(0.0,) * 11)
    with closing(WindowReader([store], [identity], num_steps=1, config=config)) as reader:
        read = reader.read(np.arange(9), np.arange(9))["frames"].numpy()
    for frame, encoded in zip(read[1::3], kept, strict=True):
        np.testing.assert_array_equal(frame, decode_image(encoded))

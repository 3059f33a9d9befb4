"""Frames of an episode, brighter where the model looks: a row of pictures for each of its maps."""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.images import decode_image, encode_jpeg, resize_image

MapsOfRows = Callable[[np.ndarray], Mapping[str, np.ndarray]]
"""From rows of a store to float (N, h, w) maps of their frames by name."""
_FRAMES, _HEIGHT = 5, 112
_DIMMEST = 0.2  # of the brightness, where the model does not look


def attended_frames(store: EpisodeStore, shard: int, episode: int, maps_of: MapsOfRows) -> str:
    """HTML of some frames of an episode of `store`, evenly spread; empty where the model has no maps."""
    length = int(store.shards[shard].episode_lengths[episode])
    steps = np.unique(np.linspace(0, max(length - 2, 0), min(_FRAMES, length)).astype(int))
    before = sum(other.rows for other in store.shards[:shard])
    maps = maps_of(before + int(store.shards[shard].episode_lengths[:episode].sum()) + steps)
    if not maps:
        return ""
    frames = store.read_episode(shard, episode, ["image"])["image"]
    pictures = [decode_image(frames[step].as_py()) for step in steps.tolist()]
    rows = "".join(_row(name, pictures, map_NHW) for name, map_NHW in maps.items())
    told = ", ".join(map(str, steps.tolist()))
    return f'<div class="attended"><div>where the model looks, at steps {told}</div><table>{rows}</table></div>'


def lit(image_HWC: np.ndarray, map_HW: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3): the picture, dim where the map is lowest and as it is where it is highest."""
    low, high = float(map_HW.min()), float(map_HW.max())
    level_HW = (map_HW - low) / (high - low) if high > low else np.ones_like(map_HW)
    coarse_HWC = np.repeat((255 * level_HW).astype(np.uint8)[..., None], 3, axis=2)
    height, width = image_HWC.shape[:2]
    level_HWC = resize_image(coarse_HWC, height, width, "squash") / 255
    return (image_HWC * (_DIMMEST + (1 - _DIMMEST) * level_HWC)).round().astype(np.uint8)


def _row(name: str, pictures: Sequence[np.ndarray], map_NHW: np.ndarray) -> str:
    cells = "".join(f"<td>{_img(lit(*pair))}</td>" for pair in zip(pictures, map_NHW, strict=True))
    return f"<tr><th>{html.escape(name)}</th>{cells}</tr>"


def _img(image_HWC: np.ndarray) -> str:
    height, width = image_HWC.shape[:2]
    if height > _HEIGHT:
        image_HWC = resize_image(image_HWC, _HEIGHT, max(round(width * _HEIGHT / height), 1), "squash")
    data = base64.b64encode(encode_jpeg(np.ascontiguousarray(image_HWC), quality=80)).decode()
    return f'<img alt="" src="data:image/jpeg;base64,{data}">'


STYLE = """
.attended { overflow-x: auto; font-size: 13px; color: #57606a } .attended td { padding: 1px }
.attended th { text-align: left; font-weight: normal; padding-right: .6rem } .attended img { display: block }
"""

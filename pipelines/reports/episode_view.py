"""An episode on an HTML page: frames that play, a film strip, and curves whose cursor moves with the frame.

Strip and curves have the same time axis: a picture of the strip covers `stride` steps and shows the middle one, and the
curves of those steps stand below it. Without scripts the strip and the curves remain.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import simplejpeg

from preprocessing.store.episode_store import EpisodeStore, image_column
from preprocessing.store.images import decode_image, image_size, resize_image
from rt_models.spec import MAIN_CAMERA

_STRIP_PICTURES, _STRIP_HEIGHT = 10, 96
_PLAYED_FRAMES, _PLAYED_HEIGHT = 60, 192  # about 5 kB each: 12 episodes make a page of some megabytes
_JPEG_QUALITY = 80  # of pictures made smaller for the page
_LEAST_INTERVAL_MS = 40


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """Where the steps of an episode of `length` stand, in shares of the width."""

    length: int

    @property
    def stride(self) -> int:
        """Steps that one picture of the strip covers."""
        return -(-self.length // _STRIP_PICTURES)

    def pictures(self) -> np.ndarray:
        """int: the step that each picture of the strip shows."""
        first = np.arange(0, self.length, self.stride)
        return np.minimum(first + self.stride // 2, self.length - 1)

    def places(self, steps: np.ndarray) -> np.ndarray:
        """float in (0, 1): the middle of each step, below the picture that covers it."""
        return (np.asarray(steps) + 0.5) / (self.stride * len(self.pictures()))

    def played(self) -> np.ndarray:
        """int: the steps whose frames are played, all of them if they are not too many."""
        return np.arange(0, self.length, -(-self.length // _PLAYED_FRAMES))


Curves = Callable[[pa.Table, Timeline], str]
"""From the rows of an episode to the curves below its strip, as trusted HTML."""


def spread(store: EpisodeStore, limit: int) -> list[tuple[int, int]]:
    """(shard, episode in it) of at most `limit` episodes spread evenly over the store."""
    places = [(s, e) for s, shard in enumerate(store.shards) for e in range(len(shard.episode_lengths))]
    chosen = np.unique(np.linspace(0, len(places) - 1, min(limit, len(places))).astype(int))
    return [places[i] for i in chosen]


def episode_section(store: EpisodeStore, shard: int, episode: int, curves: Curves) -> str:
    """The HTML of one episode: instruction, player, a film strip for each camera, and below it the chart that `curves`
    draws."""
    columns = {camera: image_column(camera) for camera in store.manifest.cameras}
    table = store.read_episode(shard, episode, [*columns.values(), "action", "instruction"])
    timeline = Timeline(length=table.num_rows)
    places = np.searchsorted(store.instruction_ids, table["instruction"].to_numpy())
    instructions = {store.instruction_texts[place] for place in places}
    title = html.escape(" / ".join(sorted(instructions)) or "(no instruction)")

    def drawn(camera: str, steps: np.ndarray, height: int) -> str:
        rows = [(step, table[columns[camera]][step].as_py()) for step in steps.tolist()]
        return "".join(_picture(store, shard, episode, step, encoded, height, camera) for step, encoded in rows)

    strips = [f'<div class="strip">{drawn(camera, timeline.pictures(), _STRIP_HEIGHT)}</div>' for camera in columns]
    frames = drawn(MAIN_CAMERA, timeline.played(), _PLAYED_HEIGHT)
    player = _player(frames, timeline, store.manifest.control_hz)
    return (
        f'<section class="episode"><div><b>{title}</b> <small>shard {shard}, episode {episode}, '
        f'{table.num_rows} steps</small></div><div class="aside">{player}'
        f'<div class="timeline">{"".join(strips)}{curves(table, timeline)}</div></div></section>'
    )


def _player(frames: str, timeline: Timeline, control_hz: float) -> str:
    steps = timeline.played()
    stride = int(steps[1] - steps[0]) if len(steps) > 1 else 1
    interval_ms = max(round(1000 * stride / control_hz), _LEAST_INTERVAL_MS)
    places = ",".join(f"{place:.5f}" for place in timeline.places(steps))
    return (
        f'<div class="player" data-steps="{",".join(map(str, steps))}" data-places="{places}" '
        f'data-interval="{interval_ms}"><div class="screen">{frames}</div><button type="button">play</button>'
        f'<input type="range" min="0" max="{len(steps) - 1}" value="0" aria-label="step"><output>step 0</output></div>'
    )


def _picture(store: EpisodeStore, shard: int, episode: int, step: int, encoded: bytes, height: int, camera: str) -> str:
    """An <img> of at most `height` pixels. Raises ValueError naming the frame that cannot be decoded."""
    try:
        own_height, own_width = image_size(encoded)
        if own_height > height:
            width = max(round(own_width * height / own_height), 1)
            small = resize_image(decode_image(encoded), height, width, "squash")
            encoded = simplejpeg.encode_jpeg(np.ascontiguousarray(small), quality=_JPEG_QUALITY)
    except ValueError as error:
        raise store.frame_error(shard, episode, step, f"cannot be decoded ({error})", camera=camera) from error
    kind = "png" if encoded.startswith(b"\x89PNG") else "jpeg"
    return f'<img alt="" src="data:image/{kind};base64,{base64.b64encode(encoded).decode()}">'


STYLE = f"""
.episode {{ margin: 2rem 0 }} .aside {{ display: flex; gap: 1rem; align-items: flex-start }}
.player {{ width: 15rem; flex: none }} .screen {{ height: {_PLAYED_HEIGHT}px; background: #f6f8fa; text-align: center }}
.screen img {{ display: none; height: 100%; max-width: 100%; object-fit: contain }}
.screen img:first-child {{ display: inline }} .player.on .screen img {{ display: none }}
.player.on .screen img.shown {{ display: inline }} .player input {{ width: 8rem; vertical-align: middle }}
.timeline {{ flex: 1; min-width: 0 }} .timeline svg {{ display: block; width: 100% }}
.strip {{ display: flex; margin-bottom: .3rem }}
.strip img {{ flex: 1 1 0; min-width: 0; height: {_STRIP_HEIGHT}px; object-fit: contain }}
.cursor {{ stroke: #1b1f24; visibility: hidden }} .cursor.on {{ visibility: visible }}
"""

SCRIPT = """
for (const view of document.querySelectorAll(".episode")) {
  const player = view.querySelector(".player"), slider = player.querySelector("input");
  const button = player.querySelector("button"), output = player.querySelector("output");
  const frames = player.querySelectorAll("img"), cursors = view.querySelectorAll(".cursor");
  const steps = player.dataset.steps.split(","), places = player.dataset.places.split(",");
  let timer = null;
  const show = (i) => {
    slider.value = i;
    frames.forEach((frame, k) => frame.classList.toggle("shown", k === i));
    for (const cursor of cursors) {
      const x = places[i] * cursor.ownerSVGElement.viewBox.baseVal.width;
      cursor.setAttribute("x1", x);
      cursor.setAttribute("x2", x);
      cursor.classList.add("on");
    }
    output.textContent = " step " + steps[i];
  };
  const pause = () => { clearInterval(timer); timer = null; button.textContent = "play"; };
  const play = () => {
    if (Number(slider.value) === frames.length - 1) show(0);
    button.textContent = "pause";
    timer = setInterval(() => {
      if (Number(slider.value) === frames.length - 1) return pause();
      show(Number(slider.value) + 1);
    }, player.dataset.interval);
  };
  button.onclick = () => timer === null ? play() : pause();
  slider.oninput = () => { pause(); show(Number(slider.value)); };
  player.classList.add("on");
  show(0);
}
"""

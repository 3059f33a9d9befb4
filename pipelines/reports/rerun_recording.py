"""Episodes as a Rerun recording (rerun.io): frames, recorded beside predicted actions, where the model looks, by step.

A file is read by viewers of the version that wrote it, and of some later ones.
"""

from __future__ import annotations

import importlib
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.evaluation.predictions import Predictions
from pipelines.reports import episode_view
from pipelines.reports.attention_view import MapsOfRows, lit
from preprocessing.store.episode_store import EpisodeStore, image_column
from preprocessing.store.images import decode_image


def load_rerun() -> Any:
    """Rerun's SDK. Raises ImportError with the remedy if it does not load."""
    try:
        return importlib.import_module("rerun")
    except ImportError as error:
        raise ImportError(
            f"--rerun needs Rerun, which does not load here ({error}): pip install 'rt-pipelines[rerun]'"
        ) from error


def write_recording(
    path: str,
    store: EpisodeStore,
    predictions: Predictions,
    predicted_NA: np.ndarray,
    names: Sequence[str],
    *,
    limit: int,
    maps_of: MapsOfRows,
) -> int:
    """Write at most `limit` episodes spread evenly over `store`, and return their number. Arguments as those of
    `predicted_episodes` (prediction_view.py). The file appears when it is whole."""
    rerun, out = load_rerun(), Path(path).absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.part")
    recording = rerun.RecordingStream("rt-pipelines", recording_id=out.stem)
    try:
        recording.save(str(part))
        places = episode_view.spread(store, limit)
        for shard, episode in places:
            _Episode(rerun, recording, store, shard, episode).log(predictions, predicted_NA, names, maps_of)
        recording.flush()
        recording.disconnect()
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
    return len(places)


class _Episode:
    """One episode's way into a recording; its entities stand below its own name."""

    def __init__(self, rerun: Any, recording: Any, store: EpisodeStore, shard: int, episode: int) -> None:
        self._rerun, self._recording, self._store = rerun, recording, store
        self._shard, self._episode = shard, episode
        self._number = sum(len(other.episode_lengths) for other in store.shards[:shard]) + episode
        lengths = store.shards[shard].episode_lengths
        self._first_row = sum(other.rows for other in store.shards[:shard]) + int(lengths[:episode].sum())

    def log(
        self, predictions: Predictions, predicted_NA: np.ndarray, names: Sequence[str], maps_of: MapsOfRows
    ) -> None:
        columns = {role: image_column(role) for role in self._store.manifest.cameras}
        table = self._store.read_episode(self._shard, self._episode, [*columns.values(), "instruction"])
        place = np.searchsorted(self._store.instruction_ids, table["instruction"][0].as_py())
        self._log("instruction", self._rerun.TextDocument(self._store.instruction_texts[place]), static=True)
        for step in range(table.num_rows):
            self._recording.set_time("step", sequence=step)
            for role, column in columns.items():
                encoded = table[column][step].as_py()
                kind = "png" if encoded.startswith(b"\x89PNG") else "jpeg"
                self._log(f"camera/{role}", self._rerun.EncodedImage(contents=encoded, media_type=f"image/{kind}"))
        mine_N = np.flatnonzero(predictions.episode_N == self._number)
        steps_M = predictions.step_N[mine_N]
        self._log_actions(steps_M, predictions.physical_NA[mine_N], predicted_NA[mine_N], names)
        for name, map_MHW in maps_of(self._first_row + steps_M).items():
            for step, map_HW in zip(steps_M.tolist(), map_MHW, strict=True):
                self._recording.set_time("step", sequence=step)
                frame_HWC = decode_image(table["image"][step].as_py())
                self._log(f"attention/{name}", self._rerun.Image(lit(frame_HWC, map_HW)))

    def _log_actions(
        self, steps_M: np.ndarray, recorded_MA: np.ndarray, predicted_MA: np.ndarray, names: Sequence[str]
    ) -> None:
        places = [self._store.contract.action.names.index(name) for name in names]
        for row, step in enumerate(steps_M.tolist()):
            self._recording.set_time("step", sequence=step)
            for name, place in zip(names, places, strict=True):
                self._log(f"action/{name}/recorded", self._rerun.Scalars(float(recorded_MA[row, place])))
                self._log(f"action/{name}/predicted", self._rerun.Scalars(float(predicted_MA[row, place])))

    def _log(self, entity: str, value: object, *, static: bool = False) -> None:
        self._recording.log(f"episode_{self._number}/{entity}", value, static=static)

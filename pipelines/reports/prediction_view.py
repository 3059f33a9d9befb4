"""Predicted beside recorded actions as pictures: one chart per dimension, under the frames of its steps."""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from pipelines.evaluation.predictions import Predictions
from pipelines.reports import charts, episode_view
from pipelines.reports.attention_view import MapsOfRows, attended_frames
from pipelines.reports.episode_view import Curves, Timeline
from preprocessing.store.episode_store import EpisodeStore
from rt_models.action_space import ActionSpec

_CURVE_HEIGHT = 64
_CELLS = 16


def predicted_episodes(
    store: EpisodeStore,
    predictions: Predictions,
    predicted_NA: np.ndarray,
    names: Sequence[str],
    *,
    limit: int,
    maps_of: MapsOfRows | None = None,
) -> str:
    """HTML of at most `limit` episodes spread evenly over the store, with a chart of each of the dimensions `names`.
    `maps_of` shows where the model looks in some of their frames.

    `store` as the model was trained on it; `predicted_NA` are the physical actions of `predictions`. Its page needs
    style and script of `episode_view`.
    """
    firsts = np.concatenate([[0], np.cumsum([len(shard.episode_lengths) for shard in store.shards])])
    dims = [store.contract.action.names.index(name) for name in names]
    sections = []
    for shard, episode in episode_view.spread(store, limit):
        mine = predictions.episode_N == firsts[shard] + episode
        curves = _curves(
            [f"{store.contract.action.names[dim]} [{store.dataset.units[dim]}]" for dim in dims],
            predictions.step_N[mine],
            predictions.physical_NA[mine][:, dims],
            predicted_NA[mine][:, dims],
        )
        sections.append(episode_view.episode_section(store, shard, episode, curves))
        if maps_of is not None:
            sections.append(attended_frames(store, shard, episode, maps_of))
    return "".join(sections)


def bin_confusions(predictions: Predictions, action: ActionSpec, names: Sequence[str], bins: int) -> str:
    """HTML: for each of the dimensions `names`, recorded against predicted bins in groups; the diagonal is right."""
    figures = []
    for name in names:
        dim = action.names.index(name)
        count = action.dimensions[dim].num_classes or bins
        cells = min(count, _CELLS)
        groups = [tokens[:, dim] * cells // count for tokens in (predictions.target_tokens_NA, predictions.tokens_NA)]
        counts_RC = np.zeros((cells, cells), np.int64)
        np.add.at(counts_RC, (groups[0].clip(0, cells - 1), groups[1].clip(0, cells - 1)), 1)
        chart = charts.heat_map(counts_RC, x_title="bin predicted", y_title="bin recorded", cell=160 // cells)
        figures.append(f"<div>{html.escape(name)}<br>{chart}</div>")
    return f'<div style="display: flex; flex-wrap: wrap; gap: 1rem">{"".join(figures)}</div>'


def _curves(titles: Sequence[str], steps: np.ndarray, recorded_MD: np.ndarray, predicted_MD: np.ndarray) -> Curves:
    """One chart per dimension of an episode: recorded and predicted values (M, D) at its scored `steps` (M,)."""

    def draw(table: pa.Table, timeline: Timeline) -> str:
        places = timeline.places(np.arange(timeline.length))
        charted = []
        for title, recorded, predicted in zip(titles, recorded_MD.T, predicted_MD.T, strict=True):
            pair = {"recorded": recorded, "predicted": predicted}
            series = {name: _over_steps(steps, values, timeline.length) for name, values in pair.items()}
            chart = charts.lines(series, places=places, shared=True, height=_CURVE_HEIGHT)
            charted.append(f"<div>{html.escape(title)}{chart}</div>")
        return "".join(charted)

    return draw


def _over_steps(steps: np.ndarray, values: np.ndarray, length: int) -> np.ndarray:
    """float (length,): NaN at the steps that are not scored."""
    padded = np.full(length, np.nan)
    padded[steps] = values
    return padded

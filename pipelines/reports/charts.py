"""Small charts as inline SVG, so that a page needs no script and no file beside it."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

import numpy as np

_COLOURS = ("#0969da", "#cf222e", "#1a7f37", "#9a6700", "#8250df", "#bf3989", "#57606a", "#0a7ea4", "#bc4c00")

_THIN = 'stroke-width="1.5" vector-effect="non-scaling-stroke"'


def lines(
    series: Mapping[str, Sequence[float] | np.ndarray],
    *,
    places: np.ndarray | None = None,
    shared: bool = False,
    width: int = 800,
    height: int = 90,
) -> str:
    """One line a name; the legend gives the ranges. NaN: no point there.

    Each is scaled to its own range, or `shared`: all to that of all. `places` (N,) are where the points stand, in
    shares of the width; then there is a cursor too, which a script may move (pipelines/reports/episode_view.py).
    """
    paths, legend = [], []
    everything = np.concatenate([np.asarray(values, float) for values in series.values()])
    for number, (name, values) in enumerate(series.items()):
        colour, y = _COLOURS[number % len(_COLOURS)], np.asarray(values, float)
        x = width * (_evenly(len(y)) if places is None else places)
        known = np.isfinite(y)
        own = f"{y[known].min():.3g} .. {y[known].max():.3g}" if known.any() else "none"
        level = _levels(y, everything if shared else y)
        points = " ".join(
            f"{a:.1f},{height - 4 - b * (height - 8):.1f}" for a, b in zip(x[known], level[known], strict=True)
        )
        paths.append(f'<polyline points="{points}" fill="none" stroke="{colour}" {_THIN}/>')
        legend.append(f'<span style="color:{colour}">{html.escape(name)} {own}</span>')
    cursor = "" if places is None else f'<line class="cursor" x1="0" x2="0" y1="0" y2="{height}" {_THIN}/>'
    svg = _svg(width, height, "".join(paths) + cursor, fills=places is not None)
    return f'{svg}<div style="font-size:12px">{" &nbsp; ".join(legend)}</div>'


def _evenly(count: int) -> np.ndarray:
    return np.linspace(0.003, 0.997, count) if count > 1 else np.array([0.5])


def _levels(values: np.ndarray, among: np.ndarray) -> np.ndarray:
    """0 .. 1 from the lowest to the highest of `among`; the middle where they are equal."""
    known = among[np.isfinite(among)]
    low, high = (known.min(), known.max()) if len(known) else (0.0, 0.0)
    return (values - low) / (high - low) if high > low else np.full(len(values), 0.5)


def histogram(values: np.ndarray, *, bins: int = 40, width: int = 300, height: int = 80) -> str:
    """Bars of the counts of float (N,) `values`, on a square-root scale so that rare values stay visible."""
    low, high = float(np.min(values)), float(np.max(values))
    if np.nextafter(low, np.inf) < low + (high - low) / bins:
        counts, edges = np.histogram(values, bins=bins)
    else:  # one value, or values too near for so many bars
        counts, edges, bins = np.array([len(values)]), np.array([low, high]), 1
    levels = np.sqrt(counts / max(counts.max(), 1)) * (height - 4)
    step = width / bins
    bars = "".join(
        f'<rect x="{i * step:.1f}" y="{height - level:.1f}" width="{step - 1:.1f}" height="{level:.1f}" '
        f'fill="{_COLOURS[0]}"><title>{edges[i]:.4g} .. {edges[i + 1]:.4g}: {count}</title></rect>'
        for i, (level, count) in enumerate(zip(levels, counts, strict=True))
        if count
    )
    return f'{_svg(width, height, bars)}<div style="font-size:12px">{edges[0]:.4g} .. {edges[-1]:.4g}</div>'


def _svg(width: int, height: int, inside: str, *, fills: bool = False) -> str:
    """`fills`: stretched to whatever width the page gives it, so that places are shares of that."""
    frame = f'<rect width="{width}" height="{height}" fill="#f6f8fa"/>'
    stretched = ' preserveAspectRatio="none"' if fills else ""
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    return f'<svg {size}{stretched} role="img">{frame}{inside}</svg>'

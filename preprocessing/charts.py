"""Small charts as inline SVG, so that a page needs no script and no file beside it."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

import numpy as np

_COLOURS = ("#0969da", "#cf222e", "#1a7f37", "#9a6700", "#8250df", "#bf3989", "#57606a", "#0a7ea4", "#bc4c00")


def lines(series: Mapping[str, Sequence[float]], *, width: int = 640, height: int = 90) -> str:
    """One line a name over equally spaced places, each scaled to its own range; the legend gives the ranges."""
    paths, legend = [], []
    for number, (name, values) in enumerate(series.items()):
        colour, y = _COLOURS[number % len(_COLOURS)], np.asarray(values, float)
        low, high = float(y.min()), float(y.max())
        x = np.linspace(2, width - 2, len(y)) if len(y) > 1 else np.array([width / 2])
        level = (y - low) / (high - low) if high > low else np.full(len(y), 0.5)
        points = " ".join(f"{a:.1f},{height - 4 - b * (height - 8):.1f}" for a, b in zip(x, level, strict=True))
        paths.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        legend.append(f'<span style="color:{colour}">{html.escape(name)} {low:.3g} .. {high:.3g}</span>')
    svg = _svg(width, height, "".join(paths))
    return f'{svg}<div style="font-size:12px">{" &nbsp; ".join(legend)}</div>'


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


def _svg(width: int, height: int, inside: str) -> str:
    frame = f'<rect width="{width}" height="{height}" fill="#f6f8fa"/>'
    return f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">{frame}{inside}</svg>'

"""Charts as inline SVG, so that a page needs no script and no file beside it."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

BLUE, GREEN, GREY = "#0969da", "#1a7f37", "#afb8c1"
_COLOURS = (BLUE, "#cf222e", GREEN, "#9a6700", "#8250df", "#bf3989", "#57606a", "#0a7ea4", "#bc4c00")
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 12, 10, 40  # pixels around a plot, for ticks and titles
_SIDE = 90  # pixels beside parallel axes, for half of the text of a range
_HUGE = 1e300  # the width of an axis must be finite too
_THIN = 'stroke-width="1.5" vector-effect="non-scaling-stroke"'


def lines(
    series: Mapping[str, Sequence[float] | np.ndarray],
    *,
    places: np.ndarray | None = None,
    shared: bool = False,
    width: int = 800,
    height: int = 90,
) -> str:
    """Small lines without axes, one per name; the legend gives the ranges. NaN: no point there.

    Each line is scaled to its own range, or with `shared` to the range of all. `places` (N,) are the positions of the
    points as shares of the width; with them the chart has a cursor that a script may move (episode_view.py).
    """
    paths = []
    legend = []
    everything = np.concatenate([np.asarray(values, float) for values in series.values()])
    for number, (name, values) in enumerate(series.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        y = np.asarray(values, float)
        x = width * (_evenly(len(y)) if places is None else places)
        known = np.isfinite(y)
        own = f"{y[known].min():.3g} .. {y[known].max():.3g}" if known.any() else "none"
        level = levels(y, everything if shared else y)
        points = " ".join(
            f"{a:.1f},{height - 4 - b * (height - 8):.1f}" for a, b in zip(x[known], level[known], strict=True)
        )
        paths.append(f'<polyline points="{points}" fill="none" stroke="{colour}" {_THIN}/>')
        legend.append(f'<span style="color:{colour}">{html.escape(name)} {own}</span>')
    cursor = "" if places is None else f'<line class="cursor" x1="0" x2="0" y1="0" y2="{height}" {_THIN}/>'
    svg = _svg(width, height, "".join(paths) + cursor, fills=places is not None)
    return svg + _legend(legend)


def _evenly(count: int) -> np.ndarray:
    return np.linspace(0.003, 0.997, count) if count > 1 else np.array([0.5])


def levels(values: Sequence[float] | np.ndarray, among: np.ndarray | None = None) -> np.ndarray:
    """0 .. 1 from the lowest to the highest of `among` (default: of `values`); 0.5 if they are equal."""
    values = np.asarray(values, float)
    among = values if among is None else among
    known = among[np.isfinite(among)]
    low, high = (known.min(), known.max()) if len(known) else (0.0, 0.0)
    return (values - low) / (high - low) if high > low else np.full(len(values), 0.5)


def histogram(values: np.ndarray, *, bins: int = 40, width: int = 300, height: int = 80) -> str:
    """Bars of the counts of float (N,) `values`, on a square-root scale so that rare values stay visible."""
    low = float(np.min(values))
    high = float(np.max(values))
    if np.nextafter(low, np.inf) < low + (high - low) / bins:
        counts, edges = np.histogram(values, bins=bins)
    else:  # one value, or values too near for so many bars
        bins = 1
        counts = np.array([len(values)])
        edges = np.array([low, high])
    heights = np.sqrt(counts / max(counts.max(), 1)) * (height - 4)
    step = width / bins
    bars = "".join(
        f'<rect x="{i * step:.1f}" y="{height - level:.1f}" width="{step - 1:.1f}" height="{level:.1f}" '
        f'fill="{_COLOURS[0]}"><title>{edges[i]:.4g} .. {edges[i + 1]:.4g}: {count}</title></rect>'
        for i, (level, count) in enumerate(zip(heights, counts, strict=True))
        if count
    )
    return _svg(width, height, bars) + _legend([f"{edges[0]:.4g} .. {edges[-1]:.4g}"])


def heat_map(counts_RC: np.ndarray, *, x_title: str, y_title: str, cell: int = 10) -> str:
    """Squares, darker for more, each row over its own sum; the first row lies at the bottom."""
    rows, columns = counts_RC.shape
    share_RC = counts_RC / np.maximum(counts_RC.sum(axis=1, keepdims=True), 1)
    left, below = 18, 18
    squares = [
        f'<rect x="{left + column * cell}" y="{(rows - 1 - row) * cell}" width="{cell}" height="{cell}" '
        f'fill="{BLUE}" fill-opacity="{share_RC[row, column]:.2f}"/>'
        for row, column in zip(*np.nonzero(counts_RC), strict=True)
    ]
    width, height = columns * cell, rows * cell
    frame = f'<rect x="{left}" y="0" width="{width}" height="{height}" fill="none" stroke="{GREY}"/>'
    titles = _text(left + width / 2, height + below - 4, x_title, "middle")
    titles += _text(12, height / 2, y_title, "middle", turn=f' transform="rotate(-90 12 {height / 2:g})"')
    return _svg(left + width, height + below, frame + "".join(squares) + titles)


@dataclass(frozen=True, kw_only=True)
class Series:
    """Points of `plot`. `labels` are written beside the points; a series without a name is not in the legend."""

    name: str = ""
    points: Sequence[tuple[float, float]]
    colour: str = ""
    """Default: the next of the chart's colours."""
    joined: bool = True
    dots: bool = True
    labels: Sequence[str] = ()


def plot(series: Sequence[Series], *, x_title: str, y_title: str, width: int = 800, height: int = 280) -> str:
    """A chart with axes; points that are not finite are left out."""
    finite = [[place for place, point in enumerate(each.points) if _is_drawable(point)] for each in series]
    drawn = [each.points[place] for each, kept in zip(series, finite, strict=True) for place in kept]
    x_axis = _Axis.of([x for x, _ in drawn], _LEFT, width - _RIGHT)
    y_axis = _Axis.of([y for _, y in drawn], height - _BOTTOM, _TOP)
    parts = list(_grid(x_axis, y_axis, x_title, y_title))
    legend = []
    for number, (each, kept) in enumerate(zip(series, finite, strict=True)):
        colour = each.colour or _COLOURS[number % len(_COLOURS)]
        places = [(x_axis.place(each.points[i][0]), y_axis.place(each.points[i][1])) for i in kept]
        if each.joined:
            corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            parts.append(f'<polyline points="{corners}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        if each.dots:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
        if each.labels:
            parts += [_text(x + 6, y - 6, each.labels[i]) for i, (x, y) in zip(kept, places, strict=True)]
        if each.name:
            legend.append(f'<span style="color:{colour}">{html.escape(each.name)}</span>')
    return _svg(width, height, "".join(parts)) + _legend(legend)


def _is_drawable(point: tuple[float, float]) -> bool:
    return all(abs(value) < _HUGE for value in point)  # False for not a number


@dataclass(frozen=True, kw_only=True)
class Thread:
    """A line of `parallel_coordinates` through one height in 0 .. 1 for each axis."""

    heights: Sequence[float]
    colour: str
    opacity: float = 1.0
    width: float = 1.0


def parallel_coordinates(
    axes: Sequence[tuple[str, str]], threads: Sequence[Thread], *, width: int = 800, height: int = 260
) -> str:
    """A vertical axis for each (name, range) of `axes`, side by side, joined by the threads."""
    across = _SIDE + (width - 2 * _SIDE) * _evenly(len(axes))
    top, bottom = _TOP, height - _BOTTOM
    parts = []
    for x, (name, values) in zip(across, axes, strict=True):
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}" stroke="{GREY}"/>')
        parts += [_text(x, bottom + 16, name, "middle"), _text(x, bottom + 30, values, "middle")]
    for thread in threads:
        places = zip(across, thread.heights, strict=True)
        corners = " ".join(f"{x:.1f},{bottom - level * (bottom - top):.1f}" for x, level in places)
        stroke = f'stroke="{thread.colour}" stroke-opacity="{thread.opacity:.2f}" stroke-width="{thread.width}"'
        parts.append(f'<polyline points="{corners}" fill="none" {stroke}/>')
    return _svg(width, height, "".join(parts))


@dataclass(frozen=True, kw_only=True)
class _Axis:
    """`low` .. `high` drawn from pixel `begin` to pixel `end`."""

    low: float
    high: float
    begin: float
    end: float

    @staticmethod
    def of(values: Sequence[float], begin: float, end: float) -> _Axis:
        low, high = (min(values), max(values)) if values else (0.0, 1.0)
        room = 0.04 * (high - low) or 0.5 * abs(low) or 0.5  # so that no point lies on the edge
        return _Axis(low=low - room, high=high + room, begin=begin, end=end)

    def place(self, value: float) -> float:
        share = value / (self.high - self.low) - self.low / (self.high - self.low)
        return self.begin + share * (self.end - self.begin)


def ticks(low: float, high: float) -> list[float]:
    """Round numbers in `low` .. `high`, four to eleven of them, evenly spaced by 1, 2 or 5 times a power of 10."""
    magnitude = 10.0 ** math.floor(math.log10((high - low) / 4))
    step = max((magnitude * factor for factor in (2, 5) if magnitude * factor <= (high - low) / 4), default=magnitude)
    return [number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _grid(x_axis: _Axis, y_axis: _Axis, x_title: str, y_title: str) -> Iterator[str]:
    """Both axes with ticks and titles."""
    left, right, top, bottom = x_axis.begin, x_axis.end, y_axis.end, y_axis.begin
    yield f'<path d="M{left} {top}V{bottom}H{right}" fill="none" stroke="{GREY}"/>'
    for tick in ticks(x_axis.low, x_axis.high):
        yield _text(x_axis.place(tick), bottom + 15, f"{tick:.6g}", "middle")
    for tick in ticks(y_axis.low, y_axis.high):
        y = y_axis.place(tick)
        yield f'<line x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="{GREY}" stroke-opacity="0.3"/>'
        yield _text(left - 6, y + 4, f"{tick:.4g}", "end")
    yield _text((left + right) / 2, bottom + 32, x_title, "middle")
    middle = (top + bottom) / 2
    yield _text(14, middle, y_title, "middle", turn=f' transform="rotate(-90 14 {middle})"')


def _text(x: float, y: float, words: str, anchor: str = "start", *, turn: str = "") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{turn}'
    return f'<text {place} font-size="12" fill="#57606a">{html.escape(words)}</text>'


def _legend(names: Sequence[str]) -> str:
    return f'<div style="font-size:12px">{" &nbsp; ".join(names)}</div>' if names else ""


def _svg(width: int, height: int, inside: str, *, fills: bool = False) -> str:
    """`fills`: stretch to the width of the page, so that places are shares of it."""
    frame = f'<rect width="{width}" height="{height}" fill="#f6f8fa"/>'
    stretched = ' preserveAspectRatio="none"' if fills else ""
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    return f'<svg {size}{stretched} role="img">{frame}{inside}</svg>'

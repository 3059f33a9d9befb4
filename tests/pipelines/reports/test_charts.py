"""Charts are whole whatever the values, and their axes have round numbers on them."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.reports import charts
from pipelines.reports.charts import Series, Thread, ticks

values = st.floats(-1e6, 1e6)


def test_charts_of_constants_and_of_one_value() -> None:
    for values in ([1.0], [2.0, 2.0], [0.0, 1.0], [1e38, 1e38], [1e38, np.nextafter(1e38, np.inf)], [-3e38, 3e38]):
        assert "nan" not in charts.lines({"a": values}) and "nan" not in charts.histogram(np.array(values))
    assert "nan" not in charts.lines({"a": [np.nan, np.nan], "b": [1.0, np.nan]}, shared=True)
    assert "&lt;b&gt;" in charts.lines({"<b>": [1.0, 2.0]})


@given(values, st.floats(1e-3, 1e6))
def test_ticks_are_round_evenly_spaced_and_on_the_axis(low: float, width: float) -> None:
    numbers = ticks(low, low + width)
    step = numbers[1] - numbers[0]
    rounding = 1e-6 * step
    assert 4 <= len(numbers) <= 11 and low - rounding <= numbers[0] and numbers[-1] <= low + width + rounding
    assert np.diff(numbers) == pytest.approx(step)
    assert f"{step:.0e}"[0] in "125" and step == pytest.approx(float(f"{step:.0e}"), rel=1e-6)


def drawn(chart: str) -> ElementTree.Element:
    return ElementTree.fromstring(chart[: chart.index("</svg>") + len("</svg>")])


@given(st.lists(st.tuples(values, values), max_size=5))
def test_every_point_of_a_plot_is_on_it_upright(points: list[tuple[float, float]]) -> None:
    unfinished = [(1.0, float("nan")), (float("inf"), 2.0)]
    chart = drawn(charts.plot([Series(points=[*unfinished, *points])], x_title="<x>", y_title="y"))
    circles = [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in chart.findall("circle")]
    assert len(circles) == len(points)
    assert all(64 <= x <= 788 and 10 <= y <= 240 for x, y in circles)
    for (one_x, one_y), (x, y) in zip(points, circles, strict=True):
        for (other_x, other_y), (right, up) in zip(points, circles, strict=True):
            assert (one_x <= other_x) <= (x <= right) and (one_y <= other_y) <= (up <= y)


def test_a_label_stands_at_its_own_point() -> None:
    points = [(0.0, float("nan")), (1.0, 2.0), (3.0, 4.0)]
    chart = charts.plot([Series(name="<a>", points=points, labels=["p0", "p1", "p2"])], x_title="x", y_title="y")
    assert "p0" not in chart and re.search(r">p1<.*>p2<", chart) and "&lt;a&gt;" in chart


def test_parallel_coordinates_join_heights() -> None:
    axes = [("lr", "0.1 .. 0.2"), ("loss", "1 .. 2")]
    chart = drawn(charts.parallel_coordinates(axes, [Thread(heights=[0.0, 1.0], colour="#000000")]))
    (line,) = chart.findall("polyline")
    (_, low), (_, high) = (map(float, corner.split(",")) for corner in line.attrib["points"].split())
    assert (low, high) == (220, 10) and [text.text for text in chart.findall("text")][::2] == ["lr", "loss"]

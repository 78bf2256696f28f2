"""Charts: where points lie, by hand."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from mask2former.report.svg import Line, compact, line_chart, matrix, thinned


def corners(svg: str) -> list[list[float]]:
    (points,) = re.findall(r'<polyline[^>]* points="([^"]*)"', svg)
    return [[float(value) for value in pair.split(",")] for pair in points.split()]


def test_a_line_runs_from_corner_to_corner() -> None:
    svg = line_chart([Line("a", [(0, 0), (5, 10), (10, 10)])], size=(400, 200))
    assert corners(svg) == [[44, 178], [216, 10], [388, 10]]
    assert line_chart([Line("a", [(0.5, 0.5)])], x_range=(0, 1), y_range=(0, 1), size=(400, 200)).count(
        '<circle class="dot c0" cx="216" cy="94"'
    )


def test_marks_and_names() -> None:
    svg = line_chart([Line("<b>", [(0, 0), (1, 1)])], x_range=(0, 1), y_range=(0, 1), marks=[(1, 0.5)], size=(400, 200))
    assert '<circle class="mark" cx="388" cy="94"' in svg
    assert "&lt;b&gt;" in svg
    assert "<b>" not in svg


@pytest.mark.parametrize(
    "points", [[], [(3, 0.0)], [(1, 2.0), (2, 2.0)], [(0, -5.0), (1, 1e6)], [(0, 1e-9), (1, 2e-9)]]
)
def test_unusual_values(points: list[tuple[float, float]]) -> None:
    svg = line_chart([Line("a", points)])
    ElementTree.fromstring(svg)
    assert not re.search("nan|inf", svg)


def test_long_curves_are_thinned_to_means() -> None:
    points = thinned([(i, float(i % 2)) for i in range(3000)])
    assert len(points) == 301
    assert points[0] == (4.5, 0.5)
    assert points[-1] == (2999, 1.0)


def test_matrix() -> None:
    svg = matrix([[3, 1], [0, 0]], ["cat", "<dog>"], ["cat", "dog"])
    ElementTree.fromstring(svg)
    assert re.findall(r"<title>(.*?)</title>", svg) == ["cat → cat: 3 of 4 (75%)", "cat → dog: 1 of 4 (25%)"]
    assert re.findall(r'class="(\w+)"[^>]*fill-opacity="([\d.]+)"', svg) == [("right", "0.68"), ("wrong", "0.28")]
    assert "&lt;dog&gt;" in svg


def test_counts_in_few_letters() -> None:
    assert [compact(n) for n in (7, 950, 1234, 34567, 5.6e6, 2e9)] == ["7", "950", "1.2k", "35k", "5.6M", "2.0G"]

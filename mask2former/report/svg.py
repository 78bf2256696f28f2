"""Charts as inline SVG. Colours are classes of the page's style sheet, which knows light and dark."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from mask2former.visualization import ticks

Point = tuple[float, float]
COLORS = 8  # classes c0 to c7
_MOST_POINTS = 300  # of a line; a chart is not wider


@dataclass(frozen=True)
class Line:
    """A named curve; points in the order of x."""

    name: str
    points: Sequence[Point]


def line_chart(
    lines: Sequence[Line],
    *,
    x_range: Point | None = None,
    y_range: Point | None = None,
    marks: Sequence[Point] = (),
    size: tuple[int, int] = (420, 240),
) -> str:
    """Curves over common axes, single points as dots, `marks` as circles. A chart without any point is empty.

    Args:
        x_range, y_range: what the axes cover; by default what occurs, y from 0 on.
        size: width and height in the SVG's own units.
    """
    points = [point for line in lines for point in line.points]
    width, height = size
    if not points:
        return f'<svg viewBox="0 0 {width} {height}" role="img"></svg>'
    x_low, x_high = x_range or (min(p[0] for p in points), max(p[0] for p in points))
    ys = [p[1] for p in points]
    y_ticks = ticks(*(y_range or (min(0.0, *ys), max(*ys, 0.0) or 1.0)), 5)
    x_ticks = [tick for tick in ticks(x_low, x_high, 5) if x_low <= tick <= x_high] or [x_low]
    left, right, top, bottom = 44.0, width - 12.0, 10.0, height - 22.0

    def place(point: Point) -> tuple[float, float]:
        x = left + (point[0] - x_low) / max(x_high - x_low, 1e-12) * (right - left)
        y = bottom - (point[1] - y_ticks[0]) / max(y_ticks[-1] - y_ticks[0], 1e-12) * (bottom - top)
        return round(x, 1), round(y, 1)

    parts = [f'<svg viewBox="0 0 {width} {height}" role="img">']
    for tick in y_ticks:
        y = place((x_low, tick))[1]
        parts.append(f'<path class="grid" d="M{left:g} {y:g}H{right:g}"/>')
        parts.append(f'<text x="{left - 5:g}" y="{y + 4:g}" text-anchor="end">{tick:.6g}</text>')
    for tick in x_ticks:
        parts.append(f'<text x="{place((tick, 0))[0]:g}" y="{height - 6}" text-anchor="middle">{tick:.6g}</text>')
    for number, line in enumerate(lines):
        parts.append(_line([place(point) for point in thinned(line.points)], f"c{number % COLORS}", line.name))
    for point in marks:
        x, y = place(point)
        parts.append(f'<circle class="mark" cx="{x:g}" cy="{y:g}" r="5"/>')
    return "".join([*parts, "</svg>"])


def thinned(points: Sequence[Point], most: int = _MOST_POINTS) -> list[Point]:
    """At most about `most` points: of more, the means of neighbours, and the last one."""
    step = math.ceil(len(points) / most)
    if step <= 1:
        return list(points)
    groups = [points[start : start + step] for start in range(0, len(points), step)]
    means = [(sum(p[0] for p in group) / len(group), sum(p[1] for p in group) / len(group)) for group in groups]
    return [*means, points[-1]]


def _line(places: Sequence[Point], color: str, name: str) -> str:
    title = f"<title>{escape(name)}</title>"
    if len(places) == 1:
        return f'<circle class="dot {color}" cx="{places[0][0]:g}" cy="{places[0][1]:g}" r="4">{title}</circle>'
    corners = " ".join(f"{x:g},{y:g}" for x, y in places)
    return f'<polyline class="line {color}" points="{corners}">{title}</polyline>'


def matrix(counts: Sequence[Sequence[int]], rows: Sequence[str], columns: Sequence[str]) -> str:
    """A table of counts as squares, stronger the larger their share of the row; the diagonal has a colour of its own.

    With up to 20 columns the counts stand in the squares; the name of a square tells them always.
    """
    cell = 40 if len(columns) <= 20 else 14
    left = 12 + 7 * min(max(map(len, rows), default=0), 24)
    top = 12 + 5 * min(max(map(len, columns), default=0), 24)
    width, height = left + cell * len(columns) + 60, top + cell * len(rows) + 4
    parts = [f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img">']
    for c, name in enumerate(columns):
        x = left + cell * c + cell / 2 + 4
        place = f'x="{x:g}" y="{top - 6}" transform="rotate(-45 {x:g} {top - 6})"'
        parts.append(f"<text {place}>{escape(_short(name))}</text>")
    for r, name in enumerate(rows):
        y = top + cell * r
        parts.append(f'<text x="{left - 6}" y="{y + cell / 2 + 4:g}" text-anchor="end">{escape(_short(name))}</text>')
        total = sum(counts[r])
        for c, count in enumerate(counts[r]):
            if count:
                share = count / total
                what = escape(f"{name} → {columns[c]}: {count} of {total} ({share:.0%})")
                parts.append(
                    f'<rect class="{"right" if r == c else "wrong"}" x="{left + cell * c}" y="{y}" width="{cell - 1}" '
                    f'height="{cell - 1}" fill-opacity="{0.08 + 0.8 * share:.2f}"><title>{what}</title></rect>'
                )
                if cell == 40:
                    place = f'x="{left + cell * c + 20:g}" y="{y + 24}"'
                    parts.append(f'<text {place} text-anchor="middle">{compact(count)}</text>')
    return "".join([*parts, "</svg>"])


def compact(count: float) -> str:
    """A count in at most four letters: 950, 1.2k, 34k, 5.6M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.1f}{unit}" if count < 10 * size else f"{count / size:.0f}{unit}"
    return f"{count:g}"


def _short(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:23]}…"

"""The parts of the page, each a function that returns HTML. Whatever comes from data is escaped."""

import base64
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from mask2former.evaluation.average_precision import RECALL_THRESHOLDS
from mask2former.evaluation.confusion import MISSED, NOTHING, VOID
from mask2former.evaluation.details import Details, describe_errors
from mask2former.evaluation.pictures import encode_jpeg
from mask2former.report.extremes import Extreme
from mask2former.report.svg import COLORS, Line, line_chart, matrix

Curves = Mapping[str, Sequence[tuple[int, float]]]
TASKS = {"panoptic_seg": "Panoptic segments", "segm": "Instances", "sem_seg": "Semantic segmentation"}
_MOST_LINES = 8  # in one chart
_OPEN_CLASSES = 12  # more curves than these are folded
_MOST_CONFUSIONS = 12


def headline(curves: Curves) -> str:
    """The metrics of the whole data set: last value, and the best with its iteration."""
    rows = []
    for name, points in _metrics(curves):
        best = max(points, key=lambda point: point[1])
        rows.append([name, f"{points[-1][1]:.1f}", f"{best[1]:.1f}", str(best[0])])
    return table(["metric", "last", "best", "at iteration"], rows) if rows else "<p>Nothing was scored.</p>"


def training_curves(curves: Curves) -> str:
    """Losses, learning rate, gradient norm and metrics over iterations."""
    parts = {name: list(points) for name, points in curves.items() if re.fullmatch(r"loss_\w*?[a-z]", name)}
    charts: list[tuple[str, Mapping[str, Sequence[tuple[float, float]]]]] = [
        ("total loss", {"total_loss": curves.get("total_loss", ())}),
        ("losses of the last layer", parts),
        ("learning rate", {"lr": curves.get("lr", ())}),
        ("norm of gradients", {"grad_norm": curves.get("grad_norm", ())}),
    ]
    groups: dict[str, dict[str, Sequence[tuple[int, float]]]] = {}
    for name, points in _metrics(curves):
        group, _, metric = name.rpartition("/")
        groups.setdefault(group, {})[metric] = points
    charts += list(groups.items())
    return (
        f'<div class="charts">{"".join(_chart(title, lines) for title, lines in charts if any(lines.values()))}</div>'
    )


def _metrics(curves: Curves) -> Iterable[tuple[str, Sequence[tuple[int, float]]]]:
    """Results of evaluations, those of single classes left out."""
    return [(name, points) for name, points in curves.items() if "/" in name and "-" not in name.rpartition("/")[2]]


def _chart(title: str, lines: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    shown = [Line(name, points) for name, points in lines.items() if points][:_MOST_LINES]
    names = "".join(f'<span class="c{n % COLORS}">{escape(line.name)}</span>' for n, line in enumerate(shown))
    return f"<figure><figcaption>{escape(title)}</figcaption>{line_chart(shown)}<p class=legend>{names}</p></figure>"


def class_table(details: Details) -> str:
    """A row for each class."""
    columns = [_column(values) for values in details.columns.values()]
    return table(["class", *details.columns], zip(details.classes, *columns, strict=True))


def precision_recall(details: Details) -> str:
    """A curve for each class that has objects, with the point of highest F1."""
    figures = []
    for index, name in enumerate(details.classes):
        precision = details.precision[index] if index < len(details.precision) else []
        if not precision:
            continue
        point = details.points[index]
        line = Line(name, list(zip(RECALL_THRESHOLDS.tolist(), precision, strict=True)))
        marks = [(point.recall, point.precision)] if point else []
        chart = line_chart([line], x_range=(0, 1), y_range=(0, 1), marks=marks, size=(240, 170))
        text = f"F1 {point.f1:.2f} at score {point.threshold:.3f}" if point else "nothing found"
        figures.append(f"<figure><figcaption>{escape(name)}<small>{text}</small></figcaption>{chart}</figure>")
    if not figures:
        return ""
    body = f'<div class="charts small">{"".join(figures)}</div>'
    if len(figures) > _OPEN_CLASSES:
        body = f"<details><summary>{len(figures)} classes</summary>{body}</details>"
    return (
        "<h4>Precision over recall</h4><p>At mask IoU 0.5. The ring marks the score of highest F1, which the final "
        f"checkpoint holds: predictions with a lower score are left out unless another threshold is given.</p>{body}"
    )


def confusion(details: Details) -> str:
    """The matrix of classes that occur, and the most frequent confusions in words."""
    counts = details.confusion
    number = len(details.classes)
    shown = [c for c in range(number) if sum(counts[c]) or any(row[c] for row in counts)]
    rows = [*shown, *(row for row in (VOID, NOTHING) if sum(counts[row]))]
    columns = [*shown, *([MISSED] if any(row[MISSED] for row in counts) else [])]
    if not rows:
        return ""
    row_names = [
        *(details.classes[c] for c in shown),
        *({VOID: "(void)", NOTHING: "(nothing)"}[r] for r in rows if r < 0),
    ]
    column_names = [*(details.classes[c] for c in shown), *(["(missed)"] if MISSED in columns else [])]
    chart = matrix([[counts[r][c] for c in columns] for r in rows], row_names, column_names)
    errors = [(r, c, counts[r][c]) for r in rows for c in columns if r not in (c, VOID) and counts[r][c]]
    errors.sort(key=lambda error: -error[2])
    words = describe_errors(errors[:_MOST_CONFUSIONS], details.classes, details.unit)
    items = "".join(f"<li>{escape(text)}</li>" for text in words)
    return (
        f"<h4>Confusion</h4><p>{details.unit.capitalize()}: rows are the truth, columns the prediction; "
        "<i>(nothing)</i> is where a prediction has no counterpart, <i>(void)</i> where the truth is ignored.</p>"
        f'<div class="wide">{chart}</div>' + (f"<p>Most frequent errors:</p><ul>{items}</ul>" if items else "")
    )


def extremes(title: str, details: Details, images: Sequence[Extreme]) -> str:
    """Images with their score and what is wrong in them."""
    figures = []
    for extreme in images:
        name = Path(extreme.file_name).name or str(extreme.image.image)
        why = ", ".join(describe_errors(extreme.image.errors, details.classes, details.unit)) or "nothing is wrong"
        picture = "" if extreme.picture is None else _picture(encode_jpeg(extreme.picture, quality=75), name)
        score = f"{details.score_name} {100 * (extreme.image.score or 0):.1f}"
        figures.append(
            f"<figure>{picture}<figcaption>{escape(name)}<small>{score}: {escape(why)}</small></figcaption></figure>"
        )
    return f"<h4>{title}</h4>{''.join(figures)}" if figures else ""


def pictures(files: Sequence[Path]) -> str:
    """Pictures that an evaluation has drawn."""
    figures = [
        f"<figure>{_picture(file.read_bytes(), file.stem)}<figcaption>{escape(file.stem)}</figcaption></figure>"
        for file in files
    ]
    return f"<h3>The same images at every evaluation</h3>{''.join(figures)}" if figures else ""


def settings(changed: Mapping[str, tuple[Any, Any]]) -> str:
    """What differs from the defaults."""
    rows = [[key, str(value), "" if default is None else str(default)] for key, (value, default) in changed.items()]
    return table(["key", "value", "default"], rows, kind="settings")


def table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "numbers") -> str:
    """A table that may be scrolled sideways."""
    top = "".join(f"<th>{escape(text)}</th>" for text in head)
    body = "".join(f"<tr>{''.join(f'<td>{escape(text)}</td>' for text in row)}</tr>" for row in rows)
    return f'<div class="wide"><table class={kind}><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _picture(jpeg: bytes, name: str) -> str:
    data = base64.b64encode(jpeg).decode("ascii")
    return f'<img loading="lazy" alt="{escape(name)}" src="data:image/jpeg;base64,{data}">'


def _column(values: Sequence[float | None]) -> list[str]:
    """Counts as whole numbers, shares of 1 with three digits, anything else with one; "-" for what does not exist."""
    there = [value for value in values if value is not None and math.isfinite(value)]
    if all(value == int(value) for value in there) and max(there, default=0) != 100:
        shape = "{:.0f}".format
    else:
        shape = ("{:.3f}" if max(map(abs, there), default=0) <= 1 else "{:.1f}").format
    return ["-" if value is None or not math.isfinite(value) else shape(value) for value in values]

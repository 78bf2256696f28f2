"""Pictures of predictions and of training, drawn with OpenCV and Pillow. Images are RGB uint8 (H, W, 3)."""

import colorsys
import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from mask2former.d2.data import Metadata
from mask2former.data.datasets.metadata import list_of_things

Color = tuple[int, int, int]
Panoptic = tuple[Any, Sequence[dict[str, Any]]]  # id map (H, W), 0 = void, and its segments

_OPACITY = 0.5
_LEGIBLE_SIDE = 640  # images whose longer side is shorter are drawn larger
_GOLDEN_RATIO = 0.61803398875
_WHITE, _BLACK, _GREY = (255, 255, 255), (25, 25, 25), (215, 215, 215)


@dataclass(frozen=True, kw_only=True)
class _Region:
    mask: np.ndarray  # bool (H, W)
    color: Color
    label: str


def draw_panoptic(
    image: np.ndarray,
    panoptic_seg: Any,
    segments_info: Sequence[dict[str, Any]],
    metadata: Metadata,
    scores: Sequence[float] | None = None,
    *,
    label_size: float = 0.02,
) -> np.ndarray:
    """Overlay a panoptic segmentation with class names; void stays as it is.

    Args:
        image: RGB uint8 (H, W, 3).
        panoptic_seg: ids (H, W), array or tensor.
        segments_info: dicts with `id`, `category_id` (contiguous), `isthing`, optionally `score`.
        metadata: holds `thing_classes` and `stuff_classes`, optionally their colours.
        scores: one per segment, in 0..1; by default the `score` of the segments that have one.
        label_size: height of the text as a part of the picture's longer side.

    Returns:
        The picture, at least 640 pixels long.
    """
    ids = _array(panoptic_seg)
    if scores is None:
        scores = [segment.get("score", math.nan) for segment in segments_info]
    seen: Counter[int] = Counter()
    regions = []
    for segment, score in zip(segments_info, scores, strict=True):
        category, is_thing = segment["category_id"], bool(segment.get("isthing", True))
        name, color = _class_style(metadata, category, is_thing)
        if is_thing:
            color = _vary(color, seen[category])
            seen[category] += 1
        regions.append(_Region(mask=ids == segment["id"], color=color, label=_label(name, score)))
    return _overlay(image, regions, label_size)


def draw_instances(
    image: np.ndarray,
    masks: Any,
    classes: Any,
    metadata: Metadata,
    scores: Any = None,
    *,
    label_size: float = 0.02,
) -> np.ndarray:
    """Overlay instance masks, largest first so that small ones stay visible.

    Args:
        image: RGB uint8 (H, W, 3).
        masks: bool (N, H, W), array or tensor.
        classes: contiguous classes (N,).
        metadata: holds `thing_classes`, optionally `thing_colors`.
        scores: (N,) in 0..1.
        label_size: as in `draw_panoptic`.
    """
    masks, classes = _array(masks).astype(bool), _array(classes)
    values = [math.nan] * len(masks) if scores is None else _array(scores).tolist()
    seen: Counter[int] = Counter()
    regions = []
    for index in np.argsort([-mask.sum() for mask in masks], kind="stable"):
        category = int(classes[index])
        name, color = _class_style(metadata, category, True)
        regions.append(
            _Region(mask=masks[index], color=_vary(color, seen[category]), label=_label(name, values[index]))
        )
        seen[category] += 1
    return _overlay(image, regions, label_size)


def draw_semantic(image: np.ndarray, labels: Any, metadata: Metadata, *, label_size: float = 0.02) -> np.ndarray:
    """Overlay a map of classes (H, W); what the metadata's `ignore_label` marks stays as it is."""
    labels = _array(labels)
    ignore_label = metadata.get("ignore_label", 255)
    regions = []
    for category in np.unique(labels).tolist():
        if category != ignore_label:
            name, color = _class_style(metadata, category, False)
            regions.append(_Region(mask=labels == category, color=color, label=name))
    return _overlay(image, regions, label_size)


def contact_sheet(
    rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str], *, cell: tuple[int, int] = (320, 240)
) -> np.ndarray:
    """Images in a grid under a line of column titles. `cell` = width and height that an image is fitted into.

    Raises:
        ValueError: no rows, or a row with more images than titles.
    """
    if not rows or any(len(row) > len(titles) for row in rows):
        raise ValueError(f"a sheet needs rows of at most {len(titles)} images, one per title")
    width, height = cell
    gap, head = 8, 30
    sheet = Image.new("RGB", (gap + len(titles) * (width + gap), head + len(rows) * (height + gap) + gap), _WHITE)
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        x = gap + column * (width + gap) + width // 2
        draw.text((x, head // 2 + 2), title, fill=_BLACK, font=_font(16), anchor="mm")
    for r, row in enumerate(rows):
        for c, image in enumerate(row):
            scale = min(width / image.shape[1], height / image.shape[0])
            size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
            resized = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
            x = gap + c * (width + gap) + (width - size[0]) // 2
            y = head + r * (height + gap) + (height - size[1]) // 2
            sheet.paste(Image.fromarray(resized), (x, y))
    return np.asarray(sheet)


def comparison_sheet(
    samples: Sequence[tuple[np.ndarray, Panoptic, Panoptic]],
    metadata: Metadata,
    *,
    columns: int = 2,
    cell: tuple[int, int] = (320, 240),
) -> np.ndarray:
    """Image, ground truth and prediction side by side, `columns` such triples in a row.

    Args:
        samples: (image RGB uint8 (H, W, 3), true, predicted); each panoptic is (ids (H, W), segments).
        metadata: as in `draw_panoptic`.
        columns: triples per row.
        cell: width and height of one picture.
    """
    columns = min(columns, max(1, len(samples)))
    triples = []
    for image, truth, predicted in samples:
        fitted = min(cell[0] / image.shape[1], cell[1] / image.shape[0]) * max(image.shape[:2])
        overlays = [draw_panoptic(image, *p, metadata, label_size=12 / fitted) for p in (truth, predicted)]
        triples.append([image, *overlays])
    rows = [
        [picture for triple in triples[start : start + columns] for picture in triple]
        for start in range(0, len(triples), columns)
    ]
    return contact_sheet(rows, ["image", "ground truth", "prediction"] * columns, cell=cell)


def metric_curves(path: str | os.PathLike[str]) -> dict[str, list[tuple[int, float]]]:
    """The values of each metric by iteration, in order, from a JSON-lines file as training writes it.

    Lines cut off by a crash and values that are not finite are passed over; of two for one iteration the last counts.
    """
    found: dict[str, dict[int, float]] = {}
    with open(path, encoding="utf-8") as file:
        for line in file:
            try:
                entry = json.loads(line)
                iteration = entry.pop("iteration")
            except (ValueError, KeyError, AttributeError, TypeError):
                continue
            for name, value in entry.items():
                if isinstance(value, int | float) and math.isfinite(value):
                    found.setdefault(name, {})[iteration] = value
    return {name: sorted(values.items()) for name, values in found.items()}


def loss_curve(metrics_json_path: str, *, key: str = "total_loss") -> np.ndarray:
    """Curve of a value over iterations, as logged and smoothed, from a JSON-lines file of metrics.

    Raises:
        ValueError: no line holds the key.
    """
    curve = metric_curves(metrics_json_path).get(key)
    if not curve:
        raise ValueError(f"{metrics_json_path}: no finite value of {key!r} to draw")
    steps, values = [step for step, _ in curve], [value for _, value in curve]
    curves = [(values, (176, 204, 236)), (_smooth(values), (31, 98, 176))]
    return _plot(steps, curves, x_label="iteration", y_label=key.replace("_", " "))


def _overlay(image: np.ndarray, regions: Sequence[_Region], label_size: float = 0.02) -> np.ndarray:
    """Paint regions over an image: colour, outline, label.

    Raises:
        ValueError: the image is not RGB uint8, or a mask has another size.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"expected an RGB uint8 image (H, W, 3), got {image.dtype}{image.shape}")
    for region in regions:
        if region.mask.shape != image.shape[:2]:
            raise ValueError(f"a mask of {region.mask.shape} does not fit an image of {image.shape[:2]}")
    factor = max(1, math.ceil(_LEGIBLE_SIDE / max(image.shape[:2])))
    size = (image.shape[1] * factor, image.shape[0] * factor)
    canvas = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC).astype(np.float32)
    masks = [cv2.resize(r.mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) for r in regions]
    for mask, region in zip(masks, regions, strict=True):
        inside = mask > 0
        canvas[inside] += _OPACITY * (np.array(region.color, np.float32) - canvas[inside])
    picture = canvas.clip(0, 255).astype(np.uint8)
    for mask, region in zip(masks, regions, strict=True):
        contours, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        outline = tuple(int(0.55 * 255 + 0.45 * channel) for channel in region.color)
        cv2.drawContours(picture, contours, -1, outline, 1, cv2.LINE_AA)
    font = _font(max(13, round(max(picture.shape[:2]) * label_size)))
    return _write_labels(picture, masks, [region.label for region in regions], font)


def _write_labels(picture: np.ndarray, masks: Sequence[np.ndarray], labels: Sequence[str], font: Any) -> np.ndarray:
    """Each label on the widest part of its region, larger regions first, none over another."""
    canvas = Image.fromarray(picture)
    draw = ImageDraw.Draw(canvas, "RGBA")
    taken: list[tuple[float, float, float, float]] = []
    for index in sorted(range(len(masks)), key=lambda i: -int(masks[i].sum())):
        if not masks[index].any():
            continue
        left, top, right, bottom = draw.textbbox((0, 0), labels[index], font=font)
        width, height = right - left + 8, bottom - top + 6
        box = _free_place(_widest_point(masks[index]), (width, height), canvas.size, taken)
        if box is None:
            continue
        taken.append(box)
        draw.rounded_rectangle(box, radius=3, fill=(0, 0, 0, 150))
        draw.text((box[0] + 4 - left, box[1] + 3 - top), labels[index], fill=_WHITE, font=font)
    return np.asarray(canvas)


def _free_place(
    centre: tuple[float, float],
    size: tuple[float, float],
    canvas: tuple[int, int],
    taken: Sequence[tuple[float, float, float, float]],
) -> tuple[float, float, float, float] | None:
    """A box (x0, y0, x1, y1) of `size` inside the canvas, near the centre, that touches no taken one."""
    for shift in (0, 1, -1, 2, -2):
        x0 = min(max(centre[0] - size[0] / 2, 0), max(canvas[0] - size[0], 0))
        y0 = min(max(centre[1] - size[1] / 2 + shift * (size[1] + 2), 0), max(canvas[1] - size[1], 0))
        box = (x0, y0, x0 + size[0], y0 + size[1])
        if not any(
            box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3] for other in taken
        ):
            return box
    return None


def _widest_point(mask: np.ndarray) -> tuple[float, float]:
    """The (x, y) inside a mask that lies farthest from its border; the picture's edge counts as border."""
    distance = cv2.distanceTransform(np.pad(mask, 1), cv2.DIST_L2, 3)
    y, x = np.unravel_index(int(distance.argmax()), distance.shape)
    return float(x - 1), float(y - 1)


def _class_style(metadata: Metadata, category: int, is_thing: bool) -> tuple[str, Color]:
    """Name and colour of a contiguous class. Data sets of one kind of class list only that kind."""
    first = list_of_things(metadata) if is_thing else "stuff"
    second = "stuff" if first == "thing" else "thing"
    names = metadata.get(f"{first}_classes") or metadata.get(f"{second}_classes") or []
    colors = metadata.get(f"{first}_colors") or metadata.get(f"{second}_colors") or []
    name = names[category] if category < len(names) else str(category)
    color = tuple(colors[category]) if category < len(colors) else _palette(category)
    return name, (int(color[0]), int(color[1]), int(color[2]))


def _palette(index: int) -> Color:
    return _from_hsv((index * _GOLDEN_RATIO) % 1.0, 0.75, (0.95, 0.75, 0.6)[index % 3])


def _vary(color: Color, count: int) -> Color:
    """The colour of the `count`-th instance of a class: near the class colour, apart from its neighbours."""
    if count == 0:
        return color
    hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in color))
    turn = (0.5 + count * _GOLDEN_RATIO) % 1.0 - 0.5
    wave = (0.5 + 2 * count * _GOLDEN_RATIO) % 1.0 - 0.5
    saturation = min(max(saturation + 0.4 * wave, 0.35), 1.0)
    return _from_hsv((hue + 0.3 * turn) % 1.0, saturation, min(max(value + 0.5 * turn, 0.55), 1.0))


def _from_hsv(hue: float, saturation: float, value: float) -> Color:
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def _label(name: str, score: float) -> str:
    return name if math.isnan(score) else f"{name} {100 * score:.0f}%"


def _array(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


@lru_cache(maxsize=32)
def _font(size: int) -> Any:
    return ImageFont.load_default(size)


def _smooth(values: Sequence[float]) -> list[float]:
    """Running mean over about a twentieth of the curve, shorter at its ends."""
    half = max(1, len(values) // 40)
    total = np.concatenate(([0.0], np.cumsum(values)))
    low = np.maximum(np.arange(len(values)) - half, 0)
    high = np.minimum(np.arange(len(values)) + half + 1, len(values))
    return ((total[high] - total[low]) / (high - low)).tolist()


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers that cover low..high, for an axis."""
    span = max(high - low, 1e-12)
    magnitude = 10 ** math.floor(math.log10(span / count))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if span / (m * magnitude) <= count)
    return [i * step for i in range(math.floor(low / step), math.ceil(high / step) + 1)]


def _plot(
    xs: Sequence[float],
    curves: Sequence[tuple[Sequence[float], Color]],
    *,
    x_label: str,
    y_label: str,
    size: tuple[int, int] = (800, 480),
) -> np.ndarray:
    """Curves over common xs, with a grid, ticks and labels; drawn twice as large and reduced for smooth
    lines.
    """
    width, height = 2 * size[0], 2 * size[1]
    left, right, top, bottom = 170, width - 50, 70, height - 130
    everything = [value for values, _ in curves for value in values]
    x_ticks = [tick for tick in ticks(xs[0], xs[-1], 8) if xs[0] <= tick <= xs[-1]] or [xs[0]]
    y_ticks = ticks(min(0.0, *everything), max(everything), 8)
    x_span = max(xs[-1] - xs[0], 1e-12)

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            left + (x - xs[0]) / x_span * (right - left),
            bottom - (y - y_ticks[0]) / max(y_ticks[-1] - y_ticks[0], 1e-12) * (bottom - top),
        )

    canvas = Image.new("RGB", (width, height), _WHITE)
    draw = ImageDraw.Draw(canvas)
    font = _font(28)
    for tick in y_ticks:
        y = place(xs[0], tick)[1]
        draw.line((left, y, right, y), fill=_GREY, width=2)
        draw.text((left - 16, y), f"{tick:g}", fill=_BLACK, font=font, anchor="rm")
    for tick in x_ticks:
        x = place(tick, 0)[0]
        draw.line((x, bottom, x, bottom + 12), fill=_BLACK, width=3)
        draw.text((x, bottom + 20), f"{tick:g}", fill=_BLACK, font=font, anchor="mt")
    draw.line((left, bottom, right, bottom), fill=_BLACK, width=3)
    for values, color in curves:
        line = [place(x, y) for x, y in zip(xs, values, strict=True)]
        if len(line) > 1:
            draw.line(line, fill=color, width=5, joint="curve")
        else:
            draw.ellipse((line[0][0] - 6, line[0][1] - 6, line[0][0] + 6, line[0][1] + 6), fill=color)
    draw.text(((left + right) / 2, height - 40), x_label, fill=_BLACK, font=_font(32), anchor="mm")
    draw.text((left, top - 24), y_label, fill=_BLACK, font=_font(32), anchor="ls")
    return np.asarray(canvas.reduce(2))

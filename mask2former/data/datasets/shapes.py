"""A synthetic panoptic data set: shapes that occlude each other over textured grounds, in COCO's layout.

What a class is, is told by form (things) or texture (stuff): sizes, rotations and places are random, and so are
colours, but that each kind of thing prefers a hue, which tells it apart nineteen times out of twenty and makes a few
minutes of training enough. Every image is a pure function of (split, index, size).

Rules of the ground truth:
- things are painted back to front; a pixel belongs to the front-most thing that covers more than half of it;
- a thing of which fewer than `MIN_THING_AREA` pixels or `MIN_VISIBLE` of its own area stay visible is left
  out of the picture altogether, so nothing is painted that is not annotated;
- a ground of which fewer than `MIN_STUFF_AREA` pixels stay visible is void (id 0).
"""

import colorsys
import io
import json
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from mask2former.data.datasets.coco import register_coco_panoptic
from mask2former.data.images import id_to_rgb
from mask2former.data.rle import encode_mask, to_json
from mask2former.files import write_bytes

VERSION = 1
"""Goes up with every change of the pictures, so that a set drawn by an older version is noticed."""

SPLITS = ("train", "val")
MIN_THING_AREA = 40
MIN_VISIBLE = 0.3
MIN_STUFF_AREA = 64

CATEGORIES: list[dict[str, Any]] = [
    {"id": 1, "name": "circle", "isthing": 1, "color": [220, 60, 60]},
    {"id": 2, "name": "square", "isthing": 1, "color": [60, 120, 230]},
    {"id": 3, "name": "triangle", "isthing": 1, "color": [50, 180, 80]},
    {"id": 4, "name": "star", "isthing": 1, "color": [240, 190, 40]},
    {"id": 5, "name": "stripes", "isthing": 0, "color": [120, 150, 170]},
    {"id": 6, "name": "checker", "isthing": 0, "color": [150, 130, 110]},
    {"id": 7, "name": "dots", "isthing": 0, "color": [110, 150, 120]},
    {"id": 8, "name": "clouds", "isthing": 0, "color": [190, 180, 200]},
]
THING_IDS = {c["name"]: c["id"] for c in CATEGORIES if c["isthing"]}
HUES = {"circle": 0.0, "square": 0.25, "triangle": 0.5, "star": 0.75}
"""Preferred hue of each kind of thing, in turns of the colour circle."""
HUE_SPREAD = 0.06

STUFF_IDS = {c["name"]: c["id"] for c in CATEGORIES if not c["isthing"]}


@dataclass(frozen=True)
class Scene:
    """One drawn image.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        ids: (H, W) int32 segment ids, 0 where void; ids are those of the RGB code of COCO's panoptic PNGs.
        segments: COCO's `segments_info` with the ids of `CATEGORIES`.
    """

    image: np.ndarray
    ids: np.ndarray
    segments: list[dict[str, Any]]


def draw_scene(split: str, index: int, size: tuple[int, int] = (96, 128)) -> Scene:
    """Draws image `index` of `split`; height and width vary by an eighth around `size`.

    The random stream is keyed by (split, index): no two images share one, in whichever split they are.
    """
    rng = np.random.default_rng(np.random.SeedSequence(VERSION, spawn_key=(SPLITS.index(split), index)))
    height, width = (int(rng.integers(side - side // 8, side + side // 8 + 1)) for side in size)
    canvas, regions, kinds = _draw_grounds(rng, height, width)

    things = [_place_thing(rng, height, width) for _ in range(rng.integers(1, 6))]
    owner = _visible_things(things)
    kept = [
        number
        for number, thing in enumerate(things)
        if (owner == number).sum() >= max(MIN_THING_AREA, MIN_VISIBLE * thing.mask.sum())
    ]
    things = [things[number] for number in kept]
    owner = _visible_things(things)
    for thing in things:
        thing.paint(canvas)

    canvas += rng.normal(0, rng.uniform(3, 10), canvas.shape)
    image = np.clip(np.round(canvas), 0, 255).astype(np.uint8)

    ids = np.zeros((height, width), dtype=np.int32)
    segments = []
    for region, kind in enumerate(kinds):
        mask = (regions == region) & (owner < 0)
        if mask.sum() >= MIN_STUFF_AREA:
            segments.append(_add_segment(ids, mask, STUFF_IDS[kind], rng))
    for number, thing in enumerate(things):
        segments.append(_add_segment(ids, owner == number, THING_IDS[thing.kind], rng))
    return Scene(image, ids, segments)


def _add_segment(ids: np.ndarray, mask: np.ndarray, category_id: int, rng: np.random.Generator) -> dict[str, Any]:
    """Writes one segment into `ids` under a fresh random id; returns its COCO record (bbox is x, y, w, h)."""
    taken = set(np.unique(ids).tolist())
    segment_id = 0
    while segment_id in taken:
        segment_id = int(rng.integers(1, 256**3))
    ids[mask] = segment_id
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
    return {
        "id": segment_id,
        "category_id": category_id,
        "area": int(mask.sum()),
        "bbox": [int(value) for value in box],
        "iscrowd": 0,
    }


# --- things ---------------------------------------------------------------------------


@dataclass
class _Thing:
    """A shape in place: its distance field in pixels (negative inside) and its painted surface."""

    kind: str
    distance: np.ndarray
    surface: np.ndarray

    @property
    def mask(self) -> np.ndarray:
        return self.distance < 0

    def paint(self, canvas: np.ndarray) -> None:
        """Blends the surface over `canvas` with a one-pixel soft edge, as a camera would see it."""
        alpha = np.clip(0.5 - self.distance, 0, 1)[..., None]
        canvas *= 1 - alpha
        canvas += alpha * self.surface


def _place_thing(rng: np.random.Generator, height: int, width: int) -> _Thing:
    kind = str(rng.choice(list(THING_IDS)))
    radius = rng.uniform(0.12, 0.28) * min(height, width)
    y, x = _grid(height, width)
    x = x - rng.uniform(0.06, 0.94) * width
    y = y - rng.uniform(0.06, 0.94) * height
    u, v = _rotate(x / radius, y / radius, rng.uniform(0, 2 * np.pi))
    light = 1 + rng.uniform(0.1, 0.35) * _rotate(x / radius, y / radius, rng.uniform(0, 2 * np.pi))[0]
    surface = np.clip(light[..., None] * _thing_colour(kind, rng), 0, 255)
    return _Thing(kind, radius * shape_distance(kind, u, v), surface)


def _visible_things(things: list[_Thing]) -> np.ndarray:
    """(H, W) index of the front-most thing at each pixel, -1 where there is none."""
    owner = np.full(things[0].distance.shape, -1)
    for number, thing in enumerate(things):
        owner[thing.mask] = number
    return owner


def shape_distance(kind: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Approximate signed distance (negative inside) to the outline of a shape of about unit radius at 0."""
    r, angle = np.hypot(u, v), np.arctan2(v, u)
    if kind == "circle":
        return r - 0.95
    if kind == "square":
        return np.maximum(np.abs(u), np.abs(v)) - 0.82
    if kind == "triangle":
        return _folded_edge(r, angle, tips=3, tip=1.2, notch=0.6)
    if kind == "star":
        return _folded_edge(r, angle, tips=5, tip=1.15, notch=0.5)
    raise ValueError(f"no shape is called {kind!r}; there are {sorted(THING_IDS)}")


def _folded_edge(r: np.ndarray, angle: np.ndarray, *, tips: int, tip: float, notch: float) -> np.ndarray:
    """Distance to a star polygon: by symmetry all points fold into one wedge, which holds a single edge."""
    half = np.pi / tips
    folded = np.abs((angle + half) % (2 * half) - half)
    edge = np.array([notch * np.cos(half) - tip, notch * np.sin(half)])
    normal = np.array([edge[1], -edge[0]]) / np.hypot(*edge)
    return (r * np.cos(folded) - tip) * normal[0] + r * np.sin(folded) * normal[1]


# --- stuff ----------------------------------------------------------------------------


def _draw_grounds(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Fills the image with one to three grounds.

    Returns:
        The float64 canvas (H, W, 3) in 0..255, the map (H, W) of region indices, the texture of each region.
    """
    count = int(rng.choice([1, 2, 3], p=[0.25, 0.5, 0.25]))
    kinds = [str(kind) for kind in rng.permutation(list(STUFF_IDS))[:count]]
    y, x = _grid(height, width)
    along, across = _rotate(x - width / 2, y - height / 2, rng.uniform(0, 2 * np.pi))
    bend = rng.choice([0.0, rng.uniform(3, 8)])
    across = across + bend * np.sin(2 * np.pi * along / rng.uniform(40, 90) + rng.uniform(0, 6))
    reach = np.quantile(across, np.sort(rng.uniform(0.25, 0.75, count - 1))) if count > 1 else []
    if count == 3 and reach[1] - reach[0] < 16:
        reach = reach + np.array([-8, 8])
    regions = np.digitize(across, reach)

    canvas = np.empty((height, width, 3))
    for region, kind in enumerate(kinds):
        weight = _texture(kind, rng, height, width)[..., None]
        dark, bright = _colour(rng, value=(50, 120)), _colour(rng, value=(130, 220))
        canvas = np.where((regions == region)[..., None], dark + weight * (bright - dark), canvas)
    return canvas, regions, kinds


def _texture(kind: str, rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """(H, W) pattern in 0..1."""
    if kind == "clouds":
        coarse = rng.uniform(0, 1, (4, 5)).astype(np.float32)
        return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 1)
    y, x = _grid(height, width)
    u, v = _rotate(x, y, rng.uniform(0, np.pi))
    period = rng.uniform(9, 15)
    u, v = 2 * np.pi * u / period + rng.uniform(0, 6), 2 * np.pi * v / period + rng.uniform(0, 6)
    if kind == "stripes":
        return _soften(np.sin(u))
    if kind == "checker":
        return _soften(3 * np.sin(u / 2) * np.sin(v / 2))
    return _soften(np.cos(u) + np.cos(v) - 0.9)  # dots


def _soften(wave: np.ndarray) -> np.ndarray:
    return np.clip(0.5 + 1.5 * wave, 0, 1)


def _grid(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and column coordinates of pixel centres, broadcastable to (H, W)."""
    return np.arange(height)[:, None] + 0.5, np.arange(width)[None, :] + 0.5


def _rotate(x: np.ndarray, y: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    return np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x


def _colour(rng: np.random.Generator, *, value: tuple[float, float]) -> np.ndarray:
    """A random RGB colour whose brightest channel lies in `value` (of 0..255)."""
    channels = rng.uniform(0.15, 1, 3)
    return channels / channels.max() * rng.uniform(*value)


def _thing_colour(kind: str, rng: np.random.Generator) -> np.ndarray:
    """An RGB colour (0..255) around the kind's preferred hue."""
    hue = (HUES[kind] + rng.normal(0, HUE_SPREAD)) % 1
    return 255 * np.array(colorsys.hsv_to_rgb(hue, rng.uniform(0.4, 0.9), rng.uniform(0.55, 0.95)))


# --- files ----------------------------------------------------------------------------


def write_split(
    root: str | os.PathLike[str],
    split: str,
    count: int,
    *,
    size: tuple[int, int] = (96, 128),
    workers: int = 1,
) -> Iterator[int]:
    """Writes `count` images of `split` under `root` in COCO's layout, and yields the number done after each.

    Files appear whole or not at all, the two JSON files last: a split that has them is complete. The same
    arguments give the same bytes, with however many workers.
    """
    root = Path(root)
    draw = partial(_write_image, root, split, size)
    records = []
    with ProcessPoolExecutor(workers) as pool:
        for record in pool.map(draw, range(count), chunksize=8):
            records.append(record)
            yield len(records)
    images = [image for image, _, _ in records]
    instances = [instance for _, _, found in records for instance in found]
    for number, instance in enumerate(instances):
        instance["id"] = number + 1
    header = {"info": split_info(size), "licenses": [], "images": images}
    things = [category for category in CATEGORIES if category["isthing"]]
    annotations = {
        "instances": {**header, "annotations": instances, "categories": things},
        "panoptic": {
            **header,
            "annotations": [panoptic for _, panoptic, _ in records],
            "categories": CATEGORIES,
        },
    }
    for kind, content in annotations.items():
        write_bytes(root / "annotations" / f"{kind}_{split}2017.json", json.dumps(content).encode())


def split_info(size: tuple[int, int]) -> dict[str, Any]:
    """What the JSON files of a split say about how it was drawn."""
    return {"description": "mask2former shapes", "version": VERSION, "size": list(size)}


def _write_image(
    root: Path, split: str, size: tuple[int, int], index: int
) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    """Writes one image and its PNG; returns its records: image, panoptic annotation, instance annotations."""
    scene = draw_scene(split, index, size)
    image_id = 1_000_000 * SPLITS.index(split) + index + 1
    name = f"{image_id:012d}"
    jpeg, png = io.BytesIO(), io.BytesIO()
    Image.fromarray(scene.image).save(jpeg, "JPEG", quality=92)
    Image.fromarray(id_to_rgb(scene.ids)).save(png, "PNG")
    write_bytes(root / f"{split}2017" / f"{name}.jpg", jpeg.getvalue())
    write_bytes(root / f"panoptic_{split}2017" / f"{name}.png", png.getvalue())

    height, width = scene.ids.shape
    image = {"id": image_id, "file_name": f"{name}.jpg", "height": height, "width": width}
    panoptic = {"image_id": image_id, "file_name": f"{name}.png", "segments_info": scene.segments}
    instances = []
    for segment in scene.segments:
        if segment["category_id"] in THING_IDS.values():
            segmentation = to_json(encode_mask(scene.ids == segment["id"]))
            instances.append({**segment, "image_id": image_id, "segmentation": segmentation})
    return image, panoptic, instances


def register_shapes(root: str | os.PathLike[str]) -> None:
    """Registers `shapes_train` and `shapes_val`; `datasets/make_shapes.py` writes them to `root`/shapes."""
    folder = Path(root) / "shapes"
    for split in SPLITS:
        register_coco_panoptic(
            f"shapes_{split}",
            image_root=folder / f"{split}2017",
            panoptic_root=folder / f"panoptic_{split}2017",
            panoptic_json=folder / "annotations" / f"panoptic_{split}2017.json",
            instances_json=folder / "annotations" / f"instances_{split}2017.json",
            categories=CATEGORIES,
            missing_hint="run `python datasets/make_shapes.py` to make it",
        )

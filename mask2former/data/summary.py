"""What is in a data set: images, objects, classes and their sizes, of any list of dataset dicts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pycocotools import mask as mask_api
from tabulate import tabulate
from tqdm import tqdm

from mask2former.data.images import DataError, read_size
from mask2former.data.labels import read_labels, read_segments
from mask2former.data.targets import SegmentTargets, panoptic_targets, semantic_targets

PANOPTIC, INSTANCE, SEMANTIC = "pan_seg_file_name", "annotations", "sem_seg_file_name"
"""Keys of dataset dicts that say how an image is annotated; the first that a dict has is what it is counted by."""
CLASS_LISTS = {PANOPTIC: "stuff_classes", INSTANCE: "thing_classes", SEMANTIC: "stuff_classes"}
"""The metadata that lists the classes of each kind (panoptic sets list all classes under stuff_classes)."""
ENTRIES = {PANOPTIC: "segments_info", INSTANCE: "annotations"}
"""Where dataset dicts list the objects of each kind; label maps list none."""
SAMPLE = 2000
"""Images whose masks or label maps `summarise` reads unless told otherwise."""

Size = tuple[int, int]
Quantiles = tuple[float, float, float]
Record = Mapping[str, Any]


@dataclass
class Counts:
    """Objects of one or more images, crowds apart; a label map has one of each class that it shows.

    Attributes:
        images: number of images that hold a class, by class.
        objects: number of its segments or annotations.
        areas: pixels of each of those that were measured.
        sides: square root of these by the longest side of the image, and 1 by the number of objects in it.
        most: the largest number of objects in an image, and its file.
    """

    images: Counter[int] = field(default_factory=Counter)
    objects: Counter[int] = field(default_factory=Counter)
    areas: dict[int, list[int]] = field(default_factory=dict)
    sides: dict[int, list[tuple[float, float]]] = field(default_factory=dict)
    most: tuple[int, str] = (0, "")

    def add(self, other: Counts) -> None:
        """Takes up what was counted elsewhere."""
        self.images.update(other.images)
        self.objects.update(other.objects)
        for category, areas in other.areas.items():
            self.areas.setdefault(category, []).extend(areas)
            self.sides.setdefault(category, []).extend(other.sides[category])
        self.most = max(self.most, other.most)

    def count(self, classes: Sequence[int], file: str) -> None:
        """Takes up the objects of one image: the class of each."""
        self.most = max(self.most, (len(classes), file))
        self.images.update(set(classes))
        self.objects.update(classes)

    def measure(self, classes: Sequence[int], areas: Sequence[int], size: tuple[int, ...]) -> None:
        """Takes up the pixels of each object of an image of (height, width) `size`."""
        for category, area in zip(classes, areas, strict=True):
            self.areas.setdefault(category, []).append(area)
            self.sides.setdefault(category, []).append((math.sqrt(area) / max(size), 1 / len(areas)))

    def pixels(self, category: int) -> int:
        """All pixels of a class."""
        return sum(self.areas.get(category, ()))


@dataclass(frozen=True)
class DataSummary:
    """What a list of dataset dicts holds. Crowds count as no objects; sizes are (height, width) in pixels.

    Attributes:
        kind: key of the dicts that objects are counted by, see `CLASS_LISTS`; "" for images without annotations.
        classes: names, in the order of the model's output.
        things: whether each class is one of countable objects.
        images: number of images.
        empty: number of those without objects.
        counts: objects by class; of label maps, and pixels of all kinds, those of the images that were read.
        read: number of images whose masks were read.
        pixels: number of all pixels of these.
        smallest, median, largest: sizes of the images of the least, the median and the largest number of pixels.
        sides: the shortest and the longest side of any image.
        areas: pixels that 10 %, 50 % and 90 % of the objects do not exceed, of things if there are any; zeros without.
        relative: the same of their sides: the square root of the pixels, by the longest side of the image; every image
            with objects counts as much as any other.
    """

    kind: str
    classes: tuple[str, ...]
    things: tuple[bool, ...]
    images: int
    empty: int
    counts: Counts
    read: int
    pixels: int
    smallest: Size
    median: Size
    largest: Size
    sides: tuple[int, int]
    areas: Quantiles
    relative: Quantiles

    @property
    def objects(self) -> int:
        """Number of objects."""
        return self.counts.objects.total()

    @property
    def most(self) -> tuple[int, str]:
        """The largest number of objects in one image, and its file."""
        return self.counts.most

    def table(self) -> str:
        """A line for each class that occurs, the most frequent first."""
        return class_table(self.counts, self.classes, self.pixels)


def class_table(counts: Counts, names: Sequence[str], pixels: int) -> str:
    """A line for each class that occurs, the most frequent first; `pixels` are all that classes were counted among."""
    rows = [
        [number, names[number] if 0 <= number < len(names) else "?", counts.images[number], objects,
         100 * counts.pixels(number) / max(pixels, 1)]
        for number, objects in counts.objects.most_common()
    ]  # fmt: skip
    return tabulate(rows, headers=["class", "name", "images", "objects", "% of pixels"], floatfmt=".2f")


def summarise(
    records: Sequence[Record],
    metadata: Mapping[str, Any],
    *,
    sample: int | None = SAMPLE,
    progress: bool = True,
) -> DataSummary:
    """Counts what dataset dicts hold.

    Objects are counted in all of them, masks and label maps read of `sample` of them, spread over the list.

    Args:
        metadata: of the data set, as a dict.
        sample: None for all.
        progress: show a bar on standard error.

    Raises:
        DataError: there are no images, or a file contradicts its annotation.
        FileNotFoundError: an image without `height` and `width`, or a label map, is not there.
    """
    if not records:
        raise DataError("the data set holds no images")
    kind = kind_of(records)
    names = tuple(metadata.get(CLASS_LISTS.get(kind, "stuff_classes")) or ())
    counts, empty = Counts(), 0
    chosen = set(spread(range(len(records)), sample))
    sizes = []
    total = 0
    for number, record in enumerate(tqdm(records, unit="image", desc="data", disable=not progress, leave=False)):
        size = image_size(record)
        sizes.append(size)
        classes = [entry["category_id"] for entry in entries(record, kind)]
        if number in chosen:
            total += size[0] * size[1]
            found, areas = read_objects(record, kind, size, metadata)
            classes = classes if kind in ENTRIES else found
            counts.measure(found, areas, size)
        counts.count(classes, record["file_name"])
        empty += not classes and (kind in ENTRIES or number in chosen)
    sizes.sort(key=lambda size: (size[0] * size[1], size))
    things = set((metadata.get("thing_dataset_id_to_contiguous_id") or {}).values()) if kind == PANOPTIC else set()
    if kind == INSTANCE:
        things = set(range(len(names)))
    return DataSummary(
        kind=kind,
        classes=names,
        things=tuple(number in things for number in range(len(names))),
        images=len(records),
        empty=empty,
        counts=counts,
        read=len(chosen),
        pixels=total,
        smallest=sizes[0],
        median=sizes[len(sizes) // 2],
        largest=sizes[-1],
        sides=(min(map(min, sizes)), max(map(max, sizes))),
        areas=_quantiles({number: [(area, 1) for area in areas] for number, areas in counts.areas.items()}, things),
        relative=_quantiles(counts.sides, things),
    )


def kind_of(records: Sequence[Record]) -> str:
    """The key that the images are annotated under, see `CLASS_LISTS`; "" where none is in every dict."""
    return next((kind for kind in CLASS_LISTS if all(kind in record for record in records)), "")


def entries(record: Record, kind: str) -> list[Record]:
    """The segments or annotations of an image, crowds apart; label maps list none."""
    return [entry for entry in record.get(ENTRIES.get(kind, ""), ()) if not entry.get("iscrowd", 0)]


def fullest_image(records: Sequence[Record], kind: str) -> tuple[int, str]:
    """The largest number of objects in one image, and that image's file."""
    return max((len(entries(record, kind)), record["file_name"]) for record in records)


def image_size(record: Record) -> Size:
    """(height, width) as the dict says, or else as the file does, upright."""
    if "height" in record and "width" in record:
        return record["height"], record["width"]
    return read_size(record["file_name"])


def read_objects(record: Record, kind: str, size: Size, metadata: Mapping[str, Any]) -> tuple[list[int], list[int]]:
    """Class and pixels of each object of an image of (height, width) `size`, from its masks or label map."""
    if kind == INSTANCE:
        annotations = entries(record, kind)
        areas = [mask_area(annotation["segmentation"], size) for annotation in annotations]
        return [annotation["category_id"] for annotation in annotations], areas
    if kind == PANOPTIC:
        path = record["pan_seg_file_name"]
        targets = panoptic_targets(read_segments(record), record["segments_info"], path)
        return targets.classes.tolist(), segment_areas(targets)
    if kind == SEMANTIC:
        path = record["sem_seg_file_name"]
        ignore, number = metadata.get("ignore_label", 255), len(metadata.get("stuff_classes") or ()) or None
        return present(semantic_targets(read_labels(record), path, ignore_label=ignore, num_classes=number))
    return [], []


def segment_areas(targets: SegmentTargets) -> list[int]:
    """Pixels of each segment."""
    return np.bincount(targets.index.ravel() + 1, minlength=len(targets.classes) + 1)[1:].tolist()


def present(targets: SegmentTargets) -> tuple[list[int], list[int]]:
    """Class and pixels of each segment that has a pixel."""
    areas = segment_areas(targets)
    seen = [number for number, area in enumerate(areas) if area]
    return targets.classes[seen].tolist(), [areas[number] for number in seen]


def mask_area(segmentation: Any, size: tuple[int, ...]) -> int:
    """Pixels of COCO's polygons or run lengths in an image of (height, width) `size`."""
    if not isinstance(segmentation, Mapping):
        if not segmentation:
            return 0
        segmentation = mask_api.merge(mask_api.frPyObjects(segmentation, *size))
    return int(mask_api.area(segmentation))


def spread(items: Sequence[Any], count: int | None) -> list[Any]:
    """At most `count` of the items, evenly spread; None for all."""
    if count is None or count >= len(items):
        return list(items)
    return [items[index] for index in np.linspace(0, len(items) - 1, count).round().astype(int)]


def _quantiles(values: Mapping[int, Sequence[tuple[float, float]]], things: Collection[int]) -> Quantiles:
    """What 10, 50 and 90 % of weighted values above 0 do not exceed: of things, or of all where these have none."""
    of_things = [pair for category in things for pair in values.get(category, ()) if pair[0]]
    found = sorted(of_things or [pair for pairs in values.values() for pair in pairs if pair[0]] or [(0.0, 1.0)])
    ends = np.cumsum([weight for _, weight in found])
    low, middle, high = (found[int(np.searchsorted(ends, share * ends[-1]))][0] for share in (0.1, 0.5, 0.9))
    return low, middle, high

"""COCO's records of the segments in a map of ids."""

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from mask2former.data.rle import encode_mask, to_json


@dataclass(frozen=True)
class Segment:
    """All pixels of one id.

    Attributes:
        id: as in the map.
        mask: (H, W) bool.
        area: pixels.
        bbox: x, y, width, height.
    """

    id: int
    mask: np.ndarray
    area: int
    bbox: list[int]


def segments_of(ids: np.ndarray) -> Iterator[Segment]:
    """The segments of a map (H, W) of ids, by id."""
    values, index = np.unique(ids, return_inverse=True)
    index = index.reshape(ids.shape)
    areas = np.bincount(index.ravel())
    for number, (rows, columns) in enumerate(ndimage.find_objects(index + 1)):
        bbox = [columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start]
        yield Segment(int(values[number]), index == number, int(areas[number]), bbox)


def instance_annotations(
    ids: np.ndarray, categories: Mapping[int, int], image_id: str, *, crowds: Container[int] = ()
) -> list[dict[str, Any]]:
    """COCO instance annotations, without `id`, of a map (H, W) of instance ids.

    Args:
        categories: id in the map → category id; ids that are not in it are no instances.
        crowds: ids in the map that stand for several objects not told apart.
    """
    return [
        {
            "image_id": image_id,
            "category_id": categories[segment.id],
            "area": segment.area,
            "bbox": segment.bbox,
            "iscrowd": int(segment.id in crowds),
            "segmentation": to_json(encode_mask(segment.mask)),
        }
        for segment in segments_of(ids)
        if segment.id in categories
    ]

"""Images and targets without files: noise, and a grid of rectangles."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mask2former.d2.structures import Instances
from mask2former.d2.transforms import NoOpTransform
from mask2former.data.targets import panoptic_targets

NUM_THINGS = 80
"""Classes are dealt out among COCO's things."""

Size = tuple[int, int]


def size_name(size: Size) -> str:
    """Return HEIGHTxWIDTH."""
    return f"{size[0]}x{size[1]}"


def random_image(size: Size, seed: int = 0) -> Tensor:
    """Return noise (3, H, W) uint8."""
    return torch.randint(256, (3, *size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def grid_ids(count: int, size: Size) -> np.ndarray:
    """Return a map (H, W) int32 of `count` rectangles, numbered from 1, with void (0) between and around them.

    Raises:
        ValueError: if they do not fit.
    """
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / max(columns, 1))
    height, width = (side // max(n, 1) for side, n in zip(size, (rows, columns), strict=True))
    if min(height, width) < 3:
        raise ValueError(f"{count} segments do not fit into {size_name(size)}")
    ids = np.zeros(size, dtype=np.int32)
    for k in range(count):
        top, left = k // columns * height, k % columns * width
        ids[top + height // 6 : top + height - height // 6, left + width // 6 : left + width - width // 6] = k + 1
    return ids


def segments_info(count: int) -> list[dict[str, Any]]:
    """Return the segments of `grid_ids`."""
    return [{"id": k + 1, "category_id": k % NUM_THINGS, "iscrowd": 0, "isthing": True} for k in range(count)]


def training_inputs(count: int, size: Size, batch: int) -> list[dict[str, Any]]:
    """Return what a mapper gives for `batch` images with `count` segments each."""
    targets = panoptic_targets(grid_ids(count, size), segments_info(count), "grid")
    inputs = []
    for b in range(batch):
        classes, masks = targets.transformed(NoOpTransform(), size)
        instances = Instances(size)
        instances.gt_classes, instances.gt_masks = classes, masks
        inputs.append({"image": random_image(size, b), "height": size[0], "width": size[1], "instances": instances})
    return inputs


def dense_targets(count: int, size: Size) -> tuple[Tensor, Tensor]:
    """Return classes (T,) int64 and masks (T, H, W) bool of `grid_ids`."""
    ids = torch.from_numpy(grid_ids(count, size))
    return torch.arange(count) % NUM_THINGS, ids == torch.arange(1, count + 1)[:, None, None]

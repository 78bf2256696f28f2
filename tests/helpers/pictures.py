"""Small images and label maps on disk."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mask2former.d2.transforms import NoOpTransform
from mask2former.data.targets import instance_targets

SIZE = (6, 8)
"""Height and width of images."""


def picture(path: Path, size: tuple[int, int] = SIZE) -> Path:
    """An image of noise."""
    noise = np.random.default_rng(len(path.name)).integers(0, 256, (*size, 3), dtype=np.uint8)
    return save(path, noise)


def save(path: Path, pixels: object) -> Path:
    """A file of pixels as given: (H, W) grey levels or (H, W, 3) colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels)).save(path)
    return path


def square() -> np.ndarray:
    """The mask of a rectangle from (1, 1) to (5, 4): columns 1 to 4 and rows 1 to 3."""
    mask = np.zeros(SIZE, bool)
    mask[1:4, 1:5] = True
    return mask


def masks_of(record: dict[str, Any]) -> np.ndarray:
    """(n, H, W) bool masks that training takes of a dataset dict with annotations, crowds apart."""
    size = (record["height"], record["width"])
    return instance_targets(record["annotations"], size).transformed(NoOpTransform(), size)[1].tensor.numpy()

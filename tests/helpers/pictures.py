"""Small images and label maps on disk."""

from pathlib import Path

import numpy as np
from PIL import Image

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

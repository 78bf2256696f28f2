"""Images from whatever holds them, one after the other."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mask2former.checkpoint.download import local_path
from mask2former.data.images import DataError, read_image, upright_rgb
from mask2former.predict.files import ImageFile, file_name, find_images, is_address

Images = Any
"""An image or many: array uint8 (H, W, 3), several (N, H, W, 3), one of Pillow's, a path, a folder, a glob pattern, an
http(s) address, a `Picture`, or anything that gives such one after the other."""
OnError = Callable[[str, Exception], None]
"""Called with the name of an image that cannot be read, and why."""


@dataclass(frozen=True, eq=False)
class Picture:
    """An image that was read."""

    pixels: np.ndarray
    """RGB uint8 (H, W, 3)."""
    name: str = ""
    """Path or address, if it has one."""


def read_pictures(images: Images, *, input_format: str = "RGB", on_error: OnError | None = None) -> Iterator[Picture]:
    """Read images one after the other; of what gives one at a time, no more than the next is asked for.

    Args:
        images: see `Images`. Files of the web are downloaded once, see `local_path`.
        input_format: channel order of arrays, "RGB" or "BGR".
        on_error: takes note of a file that cannot be read, which is then left out; None: an error is raised.

    Raises:
        DataError, OSError: a file cannot be read.
        ValueError: an array is no image, or a folder or pattern has none.
        TypeError: there is something else.
    """
    if isinstance(images, str | os.PathLike):
        found = find_images([os.fspath(images)])
        if not found:
            raise ValueError(f"no images in {os.fspath(images)}")
        for file in found:
            try:
                picture = read_file(file)
            except (DataError, OSError) as error:
                if on_error is None:
                    raise
                on_error(file_name(file), error)
            else:
                yield picture
    elif isinstance(images, Picture):
        yield images
    elif isinstance(images, np.ndarray) and images.ndim != 4:
        yield Picture(_rgb(images, input_format))
    elif isinstance(images, Image.Image):
        name = str(getattr(images, "filename", "") or "")
        yield Picture(upright_rgb(images, name or "the image"), name)
    elif isinstance(images, Iterable) and not isinstance(images, bytes | dict):
        for item in images:
            yield from read_pictures(item, input_format=input_format, on_error=on_error)
    else:
        raise TypeError(
            f"{type(images).__name__} holds no images: give an array uint8 (H, W, 3), an image of Pillow's, a path, a "
            "folder, a glob pattern, an address, or an iterable of such"
        )


def read_picture(image: Images, *, input_format: str = "RGB") -> Picture:
    """The only image that `image` holds.

    Raises:
        ValueError: it may hold several.
    """
    several = isinstance(image, np.ndarray) and image.ndim == 4
    if isinstance(image, str | os.PathLike):
        several = len(find_images([os.fspath(image)])) != 1 or Path(image).is_dir()
    elif isinstance(image, Iterable) and not isinstance(image, np.ndarray | Image.Image):
        several = True
    if several:
        raise ValueError("a predictor is called with one image: `predict` takes several, and `stream` any number")
    (picture,) = read_pictures(image, input_format=input_format)
    return picture


def read_file(file: ImageFile) -> Picture:
    """The image of a path or an address.

    Raises:
        DataError, OSError: it cannot be read.
    """
    path = local_path(file) if isinstance(file, str) and is_address(file) else file
    return Picture(read_image(path), file_name(file))


def _rgb(image: np.ndarray, input_format: str) -> np.ndarray:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"expected an image uint8 (H, W, 3), got {image.dtype}{image.shape}")
    return np.array(image if input_format == "RGB" else image[:, :, ::-1])  # a copy: frames may share one buffer

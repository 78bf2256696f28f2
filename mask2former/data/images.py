"""Reading images and label maps from files, with errors that name the file."""

import os

import numpy as np
from PIL import Image, ImageOps

# Pixels alone. Pillow knows others that are programs: for an EPS, whatever its name, it starts Ghostscript.
_FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
_LABEL_MODES = ("L", "P", "1", "I", "I;16", "I;16L", "I;16B")


class DataError(ValueError):
    """Data on disk contradicts itself or what the task needs. The message names the file and the fix."""


class UnreadableImageError(DataError):
    """A file that is no image, or a broken one. Training may skip a few of them."""


def read_image(path: str | os.PathLike[str], format: str = "RGB") -> np.ndarray:
    """Reads an image upright (its EXIF orientation applied) with Pillow, as the published numbers were made.

    Args:
        format: order of the channels, "RGB" or "BGR".

    Returns:
        (H, W, 3) uint8. Greys of 16 bits are scaled: 65535 becomes 255.

    Raises:
        UnreadableImageError: broken file or EXIF data, a format that is none of pixels, or a size beyond Pillow's limit
            against decompression bombs.
        DataError: pixels of more than 16 bits, which a conversion would silently clip.
        FileNotFoundError: no such file.
    """
    if format not in ("RGB", "BGR"):
        raise ValueError(f"INPUT.FORMAT must be RGB or BGR, not {format!r}")
    image = _decode(path)
    try:
        image = ImageOps.exif_transpose(image)
    except Exception as error:  # damaged EXIF data can raise anything
        raise UnreadableImageError(f"{path}: its EXIF data cannot be read: {error}") from error
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        array = _scale_grey(np.asarray(image), path)
    else:
        array = np.asarray(image.convert("RGB"))
    return array if format == "RGB" else array[:, :, ::-1]


def read_panoptic_png(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads a panoptic PNG of COCO's format, in which id = R + 256 G + 256² B.

    Returns:
        (H, W) int32 segment ids, 0 where void.
    """
    image = _decode(path)
    if image.mode != "RGB":
        raise DataError(f"{path}: a panoptic PNG has mode RGB, this file has {image.mode}")
    return rgb_to_id(np.asarray(image))


def read_label_map(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads a semantic label map with one channel of 8 or 16 bits.

    Returns:
        (H, W) int32 labels.
    """
    image = _decode(path)
    if image.mode not in _LABEL_MODES:
        raise DataError(f"{path}: a label map has one channel of 8 or 16 bits, this file has mode {image.mode}")
    return np.asarray(image).astype(np.int32)


def check_size(path: str | os.PathLike[str], found: tuple[int, ...], expected: tuple[int, ...], source: str) -> None:
    """Raises `DataError` unless the (height, width) `found` in `path` equals what `source` says."""
    if tuple(found) != tuple(expected):
        raise DataError(
            f"{path} is {found[1]}x{found[0]} pixels (width x height), but {source} says "
            f"{expected[1]}x{expected[0]}; the two do not belong together"
        )


def rgb_to_id(rgb: np.ndarray) -> np.ndarray:
    """(..., 3) uint8 colours to (...) int32 ids, as COCO's panoptic format encodes them."""
    ids = rgb[..., 2].astype(np.int32)
    for channel in (1, 0):
        ids <<= 8
        ids |= rgb[..., channel]
    return ids


def id_to_rgb(ids: np.ndarray) -> np.ndarray:
    """(...) ids in 0..256³-1 to (..., 3) uint8 colours, the inverse of `rgb_to_id`."""
    return np.stack([ids & 255, (ids >> 8) & 255, (ids >> 16) & 255], axis=-1).astype(np.uint8)


def _scale_grey(grey: np.ndarray, path: str | os.PathLike[str]) -> np.ndarray:
    """(H, W) integers of 16 bits, which some versions of Pillow give as int32, to (H, W, 3) uint8."""
    if grey.dtype.kind == "f" or grey.min(initial=0) < 0 or grey.max(initial=0) > 65535:
        raise DataError(f"{path}: pixels of more than 16 bits; convert the image to 8 or 16 bits a channel")
    scaled = ((grey.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return np.repeat(scaled[:, :, None], 3, axis=2)


def _decode(path: str | os.PathLike[str]) -> Image.Image:
    try:
        with Image.open(path, formats=_FORMATS) as image:
            image.load()
            return image
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged file can raise anything
        raise UnreadableImageError(f"{path}: cannot be read as an image: {error}") from error

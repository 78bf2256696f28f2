"""Reading images and label maps from files, with errors that name the file."""

import io
import os
from collections.abc import Iterable

import numpy as np
from PIL import Image, ImageOps

# Pixels alone. Pillow knows others that are programs: for an EPS, whatever its name, it starts Ghostscript.
_FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
_ORIENTATION = 0x0112  # the EXIF tag
GREY = 0x010101
"""Grey level 1 as a colour of `read_colors`."""
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
    array = upright_rgb(_decode(path), path)
    return array if format == "RGB" else array[:, :, ::-1]


def decode_image(content: bytes, name: str) -> np.ndarray:
    """The image of a file that was read already, as `read_image` gives it, (H, W, 3) uint8 RGB.

    Raises:
        DataError: as `read_image`; `name` is what it calls the image.
    """
    return upright_rgb(_decode(name, content), name)


def upright_rgb(image: Image.Image, name: object) -> np.ndarray:
    """An image of Pillow's as `read_image` gives it, (H, W, 3) uint8 RGB; `name` is what errors call it."""
    try:
        image = ImageOps.exif_transpose(image)
    except Exception as error:  # damaged EXIF data can raise anything
        raise UnreadableImageError(f"{name}: its EXIF data cannot be read: {error}") from error
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _scale_grey(np.asarray(image), name)
    return np.asarray(image.convert("RGB"))


def read_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Height and width of an image as `read_image` gives it, from its header alone.

    Raises:
        UnreadableImageError, FileNotFoundError: as `read_image`, as far as the header tells.
    """
    try:
        with Image.open(path, formats=_FORMATS) as image:
            width, height = image.size
            turned = image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged file can raise anything
        raise UnreadableImageError(f"{path}: cannot be read as an image: {error}") from error
    return (width, height) if turned else (height, width)


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
    """Reads a label map: one channel of 8 or 16 bits, or several that are equal; of a palette, its indices.

    Returns:
        (H, W) int32 labels.

    Raises:
        DataError: colours, or pixels that are transparent in part.
    """
    labels, kind = read_label_values(path)
    if kind == "color":
        raise DataError(f"{path}: a label map has one channel of 8 or 16 bits, this file has mode RGB with colours")
    return labels


def read_colors(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads a label map of colours; grey level g is the colour (g, g, g).

    Returns:
        (H, W) int32, R + 256 G + 256² B.

    Raises:
        DataError: a palette, whose indices and not its colours are labels, or pixels that are transparent in part.
    """
    labels, kind = read_label_values(path)
    if kind == "palette":
        raise DataError(f"{path}: a label map with a palette among such of RGB colours; save all in one way")
    return labels if kind == "color" else labels * GREY


def read_label_values(path: str | os.PathLike[str]) -> tuple[np.ndarray, str]:
    """(H, W) int32 pixels of a label map of any kind, and the kind: "grey", "palette", or "color" as `read_colors`."""
    image = _decode(path)
    if image.mode in _LABEL_MODES:
        return np.asarray(image).astype(np.int32), "palette" if image.mode == "P" else "grey"
    if image.mode in ("RGBA", "LA") and image.getchannel("A").getextrema() != (255, 255):
        raise DataError(f"{path}: a label map with transparent pixels; save it without an alpha channel")
    if image.mode not in ("LA", "RGB", "RGBA"):
        raise DataError(f"{path}: a label map has one channel of 8 or 16 bits, this file has mode {image.mode}")
    colors = np.asarray(image.convert("RGB"))
    if (colors == colors[..., :1]).all():
        return colors[..., 0].astype(np.int32), "grey"
    return rgb_to_id(colors), "color"


def read_palette(path: str | os.PathLike[str]) -> np.ndarray | None:
    """The (n, 3) uint8 colours of the indices of a file with a palette; None of others."""
    image = _decode(path)
    return None if image.mode != "P" else np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)


def check_size(path: str | os.PathLike[str], found: tuple[int, ...], expected: tuple[int, ...], source: str) -> None:
    """Raises `DataError` unless the (height, width) `found` in `path` equals what `source` says."""
    if tuple(found) != tuple(expected):
        text = (
            f"{path} is {found[1]}x{found[0]} pixels (width x height), but {source} says "
            f"{expected[1]}x{expected[0]}; the two do not belong together"
        )
        if tuple(found) == tuple(expected)[::-1]:
            text += ". Where the EXIF data of a photo turn it, annotate it as it is shown, or save it without them"
        raise DataError(text)


def missing_files(paths: Iterable[str]) -> list[str]:
    """Those of `paths` that do not exist, in their order; remote paths (`scheme://`) are taken to exist."""
    listings: dict[str, set[str]] = {}
    missing = []
    for path in map(os.fspath, paths):
        if "://" in path:
            continue
        folder, file = os.path.split(path)
        if folder not in listings:
            listings[folder] = set(os.listdir(folder or ".")) if os.path.isdir(folder or ".") else set()
        if file not in listings[folder]:
            missing.append(path)
    return missing


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


def _scale_grey(grey: np.ndarray, path: object) -> np.ndarray:
    """(H, W) integers of 16 bits, which some versions of Pillow give as int32, to (H, W, 3) uint8."""
    if grey.dtype.kind == "f" or grey.min(initial=0) < 0 or grey.max(initial=0) > 65535:
        raise DataError(f"{path}: pixels of more than 16 bits; convert the image to 8 or 16 bits a channel")
    scaled = ((grey.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return np.repeat(scaled[:, :, None], 3, axis=2)


def _decode(path: str | os.PathLike[str], content: bytes | None = None) -> Image.Image:
    """The image of a file, or of its content; `path` is then what errors call it."""
    try:
        with Image.open(path if content is None else io.BytesIO(content), formats=_FORMATS) as image:
            image.load()
            return image
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged file can raise anything
        raise UnreadableImageError(f"{path}: cannot be read as an image: {error}") from error

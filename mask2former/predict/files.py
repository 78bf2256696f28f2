"""From what a user names to images, and from images to the names of what is written."""

import glob
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlparse

IMAGE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
ImageFile = Path | str
"""A file, or the http(s) address of one."""


def is_address(text: str) -> bool:
    """Whether it names a file of the web."""
    return text.startswith(("http://", "https://"))


def file_name(image: ImageFile) -> str:
    """What an image is called in results."""
    return image if isinstance(image, str) else image.as_posix()


def find_images(inputs: Sequence[str]) -> list[ImageFile]:
    """Image files named by paths, folders, glob patterns and addresses; a missing path is kept, to be reported."""
    found: list[ImageFile] = []
    for text in inputs:
        path = Path(text)
        if is_address(text):
            found.append(text)
        elif path.is_dir():
            found += sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        elif path.exists() or not glob.has_magic(text):
            found.append(path)
        else:
            found += sorted(Path(match) for match in glob.glob(text, recursive=True))
    return list(dict.fromkeys(found))


def output_names(images: Sequence[ImageFile], given: Mapping[str, str] | None = None) -> list[str]:
    """A name without suffix for the files of each image, numbered where two images have the same.

    Args:
        given: names that images have already, by `file_name`, of these images and others.
    """
    known = dict(given or {})
    taken = set(known.values())
    for image in images:
        if file_name(image) in known:
            continue
        stem = PurePosixPath(unquote(urlparse(image).path)).stem if isinstance(image, str) else image.stem
        name, number = stem or "image", 2
        while name in taken:
            name, number = f"{stem}_{number}", number + 1
        known[file_name(image)] = name
        taken.add(name)
    return [known[file_name(image)] for image in images]

"""From what a user names to images, and from images to the names of what is written."""

import glob
from collections.abc import Sequence
from pathlib import Path

IMAGE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


def find_images(inputs: Sequence[str]) -> list[Path]:
    """Image files named by paths, folders and glob patterns; a missing path is kept, to be reported."""
    found: list[Path] = []
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            found += sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        elif path.exists() or not glob.has_magic(text):
            found.append(path)
        else:
            found += sorted(Path(match) for match in glob.glob(text, recursive=True))
    return list(dict.fromkeys(found))


def output_paths(images: Sequence[Path], folder: Path) -> list[Path]:
    """A PNG in the folder for each image, numbered where two images have the same name."""
    targets: list[Path] = []
    taken: set[Path] = set()
    for image in images:
        target, number = folder / f"{image.stem}.png", 2
        while target in taken:
            target, number = folder / f"{image.stem}_{number}.png", number + 1
        targets.append(target)
        taken.add(target)
    return targets

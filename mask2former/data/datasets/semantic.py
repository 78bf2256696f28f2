"""Semantic data sets of two folders: images, and label maps of the same names.

Registering touches no file. The folders are listed and paired when the data set is asked for.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mask2former.d2.data import DatasetCatalog, MetadataCatalog
from mask2former.data.datasets.metadata import (
    CLASS_KEYS,
    DEFAULT_HINT,
    Category,
    PathLike,
    check_folder,
    dataset_metadata,
    first_few,
    semantic_metadata,
)
from mask2former.data.images import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


def register_semantic(
    name: str,
    *,
    image_root: PathLike,
    label_root: PathLike | None,
    classes: Sequence[str | Category],
    ignore_label: int = 255,
    image_suffix: str | Sequence[str] = IMAGE_SUFFIXES,
    label_suffix: str = ".png",
    missing_hint: str = DEFAULT_HINT,
    **metadata: Any,
) -> None:
    """Registers a semantic set of images and label maps, so that configs can name it in DATASETS.

    A label map has one channel of 8 or 16 bits; its pixels hold the index of a class, or `ignore_label`. It has
    the name and the subfolder of its image, but for the suffix.

    Args:
        image_root: folder of the images; subfolders count.
        label_root: folder of the label maps; None for a test set without labels.
        classes: names in the order of their indices, or records with `name` and optionally `color`.
        ignore_label: pixels that nothing is learnt from and nothing is scored on.
        image_suffix: what names of images end with; other files are left out.
        label_suffix: what replaces it in names of label maps.
        missing_hint: what a user should do when a folder or a file is missing; ends the error message.
        metadata: more attributes for the `MetadataCatalog`, e.g. another `evaluator_type`.

    Raises:
        AssertionError: the name is taken.
        DataError: no classes, or an `ignore_label` that is the index of one.
    """
    if 0 <= ignore_label < len(classes) or not classes:
        raise DataError(
            f"{name}: {len(classes)} classes and ignore_label {ignore_label}, which must be none of theirs. Where 0 "
            "stands for nothing, shift the labels down by one, 0 becoming 255: docs/semantic.md"
        )
    suffixes = (image_suffix,) if isinstance(image_suffix, str) else tuple(image_suffix)

    def load() -> list[dict[str, Any]]:
        for folder in (image_root, label_root):
            if folder is not None:
                check_folder(folder, name, missing_hint)
        return semantic_dicts(
            image_root, label_root, image_suffixes=suffixes, label_suffix=label_suffix, missing_hint=missing_hint
        )

    DatasetCatalog.register(name, load)
    records = [{"name": item} if isinstance(item, str) else item for item in classes]
    MetadataCatalog.get(name).set(
        image_root=os.fspath(image_root),
        sem_seg_root=None if label_root is None else os.fspath(label_root),
        ignore_label=ignore_label,
        **{"evaluator_type": "sem_seg", **semantic_metadata(records), **metadata},
    )


def register_images(
    name: str, *, image_root: PathLike, like: str, image_suffix: str | Sequence[str] = IMAGE_SUFFIXES
) -> None:
    """Registers a folder of images without labels, on which `--eval-only` writes predictions and scores nothing.

    Args:
        image_root: folder of the images; subfolders count.
        like: the registered data set whose classes, and whose form of predictions, these have.
        image_suffix: what names of images end with; other files are left out.

    Raises:
        AssertionError: the name is taken.
        DataError: there is no data set `like`.
    """
    if like not in DatasetCatalog.list():
        raise DataError(f"{name}: like={like!r} is no registered data set")
    suffixes = (image_suffix,) if isinstance(image_suffix, str) else tuple(image_suffix)

    def load() -> list[dict[str, Any]]:
        known = dataset_metadata(like).as_dict()
        MetadataCatalog.get(name).set(**{key: known[key] for key in CLASS_KEYS if key in known})
        check_folder(image_root, name, DEFAULT_HINT)
        return semantic_dicts(image_root, None, image_suffixes=suffixes)

    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(
        image_root=os.fspath(image_root), evaluator_type=MetadataCatalog.get(like).evaluator_type
    )


def semantic_dicts(
    image_root: PathLike,
    label_root: PathLike | None,
    *,
    image_suffixes: Sequence[str] = IMAGE_SUFFIXES,
    label_suffix: str = ".png",
    missing_hint: str = DEFAULT_HINT,
) -> list[dict[str, Any]]:
    """Dataset dicts of the images below `image_root`, by name; `image_id` is the name without suffix.

    Raises:
        DataError: no image; images without label map or the reverse; two images of one name.
    """
    images = find_files(image_root, image_suffixes)
    if not images:
        raise DataError(f"{image_root}: no images ({', '.join(image_suffixes)}); {missing_hint}")
    records = [{"file_name": os.path.join(image_root, images[key]), "image_id": key} for key in sorted(images)]
    if label_root is None:
        return records
    labels = find_files(label_root, (label_suffix,))
    for found, folder, other_found, other in ((images, image_root, labels, label_root),
                                              (labels, label_root, images, image_root)):  # fmt: skip
        alone = sorted(file for key, file in found.items() if key not in other_found)
        if alone:
            raise DataError(
                f"{len(alone)} of the {len(found)} files of {folder} have no partner of that name in {other}: "
                f"{first_few(alone)}; {missing_hint}"
            )
    for record in records:
        record["sem_seg_file_name"] = os.path.join(label_root, labels[record["image_id"]])
    return records


def find_files(root: PathLike, suffixes: Sequence[str]) -> dict[str, str]:
    """Files below `root`: path relative to it without suffix → relative path. Hidden ones are left out.

    Raises:
        DataError: two files that differ in their suffix only.
    """
    found: dict[str, str] = {}
    for folder, _, files in os.walk(root, followlinks=True):
        relative = os.path.relpath(folder, root)
        for file in files:
            suffix = next((suffix for suffix in suffixes if file.lower().endswith(suffix.lower())), None)
            if suffix is None or file.startswith("."):
                continue
            path = Path(relative, file).as_posix()
            key = path[: -len(suffix)]
            if key in found:
                raise DataError(f"{root}: {found[key]} and {path} have one name; say which suffix the images have")
            found[key] = path
    return found

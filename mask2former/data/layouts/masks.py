"""Images and label maps, paired by name: in folders of their own, or side by side."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from mask2former.data.datasets.metadata import Category, first_few
from mask2former.data.datasets.semantic import IMAGE_SUFFIXES
from mask2former.data.images import DataError, check_size, read_size
from mask2former.data.layouts.layout import (
    SEMANTIC,
    Found,
    Layout,
    Records,
    files_below,
    files_in,
    folders_below,
    relative,
)
from mask2former.data.layouts.names import find_names
from mask2former.data.layouts.splits import Split, is_split_word, split_of, words_of
from mask2former.data.layouts.values import interpret, label_key, scan

_IMAGES = {"image", "images", "img", "imgs", "jpegimages", "photo", "photos", "input", "inputs", "rgb"}
_LABELS = {
    *("label", "labels", "mask", "masks", "annotation", "annotations", "annot", "anno", "ann", "gt", "groundtruth"),
    *(
        "seg",
        "segs",
        "segmentation",
        "segmentations",
        "segmentationclass",
        "target",
        "targets",
        "labelmap",
        "labelmaps",
    ),
}
_ENDING = re.compile(
    r"[_.-](masks?|labels?|seg|segmentation|gt|groundtruth|annotation|L|label_?train_?ids|train_?ids)$", re.IGNORECASE
)
_IMAGE_ENDING = re.compile(r"[_.-](image|img|rgb|sat|photo|leftImg8bit)$", re.IGNORECASE)


class Masks(Layout):
    """Label maps: index, black-and-white or coloured ones, named as their images or with an ending such as `_mask`."""

    name, tasks, title = "masks", (SEMANTIC,), "images and label maps"

    def find(self, path: Path) -> Found | None:
        if not path.is_dir():
            return None
        roles = _roles(path)
        splits: dict[str, Split] = {}
        for name in dict.fromkeys(split for split, _ in roles):
            images, labels = roles.get((name, "images"), []), roles.get((name, "labels"), [])
            plain = roles.get((name, ""), [])
            if labels and not images:
                images = plain
            elif not labels and plain and any(_ENDING.search(file.stem) for file in _files(plain[0])):
                images = labels = plain
            if not labels:
                continue
            for folders, what in ((images, "images"), (labels, "label maps")):
                if len(folders) != 1:
                    some = first_few(relative(folder, path) for folder in folders) or "no folder"
                    raise DataError(
                        f"{path}: {some} could hold the {what} of {name or 'the only split'}; keep one, named `images` "
                        "or `masks`, or say which in a data description"
                    )
            splits[name] = Split(images=relative(images[0], path), labels=relative(labels[0], path))
        if splits and "test" not in splits and len(roles.get(("test", "images"), [])) == 1:
            splits["test"] = Split(images=relative(roles["test", "images"][0], path))
        return Found(path, splits) if splits else None

    def read_categories(self, found: Found, task: str) -> None:
        named = find_names(_near(found))
        names, source = (None, "") if named is None else (named[0], str(named[1]))
        if names is not None:
            found.notes.append(f"names of classes are those of {relative(Path(source), found.root)}")
        paths = [labels for split in found.splits.values() for _, labels in _pairs(found.root, split) if labels]
        found.categories = interpret(scan(paths), names, source, found.notes)

    def load(self, root: Path, split: Split, categories: Sequence[Category], task: str) -> Records:
        key, classes = label_key(categories)
        records: Records = []
        for image, labels in _pairs(root, split):
            height, width = read_size(image)
            name = Path(relative(Path(image), root / split.images))
            record = {"file_name": image, "image_id": name.with_suffix("").as_posix(), "height": height, "width": width}
            if labels:
                check_size(labels, read_size(labels), (height, width), image)
                record |= {"sem_seg_file_name": labels, key: dict(classes)}
            records.append(record)
        return records


def _near(found: Found) -> list[Path]:
    """Where a list of names may lie: the root, the folders of label maps and images, and those above them."""
    folders = [
        found.root / folder for split in found.splits.values() for folder in (split.labels, split.images) if folder
    ]
    chains = [
        folder
        for top in folders
        for folder in (top, *top.parents)
        if folder == found.root or found.root in folder.parents
    ]
    return list(dict.fromkeys([found.root, *chains]))


def _files(folder: Path) -> list[Path]:
    return files_in(folder, IMAGE_SUFFIXES)


def _roles(root: Path) -> dict[tuple[str, str], list[Path]]:
    """Folders by split and by what they hold, "images", "labels" or "" (not told): each the outermost so told."""
    roles: dict[tuple[str, str], list[Path]] = {}
    for folder in folders_below(root, 4):
        if not any(True for _ in _files(folder)):
            continue
        inner = folder.relative_to(root)
        role = (split_of(inner), _kind(inner))
        outermost = next(top for top in (*reversed(inner.parents), inner) if (split_of(top), _kind(top)) == role)
        if root / outermost not in roles.setdefault(role, []):
            roles[role].append(root / outermost)
    return roles


def _kind(path: Path) -> str:
    for words in words_of(path):
        rest = {word for word in words if not is_split_word(word)}
        if rest & _LABELS:
            return "labels"
        if rest & _IMAGES:
            return "images"
    return ""


def _pairs(root: Path, split: Split) -> Iterator[tuple[str, str]]:
    """Image and label map of each image of a split, by name; "" where the split has no label maps.

    Raises:
        DataError: one without the other, two of one name, label maps as JPEG.
    """
    image_root, label_root = root / split.images, root / split.labels
    side_by_side = split.images == split.labels
    images = [file for file in _tree(image_root) if not (side_by_side and _ENDING.search(file.stem))]
    if not images:
        raise DataError(f"{image_root}: no images ({', '.join(IMAGE_SUFFIXES)})")
    if not split.labels:
        yield from ((str(file), "") for file in images)
        return
    labels = [file for file in _tree(label_root) if not side_by_side or _ENDING.search(file.stem)]
    lossy = [file for file in labels if file.suffix.lower() in (".jpg", ".jpeg")]
    if lossy:
        raise DataError(
            f"{lossy[0]}: a label map as JPEG, whose compression changes labels at edges; save label maps as PNG "
            "(masks of black and white: after setting what is above 127 to 255, the rest to 0)"
        )
    partners, alone = _paired(_keys(images, image_root), _keys(labels, label_root))
    if alone:
        raise DataError(
            f"{len(alone)} files of {image_root} and {label_root} have no partner of that name in the other one: "
            f"{first_few(relative(file, root) for file in alone)}; add or remove files"
        )
    yield from ((str(image), str(mask)) for image, mask in partners)


def _paired(images: dict[str, Path], labels: dict[str, Path]) -> tuple[list[tuple[Path, Path]], list[Path]]:
    """Pairs of equal names, or else of names without their endings; and what remains alone."""
    pairs = {key: (file, labels[key]) for key, file in images.items() if key in labels}
    short_images, short_labels = (
        {ending.sub("", key): key for key in found if key not in pairs}
        for found, ending in ((images, _IMAGE_ENDING), (labels, _ENDING))
    )
    for short in short_images.keys() & short_labels.keys():
        pairs[short_images[short]] = images[short_images[short]], labels[short_labels[short]]
    taken = {file for pair in pairs.values() for file in pair}
    alone = sorted(file for file in (*images.values(), *labels.values()) if file not in taken)
    return [pairs[key] for key in sorted(pairs)], alone


def _keys(files: Sequence[Path], root: Path) -> dict[str, Path]:
    keys: dict[str, Path] = {}
    for file in files:
        key = file.relative_to(root).with_suffix("").as_posix()
        if key in keys:
            raise DataError(f"{root}: {keys[key].name} and {file.name} have one name; keep one of them")
        keys[key] = file
    return keys


def _tree(root: Path) -> list[Path]:
    return files_below(root, IMAGE_SUFFIXES, 8)

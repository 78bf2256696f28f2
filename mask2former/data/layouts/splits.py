"""Which files are to train on and which to validate on: told by names of folders and files, or drawn by a seed."""

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mask2former.data.images import DataError

TRAIN, VAL, TEST = "train", "val", "test"
SPLITS = (TRAIN, VAL, TEST)
SHARE = 0.2
"""Of the images, for validation, where no names tell."""

_WORDS = {
    **dict.fromkeys(("train", "training", "tr"), TRAIN),
    **dict.fromkeys(("val", "valid", "validation", "dev"), VAL),
    **dict.fromkeys(("test", "testing"), TEST),
}
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_GLUED = re.compile(r"(train|val|valid|test)(?=annot|images?$|masks?$|labels?$)")  # SegNet's CamVid has `trainannot`


@dataclass(frozen=True, kw_only=True)
class Split:
    """Where the images of a split and their annotations lie, relative to the root of the data.

    Attributes:
        images: folder.
        annotations: file, or folder of files with one for each image; "" where there are none.
        labels: folder of label maps or panoptic PNGs; "" where there are none.
        names: text file that lists the images of the split; "" where all belong to it.
        subset: of an annotation file that holds several: the name it gives this one.
        portion: the images whose `fraction` lies within these bounds, the lower included; None for all.
    """

    images: str = "."
    annotations: str = ""
    labels: str = ""
    names: str = ""
    subset: str = ""
    portion: tuple[float, float] | None = None

    def holds(self, name: str, seed: int) -> bool:
        """Whether an image, by its path below `images`, belongs to the `portion`."""
        return self.portion is None or self.portion[0] <= fraction(name, seed) < self.portion[1]


def fraction(name: str, seed: int) -> float:
    """A number within 0..1, drawn for an image by its name alone: an image stays in its split when others are added."""
    digest = hashlib.sha256(f"{seed}/{Path(name).as_posix()}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def words_of(path: str | os.PathLike[str]) -> list[list[str]]:
    """The words of each part of a path, the file's first and the outermost folder's last, in lower case."""
    parts = (_CAMEL.sub(" ", part).lower() for part in reversed(Path(path).parts))
    return [re.findall(r"[a-z]+", _GLUED.sub(r"\1 ", part)) for part in parts]


def split_of(path: str | os.PathLike[str]) -> str:
    """The split that a relative path tells, train, val or test: by the first word that does in the innermost name.

    "" where none does.
    """
    return next((_WORDS[word] for words in words_of(path) for word in words if word in _WORDS), "")


def is_split_word(word: str) -> bool:
    """Whether a word of a name tells a split."""
    return word in _WORDS


def settle(
    splits: Mapping[str, Split], images_of: Mapping[str, Sequence[str]], seed: int, notes: list[str]
) -> dict[str, Split]:
    """Splits with something to validate on, made if need be.

    Args:
        splits: by name; "" is what no name told.
        images_of: names of the images of each, relative to `images`.
        notes: gets a sentence for each decision.

    Raises:
        DataError: there is nothing to train on.
    """
    splits = dict(splits)
    if "" in splits:
        if TRAIN in splits:
            raise DataError(
                f"{splits[''].annotations or splits[''].images or 'the folder itself'} has no split in its name, but "
                f"{splits[TRAIN].annotations or splits[TRAIN].images} has: name it train, val or test, or move it away"
            )
        splits = {TRAIN: splits.pop(""), **splits}
        images_of = {**images_of, TRAIN: images_of[""]}
    if TRAIN not in splits:
        raise DataError(f"there is {' and '.join(splits)} alone: name the folder or file to train on `train`")
    if VAL not in splits and TEST in splits and _is_labelled(splits[TEST]):
        splits[VAL] = splits.pop(TEST)
        notes.append("there is no val: test is validated on")
    if VAL not in splits:
        splits = _drawn(splits, images_of[TRAIN], seed, notes)
    return {name: splits[name] for name in (TRAIN, VAL, TEST) if name in splits}


def _is_labelled(split: Split) -> bool:
    return bool(split.annotations or split.labels)


def _drawn(splits: Mapping[str, Split], names: Iterable[str], seed: int, notes: list[str]) -> dict[str, Split]:
    places = sorted(fraction(name, seed) for name in names)
    count = round(SHARE * len(places)) or 1
    if len(places) < 2:
        notes.append("there is one image: it is trained on, and nothing validated")
        return dict(splits)
    border = round((places[count - 1] + places[count]) / 2, 9)
    notes.append(f"no name tells a val split: {count} of {len(places)} images are drawn for it with seed {seed}")
    train = splits[TRAIN]
    made = {TRAIN: replace(train, portion=(border, 1.0)), VAL: replace(train, portion=(0.0, border))}
    return {**splits, **made}

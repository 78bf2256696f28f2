"""The 19 classes that Cityscapes evaluates, and where the ground truth of an image lies.

In `*_labelIds.png` a pixel is a label id. In `*_instanceIds.png` it is 1000 * label id + number for an object,
and a label id alone for everything else, groups of objects that are not told apart among it.
"""

import os
import re
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

from mask2former.d2.data import DatasetCatalog, Metadata

FIRST_OBJECT = 1000  # smaller values in instanceIds are label ids


class CityscapesLabel(NamedTuple):
    """A class: its label id, its category, and for classes of objects their mean area in pixels.

    The mean areas weigh the objects in iIoU; they are constants of the benchmark, measured on its training set.
    """

    id: int
    category: str
    mean_area: float | None = None


LABELS: Mapping[str, CityscapesLabel] = {
    "road": CityscapesLabel(7, "flat"),
    "sidewalk": CityscapesLabel(8, "flat"),
    "building": CityscapesLabel(11, "construction"),
    "wall": CityscapesLabel(12, "construction"),
    "fence": CityscapesLabel(13, "construction"),
    "pole": CityscapesLabel(17, "object"),
    "traffic light": CityscapesLabel(19, "object"),
    "traffic sign": CityscapesLabel(20, "object"),
    "vegetation": CityscapesLabel(21, "nature"),
    "terrain": CityscapesLabel(22, "nature"),
    "sky": CityscapesLabel(23, "sky"),
    "person": CityscapesLabel(24, "human", 3462.4756337644),
    "rider": CityscapesLabel(25, "human", 3930.4788056518),
    "car": CityscapesLabel(26, "vehicle", 12794.0202738185),
    "truck": CityscapesLabel(27, "vehicle", 27855.1264367816),
    "bus": CityscapesLabel(28, "vehicle", 35732.1511111111),
    "train": CityscapesLabel(31, "vehicle", 67583.7075812274),
    "motorcycle": CityscapesLabel(32, "vehicle", 6298.7200839748),
    "bicycle": CityscapesLabel(33, "vehicle", 4672.3249222261),
}


class CityscapesFiles:
    """The frames of a registered Cityscapes set, and their ground-truth files."""

    def __init__(self, metadata: Metadata) -> None:
        """`gt_dir` of the metadata is the folder of the cities' ground truth; without it there are no labels."""
        self._gt_dir: str | None = metadata.get("gt_dir")
        self.frames: list[Hashable] = [frame_name(item["file_name"]) for item in DatasetCatalog.get(metadata.name)]

    @property
    def are_labelled(self) -> bool:
        return self._gt_dir is not None

    def path(self, file_name: str, kind: str) -> str:
        """File of the given kind (`labelIds`, `instanceIds`) for the image `file_name`.

        Raises:
            FileNotFoundError: it does not exist.
        """
        frame = frame_name(file_name)
        assert self._gt_dir is not None
        path = os.path.join(self._gt_dir, frame.split("_")[0], f"{frame}_gtFine_{kind}.png")
        if not os.path.isfile(path):
            raise FileNotFoundError(f"no {path}, the ground truth of {file_name}")
        return path


def frame_name(file_name: str) -> str:
    """`frankfurt_000000_000294` of `…/frankfurt_000000_000294_leftImg8bit.png`; names of other forms in full."""
    stem = os.path.splitext(os.path.basename(file_name))[0]
    frame = re.match(r"[^_]+_\d+_\d+", stem)
    return frame[0] if frame else stem


def labels_of(class_names: Sequence[str], source: str) -> list[CityscapesLabel]:
    """The labels of classes by name.

    Raises:
        ValueError: a name is none of Cityscapes' 19 classes; `source` says whose it is.
    """
    unknown = [name for name in class_names if name not in LABELS]
    if unknown:
        raise ValueError(f"{source}: {', '.join(unknown)} are no classes of Cityscapes, which are {', '.join(LABELS)}")
    return [LABELS[name] for name in class_names]

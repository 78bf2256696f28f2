"""What evaluators know beyond their metrics, kept as a file for reports: of classes, of images, and their confusions.

Legend: C classes, R recall thresholds.
"""

import json
import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from mask2former.evaluation.confusion import MISSED, NOTHING, VOID, Events
from mask2former.evaluation.curves import OperatingPoint
from mask2former.files import write_text

FOLDER = "details"
_NAMED_ERRORS = 4  # kinds of errors kept of an image


@dataclass(frozen=True, kw_only=True)
class ImageScore:
    """How well one image went.

    Attributes:
        image: its id, or its file where it has none.
        score: in 0..1; None where there is nothing to find and nothing was found.
        errors: the most frequent ones, (row, column, count) as in `Details.confusion`.
    """

    image: Hashable
    score: float | None
    errors: list[tuple[int, int, int]]


@dataclass(frozen=True, kw_only=True)
class Details:
    """Of one task on one data set.

    Attributes:
        task: the name that results have, such as `panoptic_seg`.
        dataset: name of the data set.
        unit: what is counted: "objects", "segments" or "pixels".
        score_name: what the score of an image is, such as "PQ".
        classes: names (C).
        columns: numbers per class (C) by their headings, with None for what does not exist.
        confusion: counts, C + 2 rows (true classes, `VOID`, `NOTHING`) of C + 1 (predicted classes, `MISSED`).
        images: all images that were scored.
        precision: (C, R) at COCO's 101 recalls, IoU 0.5; empty rows for classes without objects. For instances alone.
        points: of highest F1 (C), see `mask2former.evaluation.curves`. For instances alone.
    """

    task: str
    dataset: str
    unit: str
    score_name: str
    classes: list[str]
    columns: dict[str, list[float | None]]
    confusion: list[list[int]]
    images: list[ImageScore]
    precision: list[list[float]] = field(default_factory=list)
    points: list[OperatingPoint | None] = field(default_factory=list)

    def write(self, folder: str | Path) -> None:
        """Write `details/<task>.json` into the folder of a data set's predictions."""
        write_text(Path(folder, FOLDER, f"{self.task}.json"), json.dumps(asdict(self)))

    @property
    def score_thresholds(self) -> dict[str, float]:
        """Score of highest F1 by the names of the classes that have one."""
        pairs = zip(self.classes, self.points, strict=False)
        return {name: point.threshold for name, point in pairs if point is not None}


def read_details(folder: str | Path) -> Iterator[Details]:
    """What `Details.write` left in the folder of a data set's predictions, by task."""
    for file in sorted(Path(folder, FOLDER).glob("*.json")):
        content = json.loads(file.read_text(encoding="utf-8"))
        content["images"] = [ImageScore(**image) for image in content["images"]]
        content["points"] = [point and OperatingPoint(**point) for point in content["points"]]
        yield Details(**content)


def score_thresholds(folder: str | Path, datasets: Sequence[str]) -> dict[str, dict[str, float]]:
    """Scores of highest F1 by data set and class, of those data sets whose instances were scored.

    Args:
        folder: that holds the folders of the data sets' predictions.
    """
    found = {}
    for dataset in datasets:
        for details in read_details(Path(folder, dataset)):
            if details.points:
                found[dataset] = details.score_thresholds
    return found


def image_score(image: Hashable, score: float, events: Events) -> ImageScore:
    """Keep of an image's events the most frequent errors; predictions on void are none.

    Args:
        score: nan for an image with nothing in it.
    """
    errors = [(*pair, count) for pair, count in events.items() if pair[0] not in (pair[1], VOID)]
    errors.sort(key=lambda error: -error[2])
    return ImageScore(image=image, score=None if math.isnan(score) else score, errors=errors[:_NAMED_ERRORS])


def describe_errors(errors: Sequence[tuple[int, int, int]], classes: Sequence[str], unit: str) -> list[str]:
    """Errors of an image in words, such as "2x person missed" and "1x cat taken for dog"."""
    texts = []
    for row, column, count in errors:
        many = f"{count} {unit}: " if unit == "pixels" else f"{count}x "
        if column == MISSED:
            texts.append(f"{many}{classes[row]} missed")
        elif row == NOTHING:
            texts.append(f"{many}{classes[column]} where there is none")
        else:
            texts.append(f"{many}{classes[row]} taken for {classes[column]}")
    return texts


def numbers(values: Sequence[float] | np.ndarray) -> list[float | None]:
    """Plain numbers for JSON: None in the place of what is not finite."""
    return [float(value) if math.isfinite(value) else None for value in values]

"""Reads every file of a data set and says everything that is wrong with it, with statistics of its classes."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mask2former.data.datasets.metadata import first_few
from mask2former.data.images import DataError, check_size, read_image
from mask2former.data.labels import read_labels, read_segments
from mask2former.data.summary import Counts, mask_area, present, segment_areas
from mask2former.data.targets import panoptic_targets, semantic_targets

OUTSIDE = 2.0
"""Pixels that a polygon may leave its image by; annotation tools round."""


@dataclass
class Report:
    """What was found in one or more images.

    Attributes:
        problems: one sentence each, naming the file.
        counts: objects, by class.
        labels: what occurs in label maps, the ignore label too.
        size: pixels of the images that were read.
    """

    problems: list[str] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)
    labels: set[int] = field(default_factory=set)
    size: int = 0

    def add(self, other: "Report") -> None:
        """Takes up what was found elsewhere."""
        self.problems += other.problems
        self.counts.add(other.counts)
        self.size += other.size
        self.labels |= other.labels

    def count(self, classes: Sequence[int], areas: Sequence[int], file: str, size: tuple[int, ...]) -> None:
        """Takes up the objects of one image of (height, width) `size`: the class of each, and its pixels."""
        self.counts.count(classes, file)
        self.counts.measure(classes, areas, size)


def check_list(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is wrong with the list itself: no images; ids or files given twice."""
    if not records:
        return ["the data set holds no images"]
    problems = []
    for key in ("image_id", "file_name", "sem_seg_file_name", "pan_seg_file_name"):
        counts = Counter(record[key] for record in records if key in record)
        twice = [value for value, count in counts.items() if count > 1]
        if twice:
            problems.append(f"{key} given more than once: {first_few(twice)}")
    return problems


def label_problem(labels: Iterable[int], num_classes: int, ignore_label: int) -> str:
    """What is wrong with the labels of a map, or ""."""
    wrong = sorted(label for label in labels if not 0 <= label < num_classes and label != ignore_label)
    if not wrong:
        return ""
    text = (
        f"label {first_few(wrong)} is neither a class (0..{num_classes - 1}) nor the ignore label {ignore_label}. "
        "Correct the label map, MODEL.SEM_SEG_HEAD.NUM_CLASSES, or ignore_label in the metadata of the data set."
    )
    if wrong == [num_classes]:
        text += " Where 0 stands for nothing and classes count from 1, shift the labels down: docs/semantic.md."
    return text


def mask_problem(labels: Collection[int], num_classes: int, ignore_label: int) -> str:
    """What is wrong with the labels of all maps together, or "": nothing to learn, or masks of 0 and 255."""
    if set(labels) == {ignore_label}:
        return f"hold nothing but the ignore label {ignore_label}: there is nothing to learn or to score"
    if num_classes == 2 and set(labels) == {0, ignore_label}:
        return (
            f"hold 0 and {ignore_label} alone. {ignore_label} is the label to ignore, so that no class but 0 is ever "
            "seen; if it marks a class, write it as that class's number: docs/semantic.md, masks with other numbers"
        )
    return ""


def check_record(metadata: Mapping[str, Any], record: Mapping[str, Any]) -> Report:
    """Reads the files of one image and checks them against each other and against the classes.

    Statistics are of the panoptic segments, of the instances, or of the label map: the first that there is.

    Args:
        metadata: the data set's, as a dict.
    """
    report = Report()
    size: tuple[int, ...] | None = None
    with _noting(report):
        size = read_image(record["file_name"]).shape[:2]
        report.size = size[0] * size[1]
        expected = (record.get("height", size[0]), record.get("width", size[1]))
        check_size(record["file_name"], size, expected, "its annotation")
    checks: dict[str, Callable[..., Report]] = {
        "pan_seg_file_name": _check_panoptic,
        "annotations": _check_annotations,
        "sem_seg_file_name": _check_semantic,
    }
    counted = False
    for key, check in checks.items():
        if key not in record:
            continue
        found = check(metadata, record, size)
        report.add(found if not counted else Report(problems=found.problems))
        counted = True
    return report


def _check_panoptic(metadata: Mapping[str, Any], record: Mapping[str, Any], size: tuple[int, ...] | None) -> Report:
    report, path = Report(), record["pan_seg_file_name"]
    segments = record["segments_info"]
    _check_classes(report, path, [segment["category_id"] for segment in segments], len(metadata["stuff_classes"]))
    with _noting(report):
        ids = read_segments(record)
        if size is not None:
            check_size(path, ids.shape, size, record["file_name"])
        targets = panoptic_targets(ids, segments, path)
        areas = segment_areas(targets)
        report.count(targets.classes.tolist(), areas, record["file_name"], ids.shape)
        kept = [segment for segment in segments if not segment.get("iscrowd", 0)]
        lost = [segment["id"] for segment, area in zip(kept, areas, strict=True) if not area]
        # ADE20K's annotations hold stuff that things cover wholly.
        if any(segment["id"] in lost for segment in kept if segment.get("isthing", True)):
            report.problems.append(f"{path}: segment ids of the annotation have no pixel in it: {first_few(lost)}")
    return report


def _check_semantic(metadata: Mapping[str, Any], record: Mapping[str, Any], size: tuple[int, ...] | None) -> Report:
    report, path = Report(), record["sem_seg_file_name"]
    num_classes = len(metadata["stuff_classes"])
    with _noting(report):
        labels = read_labels(record)
        if size is not None:
            check_size(path, labels.shape, size, record["file_name"])
        ignore_label = metadata.get("ignore_label", 255)
        report.labels.update(np.unique(labels).tolist())
        problem = label_problem(report.labels, num_classes, ignore_label)
        if problem:
            raise DataError(f"{path}: {problem}")
        targets = semantic_targets(labels, path, ignore_label=ignore_label, num_classes=num_classes)
        report.count(*present(targets), record["file_name"], labels.shape)
    return report


def _check_annotations(metadata: Mapping[str, Any], record: Mapping[str, Any], size: tuple[int, ...] | None) -> Report:
    report, path = Report(), record["file_name"]
    annotations = record["annotations"]
    everything = [annotation["category_id"] for annotation in annotations]
    _check_classes(report, path, everything, len(metadata["thing_classes"]))
    classes, areas = [], []
    for number, annotation in enumerate(annotations):
        segmentation = annotation["segmentation"]
        if size is not None and not _fits(segmentation, size):
            report.problems.append(
                f"{path}: the mask of its annotation {number + 1} of {len(annotations)} is not of its "
                f"{size[1]}x{size[0]} pixels"
            )
        elif not annotation.get("iscrowd", 0):
            classes.append(annotation["category_id"])
            areas.append(0 if size is None else mask_area(segmentation, size))
    if not report.problems:
        report.count(classes, areas, path, size or (1,))
    return report


def _check_classes(report: Report, path: str, classes: Sequence[int], num_classes: int) -> None:
    wrong = sorted({category for category in classes if not 0 <= category < num_classes})
    if wrong:
        report.problems.append(f"{path}: classes {first_few(wrong)} are outside 0..{num_classes - 1}")


def _fits(segmentation: Any, size: tuple[int, ...]) -> bool:
    """Whether COCO's mask belongs to an image of (height, width) `size`."""
    if isinstance(segmentation, Mapping):
        return tuple(segmentation["size"]) == tuple(size)
    points = np.concatenate([np.zeros(2), *map(np.asarray, segmentation)]).reshape(-1, 2)
    return bool(points.min() >= -OUTSIDE and (points.max(axis=0) <= np.array(size[::-1]) + OUTSIDE).all())


@contextmanager
def _noting(report: Report) -> Iterator[None]:
    try:
        yield
    except (DataError, OSError) as error:
        report.problems.append(str(error))

"""Checking a registered data set whole: every file read, its classes counted, some images drawn."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from tqdm import tqdm

from mask2former.d2.data import DatasetCatalog, Metadata, MetadataCatalog
from mask2former.data.check import Report, check_list, check_record, mask_problem
from mask2former.data.datasets.metadata import first_few
from mask2former.data.images import read_image
from mask2former.data.summary import class_table, spread
from mask2former.evaluation.pictures import draw_truth
from mask2former.visualization import contact_sheet

ANNOTATIONS = ("pan_seg_file_name", "annotations", "sem_seg_file_name")


@dataclass
class DatasetCheck:
    """What `check_dataset` found.

    Attributes:
        report: problems and counts.
        metadata: of the data set.
        total, read: images of the set, and of these read.
        is_annotated: whether any image has annotations.
        healthy: the dataset dicts of images that nothing is wrong with.
    """

    report: Report
    metadata: Metadata
    total: int
    read: int
    is_annotated: bool
    healthy: list[dict[str, Any]] = field(default_factory=list)


def check_dataset(name: str, *, limit: int | None = None, workers: int | None = None) -> DatasetCheck:
    """Read the files of a registered data set, with a progress bar, and say everything that is wrong with them.

    Args:
        limit: read so many images, spread over the set; None for all.
        workers: processes; None for one per core.

    Raises:
        KeyError: no data set has that name.
        DataError, OSError: the list of its images cannot be read.
    """
    records = DatasetCatalog.get(name)
    metadata = MetadataCatalog.get(name)
    chosen = spread(records, limit)
    is_annotated = any(key in record for record in records for key in ANNOTATIONS)
    found = DatasetCheck(Report(problems=check_list(records)), metadata, len(records), len(chosen), is_annotated)
    report = found.report
    reports = tqdm(_check(chosen, metadata, workers or os.cpu_count() or 1), total=len(chosen), unit="image")
    for record, part in zip(chosen, reports, strict=True):
        report.add(part)
        if not part.problems:
            found.healthy.append(record)
    if is_annotated and not report.counts.objects and not report.problems:
        report.problems.append("no image has an annotation: there is nothing to learn or to score")
    masks = mask_problem(report.labels, len(metadata.get("stuff_classes") or ()), metadata.get("ignore_label", 255))
    if masks and report.labels:
        report.problems.append(f"the label maps {masks}")
    return found


def statistics(report: Report, metadata: Metadata) -> str:
    """A line for each class that occurs, the most frequent first, and the names of those that do not."""
    names, counts = metadata.get("stuff_classes") or metadata.get("thing_classes") or [], report.counts
    if not counts.objects:
        return "No annotations"
    lines = [
        class_table(counts, names, report.size),
        f"At most {counts.most[0]} objects in an image ({counts.most[1]}): the model needs as many queries",
    ]
    absent = [name for number, name in enumerate(names) if number not in counts.objects]
    if absent:
        lines.append(f"{len(absent)} of {len(names)} classes do not occur: {first_few(absent, 20)}")
    return "\n".join(lines)


def draw_sheet(records: Sequence[dict[str, Any]], metadata: Metadata) -> np.ndarray:
    """Images and their annotations, two pairs in a row; RGB (H, W, 3)."""
    pictures = [picture for record in records for picture in _draw(record, metadata)]
    rows = [pictures[start : start + 4] for start in range(0, len(pictures), 4)]
    return contact_sheet(rows, ["image", "annotation"] * min(2, len(records)), cell=(400, 300))


def _draw(record: dict[str, Any], metadata: Metadata) -> list[np.ndarray]:
    image = read_image(record["file_name"])
    truth = draw_truth(image, record, metadata)
    return [image, image if truth is None else truth]


def _check(records: Sequence[dict[str, Any]], metadata: Metadata, workers: int) -> Iterator[Report]:
    check = partial(check_record, metadata.as_dict())
    if workers <= 1 or len(records) < 2:
        yield from map(check, records)
        return
    with ProcessPoolExecutor(min(workers, len(records))) as pool:
        yield from pool.map(check, records, chunksize=4)

"""Check a registered data set: read every file, list what is wrong, count its classes, and draw some images.

Examples:
    python tools/check_dataset.py ade20k_sem_seg_val
    python tools/check_dataset.py garden_train --import my_data --limit 200 --output output/garden

`my_data.py` in the working folder registers `garden_train`. The exit status is 1 when anything is wrong. Pictures are
written to NAME.png in the output folder.
"""

import argparse
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

import mask2former  # noqa: F401 (registers the built-in data sets)
from mask2former.d2.data import DatasetCatalog, Metadata, MetadataCatalog
from mask2former.d2.transforms import NoOpTransform
from mask2former.data.check import Report, check_list, check_record, mask_problem
from mask2former.data.datasets.metadata import first_few
from mask2former.data.images import DataError, read_image, read_label_map, read_panoptic_png
from mask2former.data.summary import class_table, spread
from mask2former.data.targets import instance_targets
from mask2former.engine.command import add_import_option, import_modules, run
from mask2former.files import write_bytes
from mask2former.similar import did_you_mean
from mask2former.visualization import contact_sheet, draw_instances, draw_panoptic, draw_semantic

ANNOTATIONS = ("pan_seg_file_name", "annotations", "sem_seg_file_name")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", metavar="NAME", help="registered name of the data set")
    parser.add_argument("--output", type=Path, default=Path("output/check_dataset"), metavar="DIR", help="%(default)s")
    parser.add_argument("--limit", type=int, metavar="N", help="read N images, spread over the set (all)")
    add_import_option(parser)
    parser.add_argument("--problems", type=int, default=20, metavar="N", help="problems to list (%(default)s)")
    parser.add_argument("--pictures", type=int, default=8, metavar="N", help="images to draw, 0 for none (%(default)s)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (%(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Checks the data set; returns the exit status."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.limit is not None and args.limit < 1:
        parser.error("--limit must be at least 1")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    import_modules(args.modules)
    if args.name not in DatasetCatalog.list():
        suggestion = did_you_mean(args.name, DatasetCatalog.list(), else_all=True)
        parser.error(f"no data set is registered as {args.name!r}{suggestion}")
    try:
        records = DatasetCatalog.get(args.name)
    except (DataError, OSError) as error:
        print(f"{args.name}: cannot be loaded: {error}")
        return 1

    metadata = MetadataCatalog.get(args.name)
    report = Report(problems=check_list(records))
    chosen = spread(records, args.limit)
    healthy = []
    reports = tqdm(_check(chosen, metadata, args.workers), total=len(chosen), unit="image")
    for record, found in zip(chosen, reports, strict=True):
        report.add(found)
        if not found.problems:
            healthy.append(record)
    print(f"{args.name}: {len(chosen)} of {len(records)} images read")
    print_statistics(report, metadata)
    is_annotated = any(key in record for record in records for key in ANNOTATIONS)
    if is_annotated and not report.counts.objects and not report.problems:
        report.problems.append("no image has an annotation: there is nothing to learn or to score")
    elif not is_annotated:
        print("Images alone, to predict on")
    masks = mask_problem(report.labels, len(metadata.get("stuff_classes") or ()), metadata.get("ignore_label", 255))
    if masks and report.labels:
        report.problems.append(f"the label maps {masks}")
    if healthy and args.pictures > 0:
        path = args.output / f"{args.name}.png"
        sheet = draw_sheet(spread(healthy, args.pictures), metadata)
        write_bytes(path, cv2.imencode(".png", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))[1].tobytes())
        print(f"Pictures are in {path}")
    for problem in report.problems[: args.problems]:
        print(f"problem: {problem}")
    if len(report.problems) > args.problems:
        print(f"and {len(report.problems) - args.problems} more")
    print(f"{len(report.problems)} problems" if report.problems else "Nothing is wrong")
    return 1 if report.problems else 0


def print_statistics(report: Report, metadata: Metadata) -> None:
    """A line for each class that occurs, the most frequent first, and the names of those that do not."""
    names, counts = metadata.get("stuff_classes") or metadata.get("thing_classes") or [], report.counts
    if not counts.objects:
        print("No annotations")
        return
    print(class_table(counts, names, report.size))
    print(f"At most {counts.most[0]} objects in an image ({counts.most[1]}): the model needs as many queries")
    absent = [name for number, name in enumerate(names) if number not in counts.objects]
    if absent:
        print(f"{len(absent)} of {len(names)} classes do not occur: {first_few(absent, 20)}")


def draw_sheet(records: Sequence[dict[str, Any]], metadata: Metadata) -> np.ndarray:
    """Images and their annotations, two pairs in a row; RGB (H, W, 3)."""
    pictures = [picture for record in records for picture in _draw(record, metadata)]
    rows = [pictures[start : start + 4] for start in range(0, len(pictures), 4)]
    return contact_sheet(rows, ["image", "annotation"] * min(2, len(records)), cell=(400, 300))


def _draw(record: dict[str, Any], metadata: Metadata) -> list[np.ndarray]:
    image = read_image(record["file_name"])
    if "pan_seg_file_name" in record:
        return [
            image,
            draw_panoptic(image, read_panoptic_png(record["pan_seg_file_name"]), record["segments_info"], metadata),
        ]
    if "annotations" in record:
        size = (image.shape[0], image.shape[1])
        classes, masks = instance_targets(record["annotations"], size).transformed(NoOpTransform(), size)
        return [image, draw_instances(image, masks, classes, metadata)]
    if "sem_seg_file_name" in record:
        return [image, draw_semantic(image, read_label_map(record["sem_seg_file_name"]), metadata)]
    return [image, image]


def _check(records: Sequence[dict[str, Any]], metadata: Metadata, workers: int) -> Iterator[Report]:
    check = partial(check_record, metadata.as_dict())
    if workers <= 1 or len(records) < 2:
        yield from map(check, records)
        return
    with ProcessPoolExecutor(min(workers, len(records))) as pool:
        yield from pool.map(check, records, chunksize=4)


if __name__ == "__main__":
    run(main)

"""Ground truth read from COCO panoptic and COCO instance files, or from dataset dicts, indexed by image.

Classes are contiguous.
"""

import logging
import os
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import pycocotools.mask as mask_util

from mask2former.d2.data import DatasetCatalog, Metadata
from mask2former.data.datasets.coco_json import instances_by_image, panoptic_annotations, read_annotations
from mask2former.data.images import DataError, read_panoptic_png
from mask2former.data.labels import read_segments
from mask2former.data.rle import RLE, encode_mask
from mask2former.data.segmentation import check_segmentation, find_wrong_code

logger = logging.getLogger(__name__)


class UnlabelledError(ValueError):
    """A file lists images without annotations, as those of test sets do."""


@dataclass(frozen=True, kw_only=True)
class GroundTruthInstance:
    """One object: its contiguous class, compressed RLE, area in pixels, and whether it stands for a crowd."""

    category_id: int
    rle: RLE
    area: float
    iscrowd: bool


@dataclass(kw_only=True)
class PanopticGroundTruth:
    """A COCO panoptic JSON and the folder of its PNGs.

    `class_of` maps the categories of the JSON to contiguous classes; `things` holds the contiguous thing
    classes.
    """

    json_file: str
    root: str
    class_of: dict[int, int]
    things: frozenset[int]
    _annotations: dict[Hashable, dict[str, Any]] = field(init=False, repr=False)
    _last: tuple[Hashable, np.ndarray] | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        content = _read_labelled(self.json_file)
        annotations = panoptic_annotations(content, self.json_file)
        self._annotations = {annotation["image_id"]: annotation for annotation in annotations}

    def __contains__(self, image_id: Hashable) -> bool:
        return image_id in self._annotations

    @property
    def image_ids(self) -> Iterable[Hashable]:
        return self._annotations.keys()

    def read(self, image_id: Hashable) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """The map of segment ids, int32 (H, W) with 0 = void, and its segments with contiguous `category_id`.

        The map of the last image is kept, because several evaluators ask for the same one in turn.

        Raises:
            KeyError: the image is not in the JSON, or a segment has a category unknown to the data set.
            FileNotFoundError, ValueError: the PNG is missing or cannot be read.
        """
        annotation = self._annotation(image_id)
        if self._last is None or self._last[0] != image_id:
            self._last = (image_id, self._read_png(annotation))
        segments = []
        for segment in annotation["segments_info"]:
            category = segment["category_id"]
            if category not in self.class_of:
                raise KeyError(
                    f"{self.json_file}: image {image_id!r}, segment {segment['id']}: "
                    f"category id {category} is not a category of the data set"
                )
            segments.append({**segment, "category_id": self.class_of[category]})
        return self._last[1], segments

    def file_name(self, image_id: Hashable) -> str:
        """Path of the PNG of an image."""
        return os.path.join(self.root, self._annotation(image_id)["file_name"])

    def _read_png(self, annotation: dict[str, Any]) -> np.ndarray:
        path, ids = self._read_ids(annotation)
        absent = [s["id"] for s in annotation["segments_info"] if not (ids == s["id"]).any()]
        if absent:
            logger.warning("%s: segments %s of %s are not in this PNG", path, absent, self.json_file)
        return ids

    def _read_ids(self, annotation: dict[str, Any]) -> tuple[str, np.ndarray]:
        path = os.path.join(self.root, annotation["file_name"])
        return path, read_panoptic_png(path)

    def instances(self, image_id: Hashable) -> list[GroundTruthInstance]:
        """The thing segments of an image; crowd segments keep `iscrowd`."""
        ids, segments = self.read(image_id)
        instances = []
        for segment in segments:
            if segment["category_id"] not in self.things:
                continue
            mask = ids == segment["id"]
            instances.append(
                GroundTruthInstance(
                    category_id=segment["category_id"],
                    rle=encode_mask(mask),
                    area=float(np.count_nonzero(mask)),
                    iscrowd=bool(segment.get("iscrowd", 0)),
                )
            )
        return instances

    def _annotation(self, image_id: Hashable) -> dict[str, Any]:
        return _lookup(self._annotations, image_id, self.json_file)


@dataclass(kw_only=True)
class InstanceGroundTruth:
    """A COCO instance JSON; polygons and run lengths are both understood."""

    json_file: str
    class_of: dict[int, int]
    _images: dict[Hashable, dict[str, Any]] = field(init=False, repr=False)
    _annotations: dict[Hashable, list[dict[str, Any]]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        content = _read_labelled(self.json_file)
        self._images = {image["id"]: image for image in content["images"]}
        self._annotations = instances_by_image(content, self.json_file)

    def __contains__(self, image_id: Hashable) -> bool:
        return image_id in self._images

    @property
    def image_ids(self) -> Iterable[Hashable]:
        return self._images.keys()

    def instances(self, image_id: Hashable) -> list[GroundTruthInstance]:
        """The objects of an image. Categories outside the data set's thing classes are left out, as in
        COCOeval.

        Raises:
            KeyError: the image is not in the JSON.
        """
        image = _lookup(self._images, image_id, self.json_file)
        instances = []
        for annotation in self._annotations[image_id]:
            if annotation["category_id"] not in self.class_of:
                continue
            rle = encode_annotation(annotation["segmentation"], image["height"], image["width"])
            instances.append(
                GroundTruthInstance(
                    category_id=self.class_of[annotation["category_id"]],
                    rle=rle,
                    area=annotation["area"] if "area" in annotation else float(mask_util.area(rle)),
                    iscrowd=bool(annotation.get("iscrowd", 0)),
                )
            )
        return instances


@dataclass(kw_only=True)
class PanopticRecords(PanopticGroundTruth):
    """Dataset dicts with panoptic PNGs, in place of the JSON; `json_file` is what messages call them."""

    records: Sequence[dict[str, Any]] = field(repr=False)

    def __post_init__(self) -> None:
        self._annotations = {record["image_id"]: record for record in self.records}

    def file_name(self, image_id: Hashable) -> str:
        path: str = self._annotation(image_id)["pan_seg_file_name"]
        return path

    def _read_ids(self, annotation: dict[str, Any]) -> tuple[str, np.ndarray]:
        return annotation["pan_seg_file_name"], read_segments(annotation)


@dataclass(kw_only=True)
class InstanceRecords:
    """Dataset dicts with annotations; `json_file` is what messages call them."""

    json_file: str
    records: Sequence[dict[str, Any]] = field(repr=False)
    _by_image: dict[Hashable, dict[str, Any]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._by_image = {record["image_id"]: record for record in self.records}

    def __contains__(self, image_id: Hashable) -> bool:
        return image_id in self._by_image

    @property
    def image_ids(self) -> Iterable[Hashable]:
        return self._by_image.keys()

    def instances(self, image_id: Hashable) -> list[GroundTruthInstance]:
        """The objects of an image.

        Raises:
            KeyError: there is no such image.
            DataError: a mask that is none of this image.
        """
        record = _lookup(self._by_image, image_id, self.json_file)
        height, width = record["height"], record["width"]
        instances = []
        for place, annotation in enumerate(record.get("annotations", ()), 1):
            try:
                rle = encode_annotation(check_segmentation(annotation["segmentation"], height, width), height, width)
                if find_wrong_code([rle]) is not None:
                    raise ValueError("run lengths that do not add up to the image's pixels")
            except (ValueError, TypeError) as error:
                raise DataError(f"{record['file_name']}: object {place}: {error}") from error
            instances.append(
                GroundTruthInstance(
                    category_id=annotation["category_id"],
                    rle=rle,
                    area=annotation["area"] if "area" in annotation else float(mask_util.area(rle)),
                    iscrowd=bool(annotation.get("iscrowd", 0)),
                )
            )
        return instances


def panoptic_ground_truth(metadata: Metadata) -> PanopticGroundTruth | None:
    """The panoptic ground truth that `metadata` names; evaluators of one data set share one object.

    Without `panoptic_json` it is that of the dataset dicts, if these name panoptic PNGs. None where neither has
    annotations.
    """
    if not metadata.get("panoptic_json"):
        truth = _ground_truth_of_records(metadata)
        return truth if isinstance(truth, PanopticGroundTruth) else None
    json_file = str(metadata.panoptic_json)
    things = metadata.get("thing_dataset_id_to_contiguous_id") or {}
    try:
        return _cached_panoptic_ground_truth(
            json_file,
            str(metadata.panoptic_root),
            tuple(class_of_category(metadata).items()),
            tuple(things.values()),
            os.stat(json_file).st_mtime_ns,
        )
    except UnlabelledError:
        return None


def instance_ground_truth(metadata: Metadata) -> InstanceGroundTruth | InstanceRecords | PanopticGroundTruth | None:
    """The objects in `json_file`, or, where there is no such file, the things of the panoptic ground truth.

    Where the metadata name no file, the annotations of the dataset dicts.

    None where neither has annotations.
    """
    json_file = metadata.get("json_file")
    if json_file is None and not metadata.get("panoptic_json"):
        return _ground_truth_of_records(metadata)
    if json_file is None or (metadata.get("panoptic_json") is not None and not os.path.exists(json_file)):
        logger.info(
            "%s: AP against the things of the panoptic annotations (json_file is %s)",
            metadata.name,
            "not set" if json_file is None else f"{json_file}, which does not exist",
        )
        return panoptic_ground_truth(metadata)
    class_of = dict(metadata.thing_dataset_id_to_contiguous_id)
    try:
        return InstanceGroundTruth(json_file=str(json_file), class_of=class_of)
    except UnlabelledError:
        return None


def _ground_truth_of_records(metadata: Metadata) -> InstanceRecords | PanopticRecords | None:
    if metadata.name not in DatasetCatalog:
        return None
    things = metadata.get("thing_dataset_id_to_contiguous_id") or {}
    num_classes = max([*class_of_category(metadata).values(), -1]) + 1
    return _cached_ground_truth_of_records(
        metadata.name, DatasetCatalog[metadata.name], tuple(things.values()), num_classes
    )


def class_of_category(metadata: Metadata) -> dict[int, int]:
    """Contiguous classes by the category ids of a panoptic set's files."""
    things = metadata.get("thing_dataset_id_to_contiguous_id") or {}
    stuff = metadata.get("stuff_dataset_id_to_contiguous_id") or {}
    return {**stuff, **things}


@lru_cache(maxsize=2)
def _cached_panoptic_ground_truth(
    json_file: str, root: str, class_of: tuple[tuple[int, int], ...], things: tuple[int, ...], mtime_ns: int
) -> PanopticGroundTruth:
    return PanopticGroundTruth(json_file=json_file, root=root, class_of=dict(class_of), things=frozenset(things))


@lru_cache(maxsize=2)
def _cached_ground_truth_of_records(
    name: str, load: Callable[[], list[dict[str, Any]]], things: tuple[int, ...], num_classes: int
) -> InstanceRecords | PanopticRecords | None:
    """Of a registered function: evaluators of one data set share one object."""
    records, title = load(), f"data set {name}"
    if all("pan_seg_file_name" in record for record in records):
        class_of = {number: number for number in range(num_classes)}
        return PanopticRecords(json_file=title, root="", class_of=class_of, things=frozenset(things), records=records)
    if all("annotations" in record for record in records):
        return InstanceRecords(json_file=title, records=records)
    return None


def encode_annotation(segmentation: list | RLE, height: int, width: int) -> RLE:
    """A checked COCO `segmentation`, polygons or compressed run lengths, as compressed run lengths."""
    if isinstance(segmentation, list):
        return mask_util.merge(mask_util.frPyObjects(segmentation or [[0.0] * 6], height, width))
    return segmentation


def _read_labelled(path: str) -> dict[str, Any]:
    content = read_annotations(path, labelled=False)
    if "annotations" not in content:
        raise UnlabelledError(f"{path}: holds no annotations, so nothing can be evaluated against it")
    return content


def _lookup(table: dict[Hashable, Any], image_id: Hashable, path: str) -> Any:
    if image_id not in table:
        raise KeyError(f"{path}: has no image {image_id!r}")
    return table[image_id]

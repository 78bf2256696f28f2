"""Data sets in COCO's formats, the built-in ones and a user's own.

Registering touches no file. Files are read and checked when the data set is asked for.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as mask_api

from mask2former.d2.data import DatasetCatalog, MetadataCatalog
from mask2former.d2.structures import BoxMode
from mask2former.data.datasets.coco_json import (
    check_ids,
    images_by_id,
    instances_by_image,
    panoptic_annotations,
    read_annotations,
)
from mask2former.data.datasets.metadata import (
    DEFAULT_HINT,
    Category,
    PathLike,
    check_categories,
    check_folder,
    first_few,
    instance_metadata,
    is_free,
    load_categories,
    panoptic_metadata,
    things_first,
    unseparated_metadata,
)
from mask2former.data.images import DataError

logger = logging.getLogger(__name__)


def register_coco_panoptic(
    name: str,
    *,
    image_root: PathLike,
    panoptic_root: PathLike | None,
    panoptic_json: PathLike,
    categories: Sequence[Category] | None = None,
    instances_json: PathLike | None = None,
    sem_seg_root: PathLike | None = None,
    sem_seg_required: bool = False,
    missing_hint: str = DEFAULT_HINT,
    **metadata: Any,
) -> None:
    """Registers a panoptic set in COCO's format, so that configs can name it in DATASETS.

    Args:
        image_root: folder of the images that `panoptic_json` names.
        panoptic_root: folder of its panoptic PNGs; None for a test set.
        panoptic_json: without `annotations`, as COCO's files of test sets are, the set has no labels: evaluation
            writes predictions and scores nothing.
        categories: classes in the order of the model's output. Without it they are read from `panoptic_json`
            at first use: things by id, then stuff by id.
        instances_json: COCO instance annotations of the same images, to evaluate AP on; without it the things
            of the panoptic PNGs serve.
        sem_seg_root: folder of semantic label PNGs of contiguous ids, named as the panoptic ones.
        sem_seg_required: whether that folder must be there; otherwise the panoptic PNGs serve in its place.
        missing_hint: what a user should do when a file is missing; ends the error message.
        metadata: more attributes for the `MetadataCatalog`, e.g. another `evaluator_type`.

    Raises:
        AssertionError: the name is taken.
    """
    source = os.fspath(panoptic_json)
    if categories is not None:
        check_categories(categories, f"categories of {name}", panoptic=True)
        metadata = {**panoptic_metadata(categories), **metadata}

    def load() -> list[dict[str, Any]]:
        content = read_annotations(source, missing_hint, labelled=False)
        if categories is None:
            check_categories(content["categories"], source, panoptic=True)
            MetadataCatalog.get(name).set(**panoptic_metadata(things_first(content["categories"])))
        roots = [image_root] if panoptic_root is None else [image_root, panoptic_root]
        for folder in (*roots, *([sem_seg_root] if sem_seg_required and sem_seg_root else [])):
            check_folder(folder, name, missing_hint)
        known = MetadataCatalog.get(name).as_dict()
        return panoptic_dicts(
            content,
            source,
            image_root=image_root,
            panoptic_root=panoptic_root,
            metadata=known,
            sem_seg_root=sem_seg_root,
        )

    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(
        image_root=os.fspath(image_root),
        panoptic_root=None if panoptic_root is None else os.fspath(panoptic_root),
        panoptic_json=source,
        json_file=None if instances_json is None else os.fspath(instances_json),
        **{"evaluator_type": "coco_panoptic_seg", "ignore_label": 255, "label_divisor": 1000, **metadata},
    )
    if sem_seg_root is not None:
        MetadataCatalog.get(name).set(sem_seg_root=os.fspath(sem_seg_root))


def register_coco_instances(
    name: str,
    *,
    image_root: PathLike,
    json_file: PathLike,
    categories: Sequence[Category] | None = None,
    missing_hint: str = DEFAULT_HINT,
    **metadata: Any,
) -> None:
    """Registers an instance set in COCO's format; arguments and errors as in `register_coco_panoptic`.

    Without `categories`, those of `json_file` are used, by id.
    """
    source = os.fspath(json_file)
    if categories is not None:
        check_categories(categories, f"categories of {name}", panoptic=False)
        metadata = {**instance_metadata(categories), **metadata}

    def load() -> list[dict[str, Any]]:
        content = read_annotations(source, missing_hint, labelled=False)
        if categories is None:
            check_categories(content["categories"], source, panoptic=False)
            by_id = sorted(content["categories"], key=lambda category: category["id"])
            MetadataCatalog.get(name).set(**instance_metadata(by_id))
        check_folder(image_root, name, missing_hint)
        ids = MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id
        return instance_dicts(content, source, image_root=image_root, contiguous_ids=ids)

    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(
        image_root=os.fspath(image_root), json_file=source, **{"evaluator_type": "coco", **metadata}
    )


def panoptic_dicts(
    content: Mapping[str, Any],
    source: str,
    *,
    image_root: PathLike,
    panoptic_root: PathLike | None,
    metadata: Mapping[str, Any],
    sem_seg_root: PathLike | None = None,
) -> list[dict[str, Any]]:
    """Dataset dicts of the parsed panoptic JSON `content` (of file `source`), one per image, by image id.

    Without `annotations` in it, they have images alone.

    `sem_seg_file_name` is there only when the folder `sem_seg_root` is; the PNGs hold the same labels.

    Raises:
        DataError: image ids given twice, annotations without image or the reverse, a category id that
            `metadata` does not know, a segment id given twice or outside 1..256³-1.
    """
    images = images_by_id(content, source)
    if "annotations" not in content or panoptic_root is None:
        return [_image_record(images[key], image_root) for key in sorted(images)]
    annotations = panoptic_annotations(content, source)
    annotated = {annotation["image_id"] for annotation in annotations}
    check_ids(source, "annotated but not listed under images", [key for key in annotated if key not in images])
    check_ids(source, "listed under images but not annotated", [key for key in images if key not in annotated])
    if sem_seg_root is not None and not os.path.isdir(sem_seg_root):
        logger.info("%s is absent; semantic labels come from the panoptic PNGs", sem_seg_root)
        sem_seg_root = None

    dicts = []
    for annotation in sorted(annotations, key=lambda record: record["image_id"]):
        image = images[annotation["image_id"]]
        record = _image_record(image, image_root)
        record["pan_seg_file_name"] = os.path.join(panoptic_root, annotation["file_name"])
        record["segments_info"] = _convert_segments(annotation, source, metadata)
        if sem_seg_root is not None:
            record["sem_seg_file_name"] = os.path.join(sem_seg_root, annotation["file_name"])
        dicts.append(record)
    return dicts


def instance_dicts(
    content: Mapping[str, Any], source: str, *, image_root: PathLike, contiguous_ids: Mapping[int, int]
) -> list[dict[str, Any]]:
    """Dataset dicts of the parsed instance JSON `content` (of file `source`), one per image, by image id.

    Without `annotations` in it, they have images alone.

    Raises:
        DataError: ids given twice, an annotation of an unlisted image or category, or without a mask.
    """
    if "annotations" not in content:
        images = images_by_id(content, source)
        return [_image_record(images[key], image_root) for key in sorted(images)]
    instances = instances_by_image(content, source)
    dicts = {image["id"]: _image_record(image, image_root) for image in content["images"]}
    for key, annotations in instances.items():
        for annotation in annotations:
            if annotation["category_id"] not in contiguous_ids:
                raise DataError(
                    f"{source}: annotation {annotation['id']} of image {key}: unknown category id "
                    f"{annotation['category_id']}; known are {first_few(contiguous_ids)}"
                )
        dicts[key]["annotations"] = [
            {
                "bbox": annotation.get("bbox") or _box(annotation["segmentation"]),
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": contiguous_ids[annotation["category_id"]],
                "iscrowd": annotation.get("iscrowd", 0),
                "segmentation": annotation["segmentation"],
                **({"area": annotation["area"]} if "area" in annotation else {}),
            }
            for annotation in annotations
        ]
    return [dicts[key] for key in sorted(dicts)]


def _convert_segments(annotation: Mapping[str, Any], source: str, metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
    things = metadata["thing_dataset_id_to_contiguous_id"]
    stuff = metadata["stuff_dataset_id_to_contiguous_id"]
    segments = []
    for segment in annotation["segments_info"]:
        category = segment["category_id"]
        if category not in things and category not in stuff:
            raise DataError(
                f"{source}: image {annotation['image_id']} ({annotation['file_name']}): segment {segment['id']}: "
                f"unknown category id {category}; known are {first_few([*things, *stuff])}"
            )
        isthing = category in things
        contiguous = things[category] if isthing else stuff[category]
        segments.append(
            {**segment, "category_id": contiguous, "isthing": isthing, "iscrowd": segment.get("iscrowd", 0)}
        )
    return segments


def _box(segmentation: Any) -> list[float]:
    """The smallest (x, y, width, height) around a mask."""
    if isinstance(segmentation, Mapping):
        return mask_api.toBbox(segmentation).tolist()
    corners = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in segmentation] or [np.zeros((1, 2))])
    low, high = corners.min(axis=0), corners.max(axis=0)
    return [*low.tolist(), *(high - low).tolist()]


def _image_record(image: Mapping[str, Any], image_root: PathLike) -> dict[str, Any]:
    return {
        "file_name": os.path.join(image_root, image["file_name"]),
        "image_id": image["id"],
        "height": image["height"],
        "width": image["width"],
    }


def register_coco(root: PathLike) -> None:
    """Registers COCO 2017 under its published names, except those in use; `root` holds the folder `coco`."""
    folder = Path(root) / "coco"
    categories = load_categories("coco_panoptic_133")
    things = [category for category in categories if category["isthing"]]
    for split in ("train", "val"):
        image_root = folder / f"{split}2017"
        instances_json = folder / "annotations" / f"instances_{split}2017.json"
        name = f"coco_2017_{split}"
        if is_free(name):
            register_coco_instances(name, image_root=image_root, json_file=instances_json, categories=things)
        sem_seg_root = folder / f"panoptic_semseg_{split}2017"
        for suffix, extra, metadata in (
            ("", None, unseparated_metadata(categories)),
            ("_with_sem_seg", sem_seg_root, panoptic_metadata(categories)),
        ):
            if is_free(f"{name}_panoptic{suffix}"):
                register_coco_panoptic(
                    f"{name}_panoptic{suffix}",
                    image_root=image_root,
                    panoptic_root=folder / f"panoptic_{split}2017",
                    panoptic_json=folder / "annotations" / f"panoptic_{split}2017.json",
                    categories=categories,
                    instances_json=instances_json,
                    sem_seg_root=extra,
                    **metadata,
                )
    _register_test_dev(folder, categories)


def _register_test_dev(folder: Path, categories: Sequence[Category]) -> None:
    """The images of COCO's test server, which keeps the labels."""
    name, image_root = "coco_2017_test-dev", folder / "test2017"
    source = folder / "annotations" / "image_info_test-dev2017.json"
    if is_free(name):
        things = [category for category in categories if category["isthing"]]
        register_coco_instances(name, image_root=image_root, json_file=source, categories=things)
    if is_free(f"{name}_panoptic"):
        register_coco_panoptic(
            f"{name}_panoptic",
            image_root=image_root,
            panoptic_root=None,
            panoptic_json=source,
            categories=categories,
            **unseparated_metadata(categories),
        )

"""Pictures of the images that went best and worst, from the predictions that the evaluation has written."""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch

from mask2former.d2.data import DatasetCatalog, Metadata
from mask2former.d2.structures import Instances
from mask2former.data.datasets.metadata import dataset_metadata
from mask2former.data.images import read_label_map, read_panoptic_png
from mask2former.evaluation.base import image_key
from mask2former.evaluation.details import Details, ImageScore
from mask2former.evaluation.ground_truth import class_of_category
from mask2former.evaluation.instance import DEFAULT_THRESHOLD
from mask2former.evaluation.output import prediction_name
from mask2former.evaluation.pictures import draw_comparison

logger = logging.getLogger(__name__)

Output = dict[str, Any]


@dataclass(frozen=True)
class Extreme:
    """An image that went well or badly; the picture is RGB uint8, or None where data or predictions are not there."""

    image: ImageScore
    file_name: str
    picture: np.ndarray | None


def best_and_worst(details: Details, count: int) -> tuple[list[ImageScore], list[ImageScore]]:
    """The `count` images of the highest and of the lowest scores; none is in both."""
    ranked = sorted(
        (image for image in details.images if image.score is not None), key=lambda image: -(image.score or 0)
    )
    best = ranked[: min(count, (len(ranked) + 1) // 2)]
    return best, ranked[len(best) :][::-1][:count]


def draw_extremes(details: Details, folder: Path, images: list[ImageScore]) -> list[Extreme]:
    """Draw images of a data set beside truth and prediction.

    Where the data set is not registered, or predictions were not written, the pictures are left out.

    Args:
        folder: of the predictions for the data set.
    """
    if not images or details.dataset not in DatasetCatalog.list():
        return [Extreme(image, "", None) for image in images]
    try:
        records = {image_key(record): record for record in DatasetCatalog.get(details.dataset)}
    except OSError as error:
        logger.warning("The best and worst images of %s cannot be drawn: %s", details.dataset, error)
        return [Extreme(image, "", None) for image in images]
    metadata = dataset_metadata(details.dataset)
    read = _READERS[details.task](details, folder, metadata, {image.image for image in images})
    extremes = []
    for image in images:
        record = records.get(image.image)
        picture = None
        if record is not None:
            try:
                picture = draw_comparison(record, read(record), metadata, score_threshold=0.0)
            except FileNotFoundError:
                picture = None
        extremes.append(Extreme(image, record["file_name"] if record else "", picture))
    return extremes


Reader = Callable[[Mapping[str, Any]], Output]


def _panoptic(details: Details, folder: Path, metadata: Metadata, wanted: set[Any]) -> Reader:
    written = _read_json(folder / "panoptic_predictions.json", {"annotations": []})["annotations"]
    annotations = {entry["image_id"]: entry for entry in written if entry["image_id"] in wanted}
    class_of = class_of_category(metadata)
    things = set((metadata.get("thing_dataset_id_to_contiguous_id") or {}).values())

    def read(record: Mapping[str, Any]) -> Output:
        annotation = annotations.get(image_key(dict(record)))
        if annotation is None:
            raise FileNotFoundError(folder)
        ids = read_panoptic_png(folder / "panoptic_predictions" / annotation["file_name"])
        segments = [{"id": s["id"], "category_id": class_of[s["category_id"]]} for s in annotation["segments_info"]]
        return {"panoptic_seg": (ids, [{**s, "isthing": s["category_id"] in things} for s in segments])}

    return read


def _semantic(details: Details, folder: Path, metadata: Metadata, wanted: set[Any]) -> Reader:
    def read(record: Mapping[str, Any]) -> Output:
        labels = read_label_map(folder / "semantic_predictions" / f"{prediction_name(dict(record))}.png")
        return {"sem_seg": torch.from_numpy(labels)}

    return read


def _instances(details: Details, folder: Path, metadata: Metadata, wanted: set[Any]) -> Reader:
    """Of each image the instances that reach the score of highest F1 of their class."""
    class_of = metadata.thing_dataset_id_to_contiguous_id
    names = [*details.classes]
    place = {category: index for index, category in enumerate(sorted(class_of.values()))}
    found: dict[Any, list[dict[str, Any]]] = {}
    for entry in _read_json(folder / "coco_instances_results.json", []):
        name = names[place[class_of[entry["category_id"]]]]
        if entry["image_id"] in wanted and entry["score"] >= details.score_thresholds.get(name, DEFAULT_THRESHOLD):
            found.setdefault(entry["image_id"], []).append(entry)

    def read(record: Mapping[str, Any]) -> Output:
        entries = found.get(record["image_id"], [])
        size = (record["height"], record["width"])
        masks = [mask_util.decode(entry["segmentation"]).astype(bool) for entry in entries]
        instances = Instances(
            size,
            pred_masks=torch.from_numpy(np.array(masks, dtype=bool).reshape(-1, *size)),
            pred_classes=torch.tensor([class_of[entry["category_id"]] for entry in entries], dtype=torch.int64),
            scores=torch.tensor([entry["score"] for entry in entries]),
        )
        return {"instances": instances}

    return read


_READERS = {"panoptic_seg": _panoptic, "sem_seg": _semantic, "segm": _instances}


def _read_json(file: Path, default: Any) -> Any:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else default

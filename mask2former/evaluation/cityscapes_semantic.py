"""Semantic segmentation on Cityscapes: IoU and iIoU of classes and categories, cityscapesscripts' numbers.

Legend: C classes, H and W image height and width.
"""

import logging
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from tabulate import tabulate

from mask2former.data.images import DataError, read_label_map
from mask2former.evaluation.base import ImageEvaluator
from mask2former.evaluation.cityscapes_labels import (
    FIRST_OBJECT,
    CityscapesFiles,
    CityscapesLabel,
    frame_name,
    labels_of,
)
from mask2former.evaluation.output import encode_png, model_output
from mask2former.evaluation.semantic import confusion_matrix, label_map
from mask2former.files import write_bytes

logger = logging.getLogger(__name__)

_LAST_LABEL_ID = 33
CLASS, CATEGORY = range(2)


def weighted_hits(predicted: np.ndarray, instance_ids: np.ndarray, labels: Sequence[CityscapesLabel]) -> np.ndarray:
    """Pixels of objects found and missed, each weighted by mean area of its class over area of the object.

    Args:
        predicted: int (H, W), contiguous classes.
        instance_ids: int (H, W), as in `*_instanceIds.png`.
        labels: of the C contiguous classes.

    Returns:
        float64 (2, 2, C): hits by class and by category (right category is enough); of all, found and missed.
        The class is that of the object.
    """
    result = np.zeros((2, 2, len(labels)))
    class_of = {label.id: index for index, label in enumerate(labels) if label.mean_area is not None}
    categories = sorted({label.category for label in labels})
    category_of = np.array([categories.index(label.category) for label in labels])
    in_object = instance_ids >= FIRST_OBJECT
    objects, index = np.unique(instance_ids[in_object], return_inverse=True)
    evaluated = np.array([class_of.get(number // FIRST_OBJECT, -1) for number in objects.tolist()], dtype=np.int64)
    found = predicted[in_object]
    areas = np.bincount(index, minlength=len(objects))
    right = {
        CLASS: found == evaluated[index],
        CATEGORY: category_of[found] == category_of[evaluated][index],
    }
    for kind, hit in right.items():
        hits = np.bincount(index[hit], minlength=len(objects))
        for i in np.flatnonzero(evaluated >= 0):
            weight = (labels[evaluated[i]].mean_area or 0.0) / areas[i]
            result[kind, :, evaluated[i]] += (hits[i] * weight, (areas[i] - hits[i]) * weight)
    return result


def cityscapes_ious(
    confusion: np.ndarray, hits: np.ndarray, labels: Sequence[CityscapesLabel]
) -> dict[str, np.ndarray]:
    """IoU of classes `IoU`, `iIoU` (C,) and of categories `IoU_sup`, `iIoU_sup`, 0..1, nan where undefined.

    Categories come in the order of their first class; iIoU exists for objects only.

    Args:
        confusion: counts (C, C), row = truth.
        hits: (2, 2, C), see `weighted_hits`.
    """
    member = np.eye(len(labels), dtype=bool)
    categories = list(dict.fromkeys(label.category for label in labels))
    grouped = np.array([[label.category == category for label in labels] for category in categories])
    has_objects = np.array([label.mean_area is not None for label in labels])
    result = {}
    for suffix, groups, kind in (("", member, CLASS), ("_sup", grouped, CATEGORY)):
        inside = [int(confusion[np.ix_(group, group)].sum()) for group in groups]
        false_alarms = [int(confusion[np.ix_(~group, group)].sum()) for group in groups]
        in_truth = [int(confusion[group].sum()) for group in groups]
        result["IoU" + suffix] = _ratio(inside, np.add(in_truth, false_alarms))
        found, missed = (np.array([hits[kind, part][group].sum() for group in groups]) for part in (0, 1))
        instance_iou = _ratio(found, found + missed + false_alarms)
        instance_iou[[not has_objects[group].all() for group in groups]] = np.nan
        result["iIoU" + suffix] = instance_iou
    return result


class CityscapesSemSegEvaluator(ImageEvaluator):
    """IoU and iIoU over the data set, image by image; no prediction is kept.

    Reads `sem_seg` of the model's output, scores (C, H, W) or labels (H, W), and `*_labelIds.png`, `*_instanceIds.png`.
    """

    def __init__(self, dataset_name: str, output_dir: str | None = None, *, distributed: bool = True) -> None:
        """
        Args:
            dataset_name: a registered Cityscapes set with the 19 `stuff_classes` by their names.
            output_dir: when given, predictions are written to `semantic_predictions/*_pred.png` there, as
                label ids, which is what the benchmark's server takes.
            distributed: see `ImageEvaluator`.
        """
        super().__init__(dataset_name, output_dir, distributed=distributed)
        self._class_names = list(self._metadata.stuff_classes)
        self._labels = labels_of(self._class_names, f"stuff_classes of {dataset_name}")
        self._label_ids = np.array([label.id for label in self._labels], dtype=np.uint8)
        self._files = CityscapesFiles(self._metadata)
        self._check_labels(self._files.are_labelled)
        self.reset()

    def reset(self) -> None:
        super().reset()
        self._confusion = np.zeros((len(self._labels),) * 2, dtype=np.int64)
        self._hits = np.zeros((2, 2, len(self._labels)))

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """
        Raises:
            KeyError: the output has no `sem_seg`.
            FileNotFoundError: the image has no ground truth.
            ValueError: an image comes twice, sizes differ, or a label of the truth is out of range.
        """
        for inp, output in zip(inputs, outputs, strict=True):
            scores = model_output(output, "sem_seg", "SEMANTIC_ON")
            if scores.ndim == 3 and scores.shape[0] != len(self._labels):
                raise ValueError(f"the model scores {scores.shape[0]} classes, Cityscapes has {len(self._labels)}")
            name = frame_name(inp["file_name"])
            self._add(name)
            predicted = label_map(scores)
            if self._files.are_labelled:
                self._score(inp["file_name"], predicted)
            if self._output_dir is not None:
                path = os.path.join(self._output_dir, "semantic_predictions", f"{name}_pred.png")
                write_bytes(path, encode_png(self._label_ids[predicted]))

    def _score(self, file_name: str, predicted: np.ndarray) -> None:
        path = self._files.path(file_name, "labelIds")
        truth = self._contiguous(read_label_map(path), path)
        try:
            self._confusion += confusion_matrix(
                predicted, truth, num_classes=len(self._labels), ignore_label=len(self._labels)
            )
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        instance_ids = read_label_map(self._files.path(file_name, "instanceIds"))
        self._hits += weighted_hits(predicted, instance_ids, self._labels)

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """`{"sem_seg": {IoU, iIoU, IoU_sup, iIoU_sup, mIoU, IoU-name, iIoU-name}}` in percent, on the main process.

        None on the others. `IoU` is the mean over classes, as `mIoU`, the name it has on other data sets;
        `IoU_sup` is that over categories.
        """
        gathered = self._gather((self._confusion, self._hits), self._files.frames)
        if gathered is None:
            return None
        if not self._files.are_labelled:
            return self._unscored()
        confusion, hits = zip(*gathered, strict=True)
        ious = cityscapes_ious(np.sum(confusion, axis=0), np.sum(hits, axis=0), self._labels)
        result = {name: _mean(ious[name]) for name in ("IoU", "iIoU", "IoU_sup", "iIoU_sup")}
        result["mIoU"] = result["IoU"]
        has_objects = [label.mean_area is not None for label in self._labels]
        for metric, exists in (("IoU", [True] * len(self._labels)), ("iIoU", has_objects)):
            for i in np.flatnonzero(exists):
                result[f"{metric}-{self._class_names[i]}"] = 100 * float(ious[metric][i])
        rows = [[n, result[f"IoU-{n}"], result.get(f"iIoU-{n}")] for n in self._class_names]
        rows.insert(0, ["mean", result["IoU"], result["iIoU"]])
        rows.insert(1, ["mean of categories", result["IoU_sup"], result["iIoU_sup"]])
        table = tabulate(rows, headers=["", "IoU", "iIoU"], tablefmt="pipe", floatfmt=".2f", missingval="-")
        logger.info("Semantic segmentation on %s:\n%s", self._metadata.name, table)
        return {"sem_seg": result}

    def _contiguous(self, label_ids: np.ndarray, path: str) -> np.ndarray:
        """Contiguous classes, C where the label is not evaluated."""
        if label_ids.size and label_ids.max() > _LAST_LABEL_ID:
            raise DataError(
                f"{path}: label {label_ids.max()}, but label ids are 0..{_LAST_LABEL_ID}; restore the original file"
            )
        table = np.full(_LAST_LABEL_ID + 1, len(self._labels))
        table[self._label_ids] = np.arange(len(self._labels))
        return table[label_ids]


def _ratio(part: Any, whole: Any) -> np.ndarray:
    part, whole = np.asarray(part, dtype=float), np.asarray(whole, dtype=float)
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def _mean(values: np.ndarray) -> float:
    values = values[~np.isnan(values)]
    return 100 * float(values.mean()) if values.size else float("nan")

"""Semantic segmentation metrics from one confusion matrix.

Legend: C classes, H and W image height and width.
"""

import logging
import os
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor

from mask2former.d2.data import DatasetCatalog
from mask2former.data.labels import read_labels
from mask2former.evaluation.base import ImageEvaluator, image_key
from mask2former.evaluation.confusion import confusion_table, pixel_events, pixels_on_void
from mask2former.evaluation.details import Details, ImageScore, image_score, numbers
from mask2former.evaluation.ground_truth import PanopticGroundTruth, panoptic_ground_truth
from mask2former.evaluation.output import encode_png, model_output, prediction_name
from mask2former.files import write_bytes

logger = logging.getLogger(__name__)


def label_map(scores: Tensor) -> np.ndarray:
    """The class with the highest score of each pixel, the first of equal ones: int16 (H, W) of scores (C, H, W).

    `sem_seg` of a model with compact outputs, integers (H, W), is such a map already.

    On a CPU a running maximum over classes, which reads memory in order, is seven times as fast as `argmax` (133
    classes of 640x480 pixels); on other devices scores stay there until they are reduced.

    Raises:
        ValueError: there is no class.
    """
    if scores.ndim == 2:
        return scores.cpu().numpy()
    if not len(scores):
        raise ValueError(f"scores of shape {tuple(scores.shape)} hold no class")
    if scores.device.type != "cpu":
        return scores.argmax(dim=0).to(torch.int16).cpu().numpy()
    # numpy knows no bfloat16, and its float16 is slow.
    planes = (scores.float() if scores.dtype.itemsize < 4 else scores).detach().numpy()
    best = planes[0].copy()
    labels = np.zeros(best.shape, dtype=np.int16)
    better = np.empty(best.shape, dtype=bool)
    for index in range(1, len(planes)):
        np.greater(planes[index], best, out=better)
        np.maximum(planes[index], best, out=best)
        np.copyto(labels, np.int16(index), where=better)
    return labels


def confusion_matrix(predicted: np.ndarray, truth: np.ndarray, *, num_classes: int, ignore_label: int) -> np.ndarray:
    """Pixel counts int64 (C, C), row = truth, column = prediction, from integer maps (H, W).

    Pixels labelled `ignore_label` are left out.

    Raises:
        ValueError: the maps differ in size, or a label is neither in 0..C-1 nor `ignore_label`.
    """
    if predicted.shape != truth.shape:
        raise ValueError(f"the prediction is {predicted.shape}, the ground truth {truth.shape} (height, width)")
    valid = truth != ignore_label
    truth, predicted = truth[valid].astype(np.int64), predicted[valid].astype(np.int64)
    for name, labels in (("label", truth), ("predicted class", predicted)):
        outside = labels[(labels < 0) | (labels >= num_classes)]
        if outside.size:
            raise ValueError(
                f"{name} {int(outside[0])} is outside 0..{num_classes - 1} and not the ignore label {ignore_label}"
            )
    counts = np.bincount(truth * num_classes + predicted, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def semantic_metrics(confusion: np.ndarray, class_names: Sequence[str]) -> dict[str, float]:
    """`mIoU, fwIoU, mACC, pACC, IoU-name, ACC-name` in percent from counts (C, C), row = truth.

    Classes without a ground-truth pixel are nan and left out of the means.
    """
    hits = confusion.diagonal().astype(float)
    in_truth = confusion.sum(axis=1).astype(float)
    in_prediction = confusion.sum(axis=0).astype(float)
    occurs = in_truth > 0
    iou = np.full(len(hits), np.nan)
    accuracy = np.full(len(hits), np.nan)
    iou[occurs] = 100 * hits[occurs] / (in_truth + in_prediction - hits)[occurs]
    accuracy[occurs] = 100 * hits[occurs] / in_truth[occurs]
    pixels = in_truth.sum()
    result = dict.fromkeys(("mIoU", "fwIoU", "mACC", "pACC"), float("nan"))
    if pixels > 0:
        result = {
            "mIoU": float(iou[occurs].mean()),
            "fwIoU": float((iou[occurs] * in_truth[occurs]).sum() / pixels),
            "mACC": float(accuracy[occurs].mean()),
            "pACC": float(100 * hits.sum() / pixels),
        }
    for prefix, values in (("IoU", iou), ("ACC", accuracy)):
        result.update({f"{prefix}-{name}": float(value) for name, value in zip(class_names, values, strict=True)})
    return result


class SemSegEvaluator(ImageEvaluator):
    """mIoU, frequency-weighted IoU and pixel accuracies.

    Reads `sem_seg` of the model's output, scores (C, H, W), which are reduced to classes on their own device, or
    labels (H, W). The truth is the `sem_seg_file_name` of an image where the data set has one, otherwise its
    panoptic PNG: every pixel of a segment, crowds too, has the segment's class, as in COCO's conversion, and void is
    ignored.
    """

    def __init__(
        self, dataset_name: str, output_dir: str | None = None, *, distributed: bool = True, details: bool = False
    ) -> None:
        """
        Args:
            dataset_name: a registered data set whose metadata holds `stuff_classes` (all classes).
            output_dir: when given, predictions are written to `semantic_predictions/*.png` there, contiguous classes
                in 8 bits, or 16 if there are more than 256.
            distributed: see `ImageEvaluator`.
            details: write `Details` into the output_dir too.
        """
        super().__init__(dataset_name, output_dir, distributed=distributed)
        self._keeps_details = details and output_dir is not None
        self._class_names = list(self._metadata.stuff_classes)
        self._ignore_label = self._metadata.get("ignore_label", 255)
        keys = ("sem_seg_file_name", "sem_seg_values", "sem_seg_colors")
        self._label_files = {
            image_key(record): {key: record[key] for key in keys if key in record}
            for record in DatasetCatalog.get(dataset_name)
            if record.get("sem_seg_file_name")
        }
        self._ground_truth: PanopticGroundTruth | None = None
        if not self._label_files:
            self._ground_truth = panoptic_ground_truth(self._metadata)
        self._is_labelled = bool(self._label_files) or self._ground_truth is not None
        self._check_labels(self._is_labelled)
        self.reset()

    def reset(self) -> None:
        super().reset()
        num_classes = len(self._class_names)
        self._confusion = np.zeros((num_classes, num_classes), dtype=np.int64)
        self._on_void = confusion_table((), num_classes)
        self._images: list[ImageScore] = []

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """
        Raises:
            KeyError: the output has no `sem_seg`, or the image has no ground truth.
            ValueError: an image comes twice; sizes differ; a label (file and value are named) is out of
                range.
        """
        for inp, output in zip(inputs, outputs, strict=True):
            scores = model_output(output, "sem_seg", "SEMANTIC_ON")
            if scores.ndim == 3 and scores.shape[0] != len(self._class_names):
                raise ValueError(
                    f"the model scores {scores.shape[0]} classes, {self._metadata.name} has {len(self._class_names)}"
                )
            image_id = image_key(inp)
            labels = label_map(scores)
            if self._is_labelled:
                self._score(image_id, labels)
            self._add(image_id)
            if self._output_dir is not None:
                path = os.path.join(self._output_dir, "semantic_predictions", prediction_name(inp) + ".png")
                depth = np.uint8 if len(self._class_names) <= 256 else np.uint16
                write_bytes(path, encode_png(labels.astype(depth)))

    def _score(self, image_id: Hashable, labels: np.ndarray) -> None:
        truth, path, ignore_label = self._truth(image_id)
        try:
            num_classes = len(self._class_names)
            confusion = confusion_matrix(labels, truth, num_classes=num_classes, ignore_label=ignore_label)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        self._confusion += confusion
        if self._keeps_details:
            on_void = pixels_on_void(labels, truth, num_classes=num_classes, ignore_label=ignore_label)
            self._on_void += confusion_table([on_void], num_classes)
            score = semantic_metrics(confusion, self._class_names)["mIoU"] / 100
            self._images.append(image_score(image_id, score, pixel_events(confusion)))

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """`{"sem_seg": {mIoU, fwIoU, mACC, pACC, IoU-name, ACC-name}}` in percent on the main process.

        None on the others.
        """
        expected = self._label_files or (self._ground_truth.image_ids if self._ground_truth is not None else None)
        gathered = self._gather((self._confusion, self._on_void, self._images), expected)
        if gathered is None:
            return None
        if not self._is_labelled:
            return self._unscored()
        confusion = np.sum([part[0] for part in gathered], axis=0)
        result = semantic_metrics(confusion, self._class_names)
        if self._keeps_details:
            table = np.sum([part[1] for part in gathered], axis=0) + confusion_table(
                [pixel_events(confusion)], len(self._class_names)
            )
            self._write_details(result, table, [image for part in gathered for image in part[2]])
        rows = [[name, result[f"IoU-{name}"], result[f"ACC-{name}"]] for name in self._class_names]
        rows.insert(0, ["mean", result["mIoU"], result["mACC"]])
        table = tabulate(rows, headers=["", "IoU", "ACC"], tablefmt="pipe", floatfmt=".2f")
        logger.info("Semantic segmentation on %s:\n%s", self._metadata.name, table)
        return {"sem_seg": result}

    def _write_details(self, result: dict[str, float], table: np.ndarray, images: list[ImageScore]) -> None:
        in_truth = table[: len(self._class_names)].sum(axis=1)
        assert self._output_dir is not None
        Details(
            task="sem_seg",
            dataset=self._metadata.name,
            unit="pixels",
            score_name="mIoU",
            classes=self._class_names,
            columns={
                "% of pixels": numbers(100 * in_truth / max(int(in_truth.sum()), 1)),
                "IoU": numbers([result[f"IoU-{name}"] for name in self._class_names]),
                "accuracy": numbers([result[f"ACC-{name}"] for name in self._class_names]),
            },
            confusion=table.tolist(),
            images=images,
        ).write(self._output_dir)

    def _truth(self, image_id: Any) -> tuple[np.ndarray, str, int]:
        """Labels (H, W), the file they come from, and the label to ignore."""
        if self._ground_truth is None:
            if image_id not in self._label_files:
                raise KeyError(f"{self._metadata.name}: image {image_id!r} has no sem_seg_file_name")
            record = self._label_files[image_id]
            return read_labels(record), record["sem_seg_file_name"], self._ignore_label
        ids, segments = self._ground_truth.read(image_id)
        labels = np.full(ids.shape, -1, dtype=np.int64)
        for segment in segments:
            labels[ids == segment["id"]] = segment["category_id"]
        return labels, self._ground_truth.file_name(image_id), -1

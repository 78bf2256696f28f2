"""Panoptic quality (Kirillov et al., "Panoptic Segmentation", CVPR 2019, eq. 1), equal to panopticapi's.

Legend: C classes, H and W image height and width.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tabulate import tabulate

from mask2former.data.images import id_to_rgb
from mask2former.evaluation.base import ImageEvaluator
from mask2former.evaluation.boundary import boundary_iou
from mask2former.evaluation.confusion import confusion_table, segment_events
from mask2former.evaluation.details import Details, ImageScore, image_score, numbers
from mask2former.evaluation.ground_truth import class_of_category, panoptic_ground_truth
from mask2former.evaluation.output import encode_png, model_output, prediction_name, write_json
from mask2former.files import write_bytes

logger = logging.getLogger(__name__)

VOID = 0
IOU, TP, FP, FN = range(4)  # rows of the statistics


def joint_areas(first: np.ndarray, second: np.ndarray) -> dict[tuple[int, int], int]:
    """Number of pixels of every pair of ids in two maps (H, W) of non-negative ids below 2**31.

    Works on runs of equal pairs, because maps of segments change rarely along a row.

    Raises:
        ValueError: the maps differ in size.
    """
    if first.shape != second.shape:
        raise ValueError(f"the prediction is {second.shape}, the ground truth {first.shape} (height, width)")
    joint = ((first.astype(np.int64) << 32) | second).ravel()
    if joint.size == 0:
        return {}
    starts = np.concatenate(([0], np.flatnonzero(joint[1:] != joint[:-1]) + 1))
    lengths = np.diff(starts, append=joint.size)
    pairs, inverse = np.unique(joint[starts], return_inverse=True)
    areas = np.bincount(inverse, weights=lengths).astype(np.int64)
    return {(pair >> 32, pair & 0xFFFFFFFF): area for pair, area in zip(pairs.tolist(), areas.tolist(), strict=True)}


def panoptic_statistics(
    *,
    pred_ids: np.ndarray,
    pred_segments: Sequence[dict[str, Any]],
    gt_ids: np.ndarray,
    gt_segments: Sequence[dict[str, Any]],
    num_classes: int,
    boundary: bool = False,
    joint: Mapping[tuple[int, int], int] | None = None,
) -> np.ndarray:
    """What one image adds to panoptic quality: float64 (4, C), rows summed IoU, hits, false alarms, misses.

    Both maps are (H, W) with 0 = void. A segment has `id` and contiguous `category_id`, one of the ground
    truth also `iscrowd` and, optionally, `area` (counted from the map when absent). As in panopticapi, void
    pixels do not count against a prediction, crowds are never matched, and an unmatched prediction that lies
    for more than half on void or on the crowd of its class is forgiven.

    With `boundary` the lower of mask and boundary IoU decides and is summed up (boundary PQ); void pixels do not
    count against the boundary of a prediction either. `joint` is `joint_areas(gt_ids, pred_ids)` where it is known.

    Raises:
        ValueError: the maps differ in size, a predicted segment is listed but not painted or painted but not
            listed, or its class is out of range.
    """
    joint = joint_areas(gt_ids, pred_ids) if joint is None else joint
    pred_areas = _sum_by(joint, 1)
    predictions = {segment["id"]: segment["category_id"] for segment in pred_segments}
    _check_prediction(predictions, painted=pred_areas.keys() - {VOID}, num_classes=num_classes)
    truths = {segment["id"]: segment for segment in gt_segments}

    statistics = np.zeros((4, num_classes))
    matched_truths, matched_predictions = set(), set()
    for (gt_id, pred_id), iou in _overlaps(joint, pred_areas, truths, predictions).items():
        if boundary and iou > 0.5:
            iou = min(iou, boundary_iou(gt_ids == gt_id, pred_ids == pred_id, ignored=gt_ids == VOID))
        if iou > 0.5:
            statistics[[IOU, TP], predictions[pred_id]] += (iou, 1)
            matched_truths.add(gt_id)
            matched_predictions.add(pred_id)

    crowd_of_class = {}
    for gt_id, truth in truths.items():
        if truth.get("iscrowd", 0):
            crowd_of_class[truth["category_id"]] = gt_id
        elif gt_id not in matched_truths:
            statistics[FN, truth["category_id"]] += 1
    for pred_id, category in predictions.items():
        if pred_id in matched_predictions:
            continue
        forgiven = joint.get((VOID, pred_id), 0)
        if category in crowd_of_class:
            forgiven += joint.get((crowd_of_class[category], pred_id), 0)
        if forgiven / pred_areas[pred_id] <= 0.5:
            statistics[FP, category] += 1
    return statistics


def _overlaps(
    joint: Mapping[tuple[int, int], int],
    pred_areas: dict[int, int],
    truths: dict[int, dict[str, Any]],
    predictions: dict[int, int],
) -> dict[tuple[int, int], float]:
    """IoU, void left out, of pairs of segments of one class that touch; crowds have none."""
    gt_areas = _sum_by(joint, 0)
    ious = {}
    for (gt_id, pred_id), intersection in joint.items():
        truth = truths.get(gt_id)
        if truth is None or truth.get("iscrowd", 0) or truth["category_id"] != predictions.get(pred_id):
            continue
        gt_area = truth.get("area", gt_areas[gt_id])
        union = pred_areas[pred_id] + gt_area - intersection - joint.get((VOID, pred_id), 0)
        ious[gt_id, pred_id] = intersection / union
    return ious


def _sum_by(joint: Mapping[tuple[int, int], int], side: int) -> dict[int, int]:
    """Areas of the ids of one side of the pairs."""
    areas: dict[int, int] = {}
    for pair, area in joint.items():
        areas[pair[side]] = areas.get(pair[side], 0) + area
    return areas


def panoptic_quality(statistics: np.ndarray) -> dict[str, np.ndarray]:
    """`PQ`, `SQ`, `RQ` per class in percent, each (C,), from statistics (4, C); nan where nothing occurs."""
    iou, tp, fp, fn = statistics
    occurs = tp + fp + fn > 0
    count = np.where(occurs, tp + 0.5 * fp + 0.5 * fn, np.nan)
    sq = np.where(occurs, np.divide(iou, tp, out=np.zeros_like(iou), where=tp > 0), np.nan)
    return {"PQ": 100 * iou / count, "SQ": 100 * sq, "RQ": 100 * tp / count}


class COCOPanopticEvaluator(ImageEvaluator):
    """Panoptic quality of a data set in COCO panoptic format, accumulated image by image.

    Reads `panoptic_seg` of the model's output, ids and segments; a segment without `isthing` has the id of its
    category in the files, as Detectron2's evaluator leaves it. Only a (4, C) table is kept and gathered.
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: str | None = None,
        *,
        distributed: bool = True,
        boundary: bool = False,
        details: bool = False,
    ) -> None:
        """
        Args:
            dataset_name: a registered data set whose metadata holds the maps `*_dataset_id_to_contiguous_id`, and
                `panoptic_json` and `panoptic_root` if it has labels.
            output_dir: when given, predictions are written there in COCO panoptic format, as COCO's server takes
                them: `panoptic_predictions/*.png` and `panoptic_predictions.json`.
            distributed: see `ImageEvaluator`.
            boundary: score boundary PQ too, see `mask2former.evaluation.boundary`.
            details: write `Details` into the output_dir too.
        """
        super().__init__(dataset_name, output_dir, distributed=distributed)
        self._ground_truth = panoptic_ground_truth(self._metadata)
        self._check_labels(self._ground_truth is not None)
        self._keeps_details = details and output_dir is not None
        self._class_of = class_of_category(self._metadata)
        self._dataset_ids = {contiguous: category for category, contiguous in self._class_of.items()}
        self._num_classes = max(self._dataset_ids) + 1
        self._tasks = {"panoptic_seg": False, "boundary_panoptic_seg": True} if boundary else {"panoptic_seg": False}
        self.reset()

    def reset(self) -> None:
        super().reset()
        self._statistics = {task: np.zeros((4, self._num_classes)) for task in self._tasks}
        self._written: list[dict[str, Any]] = []
        self._events = np.zeros((self._num_classes + 2, self._num_classes + 1), dtype=np.int64)
        self._images: list[ImageScore] = []

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """
        Raises:
            KeyError: the output has no `panoptic_seg`, or the image is not in the ground truth.
            ValueError: an image comes twice, or its prediction does not fit (size, ids, classes).
        """
        for inp, output in zip(inputs, outputs, strict=True):
            image_id = inp["image_id"]
            pred_ids, pred_segments = model_output(output, "panoptic_seg", "PANOPTIC_ON")
            pred_ids = pred_ids.cpu().numpy()
            pred_segments = [self._contiguous(segment) for segment in pred_segments]
            if self._ground_truth is not None:
                self._score(image_id, pred_ids, pred_segments)
            self._add(image_id)
            if self._output_dir is not None:
                self._written.append(self._write_png(inp, pred_ids, pred_segments))

    def _contiguous(self, segment: dict[str, Any]) -> dict[str, int]:
        category = segment["category_id"]
        return {"id": segment["id"], "category_id": category if "isthing" in segment else self._class_of[category]}

    def _score(self, image_id: Any, ids: np.ndarray, segments: Sequence[dict[str, Any]]) -> None:
        assert self._ground_truth is not None
        gt_ids, gt_segments = self._ground_truth.read(image_id)
        try:
            joint = joint_areas(gt_ids, ids)
            for task, boundary in self._tasks.items():
                statistics = panoptic_statistics(
                    pred_ids=ids,
                    pred_segments=segments,
                    gt_ids=gt_ids,
                    gt_segments=gt_segments,
                    num_classes=self._num_classes,
                    boundary=boundary,
                    joint=joint,
                )
                self._statistics[task] += statistics
                if self._keeps_details and not boundary:
                    events = segment_events(joint, gt_segments, segments)
                    self._events += confusion_table([events], self._num_classes)
                    quality = panoptic_quality(statistics.sum(axis=1, keepdims=True))["PQ"]
                    self._images.append(image_score(image_id, float(quality[0]) / 100, events))
        except ValueError as error:
            raise ValueError(f"{self._ground_truth.file_name(image_id)}: {error}") from error

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """`{"panoptic_seg": {PQ, SQ, RQ, PQ_th, …, RQ_st, PQ-name, SQ-name, RQ-name}}` in percent.

        With `boundary` the same metrics under `boundary_panoptic_seg` too. On the main process; None on the
        others. A class that never occurs is nan and left out of the means.
        """
        truth = self._ground_truth
        values = self._statistics, self._written, self._events, self._images
        gathered = self._gather(values, None if truth is None else truth.image_ids)
        if gathered is None:
            return None
        if self._output_dir is not None:
            annotations = [annotation for _, written, _, _ in gathered for annotation in written]
            write_json(os.path.join(self._output_dir, "panoptic_predictions.json"), {"annotations": annotations})
        if truth is None:
            return self._unscored()
        statistics = {task: np.sum([part[0][task] for part in gathered], axis=0) for task in self._tasks}
        if self._keeps_details:
            events = np.sum([part[2] for part in gathered], axis=0)
            self._write_details(statistics["panoptic_seg"], events, [image for part in gathered for image in part[3]])
        return {task: self._summarise(task, panoptic_quality(values)) for task, values in statistics.items()}

    def _write_details(self, statistics: np.ndarray, events: np.ndarray, images: list[ImageScore]) -> None:
        counts = {"segments": statistics[TP] + statistics[FN], "missed": statistics[FN], "made up": statistics[FP]}
        assert self._output_dir is not None
        Details(
            task="panoptic_seg",
            dataset=self._metadata.name,
            unit="segments",
            score_name="PQ",
            classes=list(self._metadata.stuff_classes[: self._num_classes]),
            columns={name: numbers(values) for name, values in {**counts, **panoptic_quality(statistics)}.items()},
            confusion=events.tolist(),
            images=images,
        ).write(self._output_dir)

    def _summarise(self, task: str, quality: dict[str, np.ndarray]) -> dict[str, float]:
        classes = np.array(sorted(self._dataset_ids))
        is_thing = np.isin(classes, list(self._metadata.thing_dataset_id_to_contiguous_id.values()))
        groups = {"": classes, "_th": classes[is_thing], "_st": classes[~is_thing]}
        result: dict[str, float] = {}
        rows = []
        for suffix, group in groups.items():
            for metric, values in quality.items():
                result[metric + suffix] = _mean(values[group])
            label = {"": "all", "_th": "things", "_st": "stuff"}[suffix]
            occurring = int(np.count_nonzero(~np.isnan(quality["PQ"][group])))
            rows.append([f"{label} ({occurring} classes)"] + [result[metric + suffix] for metric in quality])
        names = self._metadata.stuff_classes
        for index in classes:
            of_class = {metric: float(values[index]) for metric, values in quality.items()}
            result.update({f"{metric}-{names[index]}": value for metric, value in of_class.items()})
            rows.append([names[index], *of_class.values()])
        table = tabulate(rows, headers=["", *quality], tablefmt="pipe", floatfmt=".2f", missingval="-")
        kind = "Boundary panoptic" if self._tasks[task] else "Panoptic"
        logger.info("%s quality on %s:\n%s", kind, self._metadata.name, table)
        return result

    def _write_png(self, inputs: dict[str, Any], ids: np.ndarray, segments: Sequence[dict[str, Any]]) -> dict[str, Any]:
        assert self._output_dir is not None
        image_id = inputs["image_id"]
        if self._ground_truth is None:
            name = prediction_name(inputs)
        else:  # as its PNG is named
            name = os.path.splitext(os.path.basename(self._ground_truth.file_name(image_id)))[0]
        write_bytes(os.path.join(self._output_dir, "panoptic_predictions", name + ".png"), encode_png(id_to_rgb(ids)))
        return {
            "image_id": image_id,
            "file_name": name + ".png",
            "segments_info": [
                {"id": int(s["id"]), "category_id": self._dataset_ids[s["category_id"]]} for s in segments
            ],
        }


def _check_prediction(predictions: dict[int, int], *, painted: set[int], num_classes: int) -> None:
    if predictions.keys() != painted:
        raise ValueError(
            f"predicted segments listed but not painted: {sorted(predictions.keys() - painted)}, "
            f"painted but not listed: {sorted(painted - predictions.keys())}"
        )
    outside = sorted({c for c in predictions.values() if not 0 <= c < num_classes})
    if outside:
        raise ValueError(f"predicted classes {outside} are outside 0..{num_classes - 1}")


def _mean(values: np.ndarray) -> float:
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")

"""Instance segmentation on Cityscapes: AP with the numbers of cityscapesscripts.

The benchmark's protocol: a detection and an object match when their IoU exceeds the threshold; of several
detections of one object the best is a hit and the others are misses; an unmatched detection counts only as far as
it does not lie on void, on groups, or on objects below 100 pixels. One image suffices to decide that.

Legend: T IoU thresholds, P detections, G objects and groups, C classes, H and W image height and width.
"""

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from tabulate import tabulate

from mask2former.d2.structures import Instances
from mask2former.data.images import read_label_map
from mask2former.evaluation.average_precision import HIT, IGNORED, MISS
from mask2former.evaluation.base import ImageEvaluator
from mask2former.evaluation.cityscapes_labels import FIRST_OBJECT, LABELS, CityscapesFiles, frame_name, labels_of
from mask2former.evaluation.output import iterate_masks, model_output
from mask2former.files import write_bytes

logger = logging.getLogger(__name__)

IOU_THRESHOLDS = np.arange(0.5, 1.0, 0.05)
MIN_AREA = 100  # of an object, in pixels
OBJECT_CLASSES = [name for name, label in LABELS.items() if label.mean_area is not None]

_FAST_PNG = [cv2.IMWRITE_PNG_BILEVEL, 1, cv2.IMWRITE_PNG_COMPRESSION, 1]


@dataclass(frozen=True, kw_only=True)
class MatchedFrame:
    """Detections of one image: label ids (P,), scores (P,), outcomes (T, P); objects to find by label id."""

    label_ids: np.ndarray
    scores: np.ndarray
    outcomes: np.ndarray
    objects: dict[int, int]


def match_frame(
    *, label_ids: np.ndarray, scores: np.ndarray, masks: Iterable[np.ndarray], instance_ids: np.ndarray
) -> MatchedFrame:
    """Match the detections of one image.

    Args:
        label_ids: int (P,), Cityscapes' label ids.
        scores: float (P,).
        masks: bool (H, W) each, P of them; empty ones are left out.
        instance_ids: int (H, W) as in `*_instanceIds.png`.

    Raises:
        ValueError: masks and `instance_ids` differ in size.
    """
    ids, areas = _areas(instance_ids)
    owners = np.where(ids < FIRST_OBJECT, ids, ids // FIRST_OBJECT)
    evaluated = np.array([label.id for label in LABELS.values()])
    is_void = (ids < FIRST_OBJECT) & ~np.isin(ids, evaluated)
    overlaps = np.array([_overlaps(mask, instance_ids, ids) for mask in masks], dtype=np.int64)
    overlaps = overlaps.reshape(len(scores), len(ids))
    filled = overlaps.sum(axis=1) > 0
    label_ids, scores, overlaps = label_ids[filled], scores[filled], overlaps[filled]
    outcomes = np.full((len(IOU_THRESHOLDS), len(scores)), IGNORED, dtype=np.uint8)
    objects = {}
    for label_id in (LABELS[name].id for name in OBJECT_CLASSES):
        detections = np.flatnonzero(label_ids == label_id)
        of_class = owners == label_id
        found = (ids >= FIRST_OBJECT) & (areas >= MIN_AREA)
        objects[label_id] = int(np.count_nonzero(of_class & found))
        outcomes[:, detections] = _match_class(
            scores=scores[detections],
            areas=overlaps[detections].sum(axis=1),
            on_void=overlaps[detections][:, is_void].sum(axis=1),
            overlaps=overlaps[detections][:, of_class],
            object_areas=areas[of_class],
            is_group=ids[of_class] < FIRST_OBJECT,
        )
    return MatchedFrame(label_ids=label_ids, scores=scores, outcomes=outcomes, objects=objects)


def average_precision(scores: np.ndarray, hits: np.ndarray, num_objects: int) -> float:
    """Area below the precision-recall curve by steps, 0..1, as the benchmark integrates it.

    Args:
        scores: float (P,) of the detections that count.
        hits: bool (P,), which of them found an object.
        num_objects: at least 1.
    """
    if not scores.size:
        return 0.0
    order = np.argsort(-scores, kind="stable")
    last_of_equal = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    found = np.cumsum(hits[order])[last_of_equal]
    precision = np.concatenate([[1.0], found / (last_of_equal + 1)])
    recall = np.concatenate([[0.0], found / num_objects])
    padded = np.concatenate([[0.0], recall, recall[-1:]])
    return float(np.dot(precision, 0.5 * (padded[2:] - padded[:-2])))


class CityscapesInstanceEvaluator(ImageEvaluator):
    """AP and AP50 over the 8 classes of objects, matched image by image.

    Reads `instances` of the model's output and `*_instanceIds.png`. Detections of other classes are left out.
    """

    def __init__(self, dataset_name: str, output_dir: str | None = None, *, distributed: bool = True) -> None:
        """
        Args:
            dataset_name: a registered Cityscapes set; its `thing_classes` are names of Cityscapes' classes.
            output_dir: when given, predictions are written to `instance_predictions` there, in the form the
                benchmark's server takes: `<frame>_pred.txt`, and a PNG for each mask.
            distributed: see `ImageEvaluator`.
        """
        super().__init__(dataset_name, output_dir, distributed=distributed)
        names = list(self._metadata.thing_classes)
        self._label_ids = np.array([label.id for label in labels_of(names, f"thing_classes of {dataset_name}")])
        self._is_object = np.isin(names, OBJECT_CLASSES)
        self._files = CityscapesFiles(self._metadata)
        self._check_labels(self._files.are_labelled)
        self.reset()

    def reset(self) -> None:
        super().reset()
        self._matched: list[MatchedFrame] = []

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """
        Raises:
            KeyError: the output has no `instances`.
            FileNotFoundError: the image has no ground truth.
            ValueError: an image comes twice; masks of another size than the truth; a class out of range.
        """
        for inp, output in zip(inputs, outputs, strict=True):
            name = frame_name(inp["file_name"])
            label_ids, scores, masks = self._predictions(model_output(output, "instances", "INSTANCE_ON"))
            self._add(name)
            if self._files.are_labelled:
                path = self._files.path(inp["file_name"], "instanceIds")
                try:
                    matched = match_frame(
                        label_ids=label_ids, scores=scores, masks=masks(), instance_ids=read_label_map(path)
                    )
                except ValueError as error:
                    raise ValueError(f"{path}: {error}") from error
                self._matched.append(matched)
            if self._output_dir is not None:
                folder = os.path.join(self._output_dir, "instance_predictions")
                _write_predictions(folder, name, label_ids, scores, masks())

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """`{"segm": {AP, AP50, AP-name, AP50-name}}` in percent on the main process, else None.

        A class is nan and left out of the means where the data set has no object of it.
        """
        gathered = self._gather(self._matched, self._files.frames)
        if gathered is None:
            return None
        if not self._files.are_labelled:
            return self._unscored()
        frames = [frame for part in gathered for frame in part]
        table = np.array([_precision_of_class(frames, LABELS[name].id) for name in OBJECT_CLASSES])
        result = {"AP": _mean(table), "AP50": _mean(table[:, 0])}
        rows = [["mean", result["AP"], result["AP50"]]]
        for name, values in zip(OBJECT_CLASSES, table, strict=True):
            result[f"AP-{name}"] = 100 * float(values.mean())
            result[f"AP50-{name}"] = 100 * float(values[0])
            rows.append([name, result[f"AP-{name}"], result[f"AP50-{name}"]])
        text = tabulate(rows, headers=["", "AP", "AP50"], tablefmt="pipe", floatfmt=".2f")
        logger.info("Mask AP (Cityscapes) on %s:\n%s", self._metadata.name, text)
        return {"segm": result}

    def _predictions(self, instances: Instances) -> tuple[np.ndarray, np.ndarray, Callable[[], Iterator[np.ndarray]]]:
        """Label ids (P,), scores float64 (P,) and what goes through the masks bool (H, W) of the predicted objects."""
        classes = instances.pred_classes.cpu().numpy()
        outside = classes[(classes < 0) | (classes >= len(self._label_ids))]
        if outside.size:
            raise ValueError(
                f"predicted class {int(outside[0])}, but {self._metadata.name} has {len(self._label_ids)} classes"
            )
        kept = np.flatnonzero(self._is_object[classes])
        scores = instances.scores.cpu().numpy().astype(np.float64)
        return self._label_ids[classes[kept]], scores[kept], lambda: iterate_masks(instances.pred_masks, kept.tolist())


def _match_class(
    *,
    scores: np.ndarray,
    areas: np.ndarray,
    on_void: np.ndarray,
    overlaps: np.ndarray,
    object_areas: np.ndarray,
    is_group: np.ndarray,
) -> np.ndarray:
    """Outcomes uint8 (T, P) of the detections of one class, from their overlaps (P, G) with its objects."""
    is_small = object_areas < MIN_AREA
    iou = overlaps / (areas[:, None] + object_areas - overlaps)
    matches = iou > IOU_THRESHOLDS[:, None, None]  # (T, P, G)
    # Small groups count twice, as in the benchmark's code.
    ignored_area = on_void + overlaps @ (is_group.astype(np.int64) + is_small)
    forgiven = ignored_area / np.maximum(areas, 1) > IOU_THRESHOLDS[:, None]
    outcomes = np.where(matches.any(axis=2) | forgiven, IGNORED, MISS).astype(np.uint8)
    for g in np.flatnonzero(~is_group & ~is_small):
        of_object = matches[:, :, g]
        outcomes[of_object] = MISS
        t = np.flatnonzero(of_object.any(axis=1))
        best = np.where(of_object, scores, -np.inf)[t].argmax(axis=1) if len(t) else t
        outcomes[t, best] = HIT
    return outcomes


def _precision_of_class(frames: Sequence[MatchedFrame], label_id: int) -> np.ndarray:
    """AP (T,) of a class, 0..1; nan without an object to find."""
    num_objects = sum(frame.objects[label_id] for frame in frames)
    if not num_objects:
        return np.full(len(IOU_THRESHOLDS), np.nan)
    of_class = [frame.label_ids == label_id for frame in frames]
    scores = np.concatenate([frame.scores[kept] for frame, kept in zip(frames, of_class, strict=True)])
    outcomes = np.concatenate([frame.outcomes[:, kept] for frame, kept in zip(frames, of_class, strict=True)], axis=1)
    return np.array([average_precision(scores[o != IGNORED], o[o != IGNORED] == HIT, num_objects) for o in outcomes])


def _areas(instance_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ids that occur and their areas in pixels, both int64 (G,)."""
    counts = np.bincount(instance_ids.ravel())
    ids = np.flatnonzero(counts)
    return ids, counts[ids]


def _overlaps(mask: np.ndarray, instance_ids: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Pixels of the mask on each of the ids, int64 (G,)."""
    if mask.shape != instance_ids.shape:
        raise ValueError(f"a mask is {mask.shape}, the ground truth {instance_ids.shape} (height, width)")
    rows = np.flatnonzero(mask.any(axis=1))
    if not rows.size:
        return np.zeros(len(ids), dtype=np.int64)
    window = slice(rows[0], rows[-1] + 1)
    return np.bincount(instance_ids[window][mask[window]], minlength=ids[-1] + 1)[ids]


def _write_predictions(
    folder: str, name: str, label_ids: np.ndarray, scores: np.ndarray, masks: Iterable[np.ndarray]
) -> None:
    lines = []
    for number, (label_id, score, mask) in enumerate(zip(label_ids.tolist(), scores.tolist(), masks, strict=True)):
        file = f"{name}_{number}.png"
        _, png = cv2.imencode(".png", mask.view(np.uint8) * 255, _FAST_PNG)
        write_bytes(os.path.join(folder, file), png.tobytes())
        lines.append(f"{file} {label_id} {json.dumps(score)}\n")
    write_bytes(os.path.join(folder, f"{name}_pred.txt"), "".join(lines).encode())


def _mean(values: np.ndarray) -> float:
    values = values[~np.isnan(values)]
    return 100 * float(values.mean()) if values.size else float("nan")

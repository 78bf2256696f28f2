"""Instance segmentation: COCO mask AP.

Legend: C classes, N predictions of an image, T IoU thresholds, R recall thresholds, A size ranges.
"""

import logging
import os
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from tabulate import tabulate

from mask2former.d2.structures import Instances
from mask2former.data.rle import RLE, encode_mask, to_json
from mask2former.evaluation.average_precision import (
    IOU_THRESHOLDS,
    MatchedImage,
    count_objects,
    match_image,
    mean_precision,
    precision_table,
)
from mask2former.evaluation.base import ImageEvaluator
from mask2former.evaluation.confusion import (
    OverlappingInstances,
    confusion_table,
    f1_score,
    instance_events,
    overlapping_instances,
    renumbered,
)
from mask2former.evaluation.curves import best_points, interpolated_precision
from mask2former.evaluation.details import Details, image_score, numbers
from mask2former.evaluation.ground_truth import instance_ground_truth
from mask2former.evaluation.output import iterate_masks, model_output, write_json

logger = logging.getLogger(__name__)


DEFAULT_THRESHOLD = 0.5
"""Score from which detections of a class that has no best one count in details."""


class InstanceSegEvaluator(ImageEvaluator):
    """Mask AP with COCOeval's numbers, matched image by image.

    Reads `instances` of the model's output. The truth is the metadata's `json_file` (COCO instances), or,
    where there is no such file, the thing segments of `panoptic_json`, crowds kept. Predictions of stuff classes are
    left out. Where COCOeval has no detection at all to work on, AP is 0: a model that finds nothing has
    precision 0 at every recall. It is nan only where there is no object to find.
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
            dataset_name: a registered data set whose metadata holds `thing_dataset_id_to_contiguous_id`, the classes as
                `thing_classes` or, in panoptic sets, `stuff_classes`, and if it has labels `json_file`, or
                `panoptic_json` and `panoptic_root`.
            output_dir: when given, predictions are written to `coco_instances_results.json` there, as COCO's server
                takes them.
            distributed: see `ImageEvaluator`.
            boundary: score boundary AP too, see `mask2former.evaluation.boundary`.
            details: write `Details` into the output_dir too.
        """
        super().__init__(dataset_name, output_dir, distributed=distributed)
        class_of = self._metadata.thing_dataset_id_to_contiguous_id
        self._dataset_ids = {contiguous: dataset for dataset, contiguous in class_of.items()}
        # Panoptic sets list all classes as stuff, and under `thing_classes` perhaps things alone.
        lists = (self._metadata.get(f"{kind}_classes") or [] for kind in ("thing", "stuff"))
        self._class_names = list(max(lists, key=len))
        self._tasks = {"segm": False, "boundary_segm": True} if boundary else {"segm": False}
        self._ground_truth = instance_ground_truth(self._metadata)
        self._check_labels(self._ground_truth is not None)
        self._keeps_details = details and output_dir is not None
        self.reset()

    def reset(self) -> None:
        super().reset()
        self._objects = count_objects([], len(self._class_names))
        self._matched: dict[str, list[tuple[Hashable, MatchedImage]]] = {task: [] for task in self._tasks}
        self._written: list[dict[str, Any]] = []
        self._overlaps: list[tuple[Hashable, OverlappingInstances]] = []

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """
        Raises:
            KeyError: the output has no `instances`, or the image is not in the ground truth.
            ValueError: an image comes twice; masks of another size than the image; a class out of range.
        """
        for inp, output in zip(inputs, outputs, strict=True):
            image_id = inp["image_id"]
            classes, scores, rles = self._predictions(model_output(output, "instances", "INSTANCE_ON"))
            if self._ground_truth is not None:
                self._score(image_id, classes, scores, rles)
            self._add(image_id)
            if self._output_dir is not None:
                self._written += self._results(image_id, classes, scores, rles)

    def _score(self, image_id: Hashable, classes: np.ndarray, scores: np.ndarray, rles: Sequence[RLE]) -> None:
        assert self._ground_truth is not None
        truth = self._ground_truth.instances(image_id)
        if truth and rles and truth[0].rle["size"] != rles[0]["size"]:
            raise ValueError(
                f"image {image_id!r}: predicted masks are {rles[0]['size']}, those of "
                f"{self._ground_truth.json_file} {truth[0].rle['size']} (height, width)"
            )
        for task, boundary in self._tasks.items():
            matched = match_image(classes=classes, scores=scores, rles=rles, truth=truth, boundary=boundary)
            self._matched[task].append((image_id, matched))
        if self._keeps_details:
            overlaps = overlapping_instances(classes=classes, scores=scores, rles=rles, truth=truth)
            self._overlaps.append((image_id, overlaps))
        self._objects += count_objects(truth, len(self._class_names))

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """`{"segm": {AP, AP50, AP75, APs, APm, APl, AP-name}}` in percent on the main process, else None.

        With `boundary` the same metrics under `boundary_segm` too.
        """
        truth = self._ground_truth
        values = self._matched, self._objects, self._written, self._overlaps
        gathered = self._gather(values, None if truth is None else truth.image_ids)
        if gathered is None:
            return None
        if self._output_dir is not None:
            path = os.path.join(self._output_dir, "coco_instances_results.json")
            write_json(path, [result for _, _, written, _ in gathered for result in written])
        if truth is None:
            return self._unscored()
        objects = np.sum([of_process for _, of_process, _, _ in gathered], axis=0)
        # Equal scores rank in the order of image ids, as in COCOeval, however the images were spread over ranks.
        matched = {
            task: [image for _, image in sorted((pair for part in gathered for pair in part[0][task]), key=_by_id)]
            for task in self._tasks
        }
        if self._keeps_details:
            self._write_details(matched["segm"], objects, [pair for part in gathered for pair in part[3]])
        return {task: self._summarise(task, images, objects) for task, images in matched.items()}

    def _predictions(self, instances: Instances) -> tuple[np.ndarray, np.ndarray, list[RLE]]:
        """Classes int64 (N,), scores float64 (N,) and run lengths of the predictions of thing classes."""
        classes = instances.pred_classes.cpu().numpy()
        outside = classes[(classes < 0) | (classes >= len(self._class_names))]
        if outside.size:
            raise ValueError(
                f"predicted class {int(outside[0])}, but {self._metadata.name} has {len(self._class_names)} classes"
            )
        kept = np.flatnonzero(np.isin(classes, list(self._dataset_ids)))
        scores = instances.scores.cpu().numpy().astype(np.float64)
        return (
            classes[kept],
            scores[kept],
            [encode_mask(mask) for mask in iterate_masks(instances.pred_masks, kept.tolist())],
        )

    def _results(
        self, image_id: Hashable, classes: np.ndarray, scores: np.ndarray, rles: Sequence[RLE]
    ) -> list[dict[str, Any]]:
        return [
            {
                "image_id": image_id,
                "category_id": self._dataset_ids[category],
                "score": score,
                "segmentation": to_json(rle),
            }
            for category, score, rle in zip(classes.tolist(), scores.tolist(), rles, strict=True)
        ]

    def _write_details(
        self,
        matched: Sequence[MatchedImage],
        objects: np.ndarray,
        overlaps: Sequence[tuple[Hashable, OverlappingInstances]],
    ) -> None:
        things = sorted(self._dataset_ids)
        points = best_points(matched, objects)
        thresholds = np.array([point.threshold if point else DEFAULT_THRESHOLD for point in points])
        place = {category: index for index, category in enumerate(things)}
        events = [(image_id, renumbered(instance_events(image, thresholds), place)) for image_id, image in overlaps]
        precision = precision_table(matched, objects)[:, :, things, 0]
        chosen = [points[category] for category in things]
        assert self._output_dir is not None
        Details(
            task="segm",
            dataset=self._metadata.name,
            unit="objects",
            score_name="F1",
            classes=[self._class_names[category] for category in things],
            columns={
                "objects": numbers(objects[0, things]),
                "AP": numbers([mean_precision(precision[:, :, index]) for index in place.values()]),
                "AP50": numbers([mean_precision(precision[:1, :, index]) for index in place.values()]),
                "score for F1": [point and point.threshold for point in chosen],
                "F1": [point and 100 * point.f1 for point in chosen],
                "precision": [point and 100 * point.precision for point in chosen],
                "recall": [point and 100 * point.recall for point in chosen],
            },
            confusion=confusion_table((image for _, image in events), len(things)).tolist(),
            images=[image_score(image_id, f1_score(image), image) for image_id, image in events],
            precision=[row.tolist() if row[0] > -1 else [] for row in interpolated_precision(precision)],
            points=chosen,
        ).write(self._output_dir)

    def _summarise(self, task: str, matched: Sequence[MatchedImage], objects: np.ndarray) -> dict[str, float]:
        table = precision_table(matched, objects)
        at = {round(100 * threshold): t for t, threshold in enumerate(IOU_THRESHOLDS)}
        result = {
            "AP": mean_precision(table[:, :, :, 0]),
            "AP50": mean_precision(table[at[50], :, :, 0]),
            "AP75": mean_precision(table[at[75], :, :, 0]),
            "APs": mean_precision(table[:, :, :, 1]),
            "APm": mean_precision(table[:, :, :, 2]),
            "APl": mean_precision(table[:, :, :, 3]),
        }
        logger.info(
            "%s AP on %s:\n%s",
            "Boundary" if self._tasks[task] else "Mask",
            self._metadata.name,
            tabulate([result.values()], headers=list(result), tablefmt="pipe", floatfmt=".2f"),
        )
        per_class = {self._class_names[c]: mean_precision(table[:, :, c, 0]) for c in sorted(self._dataset_ids)}
        logger.info(
            "AP per class:\n%s",
            tabulate(list(per_class.items()), headers=["", "AP"], tablefmt="pipe", floatfmt=".2f"),
        )
        return {**result, **{f"AP-{name}": value for name, value in per_class.items()}}


def _by_id(pair: tuple[Any, MatchedImage]) -> Any:
    return pair[0]

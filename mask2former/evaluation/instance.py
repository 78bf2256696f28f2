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
from mask2former.evaluation.ground_truth import instance_ground_truth
from mask2former.evaluation.output import iterate_masks, model_output, write_json

logger = logging.getLogger(__name__)


class InstanceSegEvaluator(ImageEvaluator):
    """Mask AP with COCOeval's numbers, matched image by image.

    Reads `instances` of the model's output. The truth is the metadata's `json_file` (COCO instances), or,
    where there is no such file, the thing segments of `panoptic_json`, crowds kept. Predictions of stuff classes are
    left out. Where COCOeval has no detection at all to work on, AP is 0: a model that finds nothing has
    precision 0 at every recall. It is nan only where there is no object to find.
    """

    def __init__(
        self, dataset_name: str, output_dir: str | None = None, *, distributed: bool = True, boundary: bool = False
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
        self.reset()

    def reset(self) -> None:
        super().reset()
        self._objects = count_objects([], len(self._class_names))
        self._matched: dict[str, list[tuple[Hashable, MatchedImage]]] = {task: [] for task in self._tasks}
        self._written: list[dict[str, Any]] = []

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
        self._objects += count_objects(truth, len(self._class_names))

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """`{"segm": {AP, AP50, AP75, APs, APm, APl, AP-name}}` in percent on the main process, else None.

        With `boundary` the same metrics under `boundary_segm` too.
        """
        truth = self._ground_truth
        values = self._matched, self._objects, self._written
        gathered = self._gather(values, None if truth is None else truth.image_ids)
        if gathered is None:
            return None
        if self._output_dir is not None:
            path = os.path.join(self._output_dir, "coco_instances_results.json")
            write_json(path, [result for _, _, written in gathered for result in written])
        if truth is None:
            return self._unscored()
        objects = np.sum([of_process for _, of_process, _ in gathered], axis=0)
        return {
            task: self._summarise(task, [pair for matched, _, _ in gathered for pair in matched[task]], objects)
            for task in self._tasks
        }

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

    def _summarise(
        self, task: str, matched: Sequence[tuple[Any, MatchedImage]], objects: np.ndarray
    ) -> dict[str, float]:
        # Equal scores rank in the order of image ids, as in COCOeval, however the images were spread over
        # ranks.
        images = sorted(matched, key=lambda pair: pair[0])
        table = precision_table([image for _, image in images], objects)
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

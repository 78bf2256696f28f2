"""Pictures of predictions beside their truth, of the same images at each evaluation. Images: RGB uint8 (H, W, 3)."""

import io
import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from mask2former.d2 import comm
from mask2former.d2.data import DatasetCatalog, Metadata
from mask2former.d2.evaluation import DatasetEvaluator
from mask2former.d2.events import get_event_storage
from mask2former.d2.transforms import NoOpTransform
from mask2former.data.datasets.metadata import dataset_metadata
from mask2former.data.images import read_image
from mask2former.data.labels import read_labels, read_segments
from mask2former.data.summary import INSTANCE, PANOPTIC, SEMANTIC, entries, kind_of, spread
from mask2former.data.targets import instance_targets
from mask2former.evaluation.base import image_key
from mask2former.evaluation.output import iterate_masks
from mask2former.evaluation.semantic import label_map
from mask2former.files import write_bytes
from mask2former.visualization import contact_sheet, draw_instances, draw_panoptic, draw_semantic

FOLDER = "pictures"
SCORE_THRESHOLD = 0.5
"""Instances with a lower score are left out of pictures."""
_CELL = 480  # width of one of the images side by side
_LABEL = 13  # height of the text in there
_LABEL_MAPS = 200  # so many are looked at for classes


class PictureEvaluator(DatasetEvaluator):
    """Draws some images of a data set from what the model says of them anyway; gives no results.

    The main process writes one JPEG per image, `pictures/<iteration>/<image>.jpg`, and shows them to the writers of the
    training; outside of a training they lie in `pictures` itself.
    """

    def __init__(self, dataset_name: str, output_dir: str, *, count: int) -> None:
        """
        Args:
            count: number of images, see `choose_images`.
        """
        self._name = dataset_name
        self._metadata = dataset_metadata(dataset_name)
        self._folder = Path(output_dir, FOLDER)
        chosen = choose_images(DatasetCatalog.get(dataset_name), self._metadata, count)
        self._records = {image_key(record): record for record in chosen}
        self.reset()

    def reset(self) -> None:
        self._drawn: dict[Hashable, bytes] = {}

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        for inp, output in zip(inputs, outputs, strict=True):
            key = image_key(inp)
            if key in self._records:
                self._drawn[key] = encode_jpeg(draw_comparison(self._records[key], output, self._metadata))

    def evaluate(self) -> None:
        """Write the pictures in the order of the data set; nothing is scored."""
        gathered = comm.gather(self._drawn)
        if not comm.is_main_process():
            return
        drawn = {key: picture for part in gathered for key, picture in part.items()}
        try:
            storage: Any = get_event_storage()
        except AssertionError:  # no training
            storage = None
        folder = self._folder / f"{storage.iter:07d}" if storage is not None else self._folder
        for number, key in enumerate(self._records):
            if key not in drawn:
                continue
            name = f"{number:02d}_{_file_stem(self._records[key])}"
            write_bytes(folder / f"{name}.jpg", drawn[key])
            if storage is not None:
                picture = np.asarray(Image.open(io.BytesIO(drawn[key])))
                storage.put_image(
                    f"{self._folder.parent.parent.name}/{self._name}/{name}",
                    torch.from_numpy(picture.transpose(2, 0, 1).copy()),
                )


def choose_images(records: Sequence[dict[str, Any]], metadata: Metadata, count: int) -> list[dict[str, Any]]:
    """At most `count` images in which as many classes occur as can be, the same at every call, in their order.

    One after another the image is taken that shows most of the classes not seen so far. When none shows a new one, the
    rest is spread over the data set. Of label maps 200 are looked at.
    """
    kind = kind_of(records)
    candidates = spread(range(len(records)), _LABEL_MAPS if kind == SEMANTIC else None)
    classes = {index: _classes_in(records[index], kind, metadata) for index in candidates}
    chosen: list[int] = []
    seen: set[int] = set()
    while len(chosen) < min(count, len(records)):
        best = max(classes, key=lambda index: len(classes[index] - seen), default=None)
        if best is None or not classes[best] - seen:
            break
        chosen.append(best)
        seen |= classes.pop(best)
    rest = [index for index in range(len(records)) if index not in chosen]
    return [records[index] for index in sorted(chosen + spread(rest, min(count - len(chosen), len(rest))))]


def _classes_in(record: dict[str, Any], kind: str, metadata: Metadata) -> set[int]:
    if kind == SEMANTIC:
        labels = np.unique(read_labels(record)).tolist()
        return set(labels) - {metadata.get("ignore_label", 255)}
    return {entry["category_id"] for entry in entries(record, kind)}


def draw_comparison(
    record: Mapping[str, Any],
    output: Mapping[str, Any],
    metadata: Metadata,
    *,
    score_threshold: float = SCORE_THRESHOLD,
) -> np.ndarray:
    """Image, truth if there is one, and prediction side by side.

    Args:
        record: dataset dict.
        output: of the model for that image.
        score_threshold: instances with a lower score are left out.
    """
    image = read_image(record["file_name"])
    height = round(_CELL * min(max(image.shape[0] / image.shape[1], 0.25), 1.5))
    scale = min(_CELL / image.shape[1], height / image.shape[0])
    label_size = _LABEL / (scale * max(image.shape[:2]))
    truth = draw_truth(image, record, metadata, label_size=label_size)
    prediction = draw_output(image, output, metadata, score_threshold=score_threshold, label_size=label_size)
    pictures = {"image": image, "ground truth": truth, "prediction": prediction}
    there = {title: picture for title, picture in pictures.items() if picture is not None}
    return contact_sheet([list(there.values())], list(there), cell=(_CELL, height))


def draw_truth(
    image: np.ndarray, record: Mapping[str, Any], metadata: Metadata, *, label_size: float = 0.02
) -> np.ndarray | None:
    """The image under its panoptic, instance or semantic annotation, the first that there is; None without any."""
    if PANOPTIC in record:
        ids = read_segments(record)
        return draw_panoptic(image, ids, record["segments_info"], metadata, label_size=label_size)
    if INSTANCE in record:
        size = (image.shape[0], image.shape[1])
        classes, masks = instance_targets(record[INSTANCE], size).transformed(NoOpTransform(), size)
        return draw_instances(image, masks, classes, metadata, label_size=label_size)
    if SEMANTIC in record:
        return draw_semantic(image, read_labels(record), metadata, label_size=label_size)
    return None


def draw_output(
    image: np.ndarray,
    output: Mapping[str, Any],
    metadata: Metadata,
    *,
    score_threshold: float = SCORE_THRESHOLD,
    label_size: float = 0.02,
) -> np.ndarray:
    """The image under the first that a model's output for it has of panoptic, instances, semantic.

    Args:
        score_threshold: instances with a lower score are left out.
        label_size: height of the text as a part of the picture's longer side.
    """
    if "panoptic_seg" in output:
        ids, segments = output["panoptic_seg"]
        return draw_panoptic(image, ids, segments, metadata, label_size=label_size)
    if "instances" in output:
        found = output["instances"]
        found = found[found.scores >= score_threshold]
        masks = _all_masks(found.pred_masks, image.shape)
        return draw_instances(image, masks, found.pred_classes, metadata, found.scores, label_size=label_size)
    return draw_semantic(image, label_map(output["sem_seg"]), metadata, label_size=label_size)


def _all_masks(masks: Any, shape: tuple[int, ...]) -> np.ndarray:
    return np.array(list(iterate_masks(masks, range(len(masks)))), dtype=bool).reshape(-1, *shape[:2])


def encode_jpeg(picture: np.ndarray, *, quality: int = 85) -> bytes:
    """A JPEG file."""
    return cv2.imencode(".jpg", picture[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def _file_stem(record: Mapping[str, Any]) -> str:
    """The name of the image's file, of letters that every file system takes."""
    return re.sub(r"[^\w.-]", "_", Path(record["file_name"]).stem)[:80]

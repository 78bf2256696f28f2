"""Predictions as files in COCO's formats, which annotation tools and evaluations read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util

from mask2former.d2.data import Metadata
from mask2former.data.datasets.metadata import dataset_ids
from mask2former.data.images import id_to_rgb
from mask2former.data.rle import encode_mask, to_json
from mask2former.evaluation.output import encode_png, iterate_masks, write_json
from mask2former.evaluation.semantic import label_map
from mask2former.files import write_bytes
from mask2former.predict.result import Result

OUTPUT_KEYS = {"panoptic": "panoptic_seg", "instance": "instances", "semantic": "sem_seg"}


class ResultFiles:
    """Writes the predictions of one task into a folder, beside pictures of the same names.

    | task | files |
    |---|---|
    | panoptic | `panoptic.json`, COCO's panoptic format and scores, and `panoptic/NAME.png`, ids of segments |
    | instance | `instances.json`, COCO's format of annotations, with run lengths, and scores |
    | semantic | `semantic.json`, the list of files, and `semantic/NAME.png`, the class of each pixel |

    Ids of categories are those of the data set that the model was trained on, where these are known, else the place of
    a class in the model's output, which is also what the pixels of semantic PNGs hold.
    """

    def __init__(self, folder: Path, task: str, metadata: Metadata) -> None:
        self.folder = folder
        self.task = task
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        names = metadata.get("stuff_classes") or metadata.get("thing_classes") or []
        colors = metadata.get("stuff_colors") or metadata.get("thing_colors") or [None] * len(names)
        things = set((metadata.get("thing_dataset_id_to_contiguous_id") or {}).values())
        known = {} if task == "semantic" else dataset_ids(metadata)
        self._ids = [known.get(index, index) for index in range(len(names))]
        self.categories = [
            {"id": id_, "name": name, "isthing": int(index in things), **({"color": list(color)} if color else {})}
            for index, (id_, name, color) in enumerate(zip(self._ids, names, colors, strict=True))
        ]

    def add(self, file_name: str, name: str, output: Result) -> None:
        """Take up the output for an image, and write its PNG if the task has one.

        Args:
            file_name: of the image, for the JSON file.
            name: of the PNG, without suffix.
            output: of the model, at the size of the image.
        """
        image_id = len(self.images) + 1
        height, width = {"panoptic": _panoptic, "instance": _instances, "semantic": _semantic}[self.task](
            self, image_id, name, output[OUTPUT_KEYS[self.task]]
        )
        self.images.append({"id": image_id, "file_name": file_name, "height": height, "width": width})

    def write(self) -> Path:
        """Write the JSON file, and return its path."""
        path = self.folder / ("instances.json" if self.task == "instance" else f"{self.task}.json")
        content = {"images": self.images, "annotations": self.annotations, "categories": self.categories}
        write_json(str(path), content)
        return path

    def category_id(self, category: int) -> int:
        """The id of a class of the model's output in the JSON file."""
        return self._ids[category] if category < len(self._ids) else category

    def write_png(self, name: str, pixels: np.ndarray) -> str:
        """Write a PNG in the task's folder, and return its name."""
        write_bytes(self.folder / self.task / f"{name}.png", encode_png(pixels))
        return f"{name}.png"


def _panoptic(files: ResultFiles, image_id: int, name: str, output: tuple[Any, Sequence[dict[str, Any]]]) -> list[int]:
    ids = output[0].cpu().numpy()
    segments = []
    for segment in output[1]:
        mask = encode_mask(ids == segment["id"])
        segments.append(
            {
                "id": int(segment["id"]),
                "category_id": files.category_id(int(segment["category_id"])),
                **_extent(mask),
                "iscrowd": 0,
                **({"score": float(segment["score"])} if "score" in segment else {}),
            }
        )
    file_name = files.write_png(name, id_to_rgb(ids))
    files.annotations.append({"image_id": image_id, "file_name": file_name, "segments_info": segments})
    return list(ids.shape)


def _instances(files: ResultFiles, image_id: int, name: str, instances: Any) -> list[int]:
    classes, scores = instances.pred_classes.tolist(), instances.scores.tolist()
    masks = iterate_masks(instances.pred_masks, range(len(instances)))
    for category, score, mask in zip(classes, scores, masks, strict=True):
        rle = encode_mask(mask)
        files.annotations.append(
            {
                "id": len(files.annotations) + 1,
                "image_id": image_id,
                "category_id": files.category_id(category),
                "segmentation": to_json(rle),
                **_extent(rle),
                "iscrowd": 0,
                "score": score,
            }
        )
    return list(instances.image_size)


def _semantic(files: ResultFiles, image_id: int, name: str, scores: Any) -> list[int]:
    labels = label_map(scores)
    file_name = files.write_png(name, labels.astype(np.uint8 if len(files.categories) <= 256 else np.uint16))
    files.annotations.append({"image_id": image_id, "file_name": file_name})
    return list(labels.shape)


def _extent(rle: dict[str, Any]) -> dict[str, Any]:
    """Pixels of a mask, and the box around it: x, y, width, height."""
    return {"area": int(mask_util.area(rle)), "bbox": [float(side) for side in mask_util.toBbox(rle)]}

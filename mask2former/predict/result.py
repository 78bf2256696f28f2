"""What was found in an image."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, KeysView
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mask2former.d2.data import Metadata
from mask2former.data.images import id_to_rgb
from mask2former.data.rle import RLE, to_json
from mask2former.evaluation.output import encode_png
from mask2former.evaluation.pictures import draw_output
from mask2former.evaluation.semantic import label_map
from mask2former.files import write_bytes
from mask2former.predict.classes import Classes
from mask2former.predict.masks import InstanceMasks, Masks, RegionMasks

OUTPUT_KEYS = {"panoptic": "panoptic_seg", "instance": "instances", "semantic": "sem_seg"}
"""By task, in the order of what tells most."""

# N things found, H and W height and width of the image


@dataclass(frozen=True, eq=False)
class Segment:
    """One thing of a result: an instance, a panoptic segment, or all pixels of a class."""

    result: Result
    index: int

    @property
    def name(self) -> str:
        """Of its class."""
        return self.result.names[self.index]

    @property
    def category(self) -> int:
        """Its class, by place in the model's output."""
        return int(self.result.classes[self.index])

    @property
    def score(self) -> float:
        """In 0..1; NaN where the model gives none."""
        return float(self.result.scores[self.index])

    @property
    def box(self) -> tuple[float, float, float, float]:
        """The smallest box around the mask: x0, y0, x1, y1, far edges exclusive."""
        x0, y0, x1, y1 = self.result.boxes[self.index].tolist()
        return x0, y0, x1, y1

    @property
    def area(self) -> int:
        """Pixels."""
        return int(self.result.areas[self.index])

    @property
    def mask(self) -> np.ndarray:
        """Bool (H, W)."""
        return self.result.masks[self.index]

    @property
    def rle(self) -> RLE:
        """COCO's run lengths."""
        return self.result.masks.rle()[self.index]


class Result:
    """What was found in an image, for one task; iteration gives one `Segment` after the other.

    Arrays are made when they are asked for first. A text as index gives the model's own output of that name, such as
    `result["panoptic_seg"]`: see `MaskFormer.forward`.

    Attributes:
        image: RGB uint8 (H, W, 3).
        name: path or address of the image; "" if it came without.
        output: of the model.
        task: "panoptic", "instance" or "semantic".
        metadata: of the classes, to draw with.
    """

    def __init__(
        self, image: np.ndarray, output: dict[str, Any], metadata: Metadata, *, name: str = "", task: str = ""
    ) -> None:
        """
        Args:
            task: by default the first of panoptic, instance and semantic that `output` has.

        Raises:
            ValueError: the output has nothing for the task.
        """
        task = task or next((task for task, key in OUTPUT_KEYS.items() if key in output), "any")
        if OUTPUT_KEYS.get(task) not in output:
            raise ValueError(f"the model made {', '.join(output) or 'nothing'}, which tells nothing for {task} results")
        self.image, self.name, self.output, self.task, self.metadata = image, name, output, task, metadata

    def as_task(self, task: str) -> Result:
        """The result for another task, of a model that makes several outputs at once.

        Raises:
            ValueError: it does not make this one.
        """
        return Result(self.image, self.output, self.metadata, name=self.name, task=task)

    def __len__(self) -> int:
        return len(self.masks)

    def __iter__(self) -> Iterator[Segment]:
        return (Segment(self, index) for index in range(len(self)))

    def __getitem__(self, key: str) -> Any:
        return self.output[key]

    def __contains__(self, key: object) -> bool:
        return key in self.output

    def keys(self) -> KeysView[str]:
        """Names of the model's own outputs."""
        return self.output.keys()

    def __repr__(self) -> str:
        named = f"{self.name}: " if self.name else ""
        return f"<{named}{len(self)} {self.task} results, {self.size[1]} x {self.size[0]} pixels>"

    @property
    def size(self) -> tuple[int, int]:
        """H and W."""
        return self.image.shape[0], self.image.shape[1]

    @cached_property
    def label_map(self) -> np.ndarray:
        """Int (H, W): of panoptic results ids of segments, 0 where there is none; of semantic ones classes.

        Raises:
            ValueError: of instances, which overlap.
        """
        if self.task == "instance":
            raise ValueError("instances overlap, so no map holds them: predict with task='panoptic', or use masks")
        if self.task == "semantic":
            return label_map(self.output["sem_seg"])
        ids: np.ndarray = self.output["panoptic_seg"][0].cpu().numpy()
        return ids

    @cached_property
    def segment_ids(self) -> list[int]:
        """What the label map has where each segment is; of instances numbers from 1."""
        if self.task == "panoptic":
            return [int(segment["id"]) for segment in self.output["panoptic_seg"][1]]
        if self.task == "semantic":
            return np.flatnonzero(np.bincount(self.label_map.ravel())).tolist()
        return list(range(1, len(self.output["instances"]) + 1))

    @cached_property
    def masks(self) -> Masks:
        """The N masks: `dense()`, `rle()`, `polygons()` or `packed()`."""
        if self.task == "instance":
            return InstanceMasks(self.output["instances"].pred_masks)
        return RegionMasks(self.label_map, self.segment_ids)

    @cached_property
    def classes(self) -> np.ndarray:
        """Places in the model's output, int64 (N,)."""
        if self.task == "instance":
            return self.output["instances"].pred_classes.cpu().numpy()
        if self.task == "semantic":
            return np.array(self.segment_ids, dtype=np.int64)
        return np.array([segment["category_id"] for segment in self.output["panoptic_seg"][1]], dtype=np.int64)

    @cached_property
    def scores(self) -> np.ndarray:
        """In 0..1, float32 (N,); NaN where the model gives none, as of semantic results."""
        if self.task == "instance":
            return self.output["instances"].scores.float().cpu().numpy()
        segments = self.output["panoptic_seg"][1] if self.task == "panoptic" else [{}] * len(self)
        return np.array([segment.get("score", math.nan) for segment in segments], dtype=np.float32)

    @cached_property
    def boxes(self) -> np.ndarray:
        """The smallest boxes around the masks, float32 (N, 4): x0, y0, x1, y1, far edges exclusive."""
        return self.masks.boxes()

    @cached_property
    def areas(self) -> np.ndarray:
        """Pixels of the masks, int64 (N,)."""
        return self.masks.areas()

    @cached_property
    def categories(self) -> Classes:
        """All classes of the model."""
        return Classes.of(self.metadata, self.task)

    @property
    def names(self) -> list[str]:
        """Of the classes of what was found."""
        return [self.categories.name(index) for index in self.classes.tolist()]

    def draw(self, path: str | os.PathLike[str] | None = None, *, label_size: float = 0.02) -> np.ndarray:
        """The image under what was found, with names and scores; small images are drawn larger.

        Args:
            path: a PNG or JPEG to write, by its suffix.
            label_size: height of the text as a part of the picture's longer side.

        Returns:
            RGB uint8.
        """
        key = OUTPUT_KEYS[self.task]
        shown = {key: self.output[key]}
        picture = draw_output(self.image, shown, self.metadata, score_threshold=0.0, label_size=label_size)
        if path is not None:
            write_bytes(path, cv2.imencode(Path(path).suffix or ".png", picture[:, :, ::-1])[1].tobytes())
        return picture

    def to_coco(self, *, image_id: int = 1, first_id: int = 1) -> list[dict[str, Any]]:
        """Annotations in COCO's format, with run lengths as text, and scores where there are some.

        Args:
            image_id: of the image.
            first_id: of the first annotation.
        """
        rows = zip(self.classes.tolist(), self.masks.rle(), self.boxes, self.areas, self.scores, strict=True)
        return [
            {
                "id": first_id + index,
                "image_id": image_id,
                "category_id": self.categories.id(category),
                "segmentation": to_json(rle),
                **_extent(area, box),
                "iscrowd": 0,
                **_score(score),
            }
            for index, (category, rle, box, area, score) in enumerate(rows)
        ]

    def to_panoptic_png(self, path: str | os.PathLike[str], *, image_id: int = 1) -> dict[str, Any]:
        """Write COCO's panoptic PNG, whose colours are ids of segments, and return the annotation that belongs to it.

        Of semantic results each class is one segment.

        Raises:
            ValueError: of instances, which overlap.
        """
        shift = int(self.task == "semantic")  # 0 is no segment
        write_bytes(path, encode_png(id_to_rgb(self.label_map.astype(np.int64) + shift)))
        rows = zip(self.segment_ids, self.classes.tolist(), self.boxes, self.areas, self.scores, strict=True)
        segments = [
            {
                "id": id_ + shift,
                "category_id": self.categories.id(category),
                **_extent(area, box),
                "iscrowd": 0,
                **_score(score),
            }
            for id_, category, box, area, score in rows
        ]
        return {"image_id": image_id, "file_name": Path(path).name, "segments_info": segments}

    def to_supervision(self) -> Any:
        """`supervision.Detections`, with names of classes in `data["class_name"]`.

        Raises:
            ModuleNotFoundError: the package is not installed.
        """
        try:
            supervision = import_module("supervision")
        except ModuleNotFoundError as error:
            if error.name != "supervision":
                raise
            raise ModuleNotFoundError(
                "to_supervision needs supervision, which is not installed: pip install 'mask2former[supervision]'",
                name="supervision",
            ) from error
        return supervision.Detections(
            xyxy=self.boxes.copy(),
            mask=self.masks.dense(),
            confidence=None if np.isnan(self.scores).any() else self.scores.copy(),
            class_id=self.classes.astype(int),
            data={"class_name": np.array(self.names, dtype=str)},
        )

    def crops(self, *, padding: int = 0, cut_out: bool = False) -> list[np.ndarray]:
        """The part of the image around each thing found, RGB uint8 (h, w, 3), empty for an empty mask.

        Args:
            padding: pixels around the box, as far as the image goes.
            cut_out: give RGBA (h, w, 4), transparent outside of the mask.
        """
        crops = []
        for index, (x0, y0, x1, y1) in enumerate(self.boxes.astype(int).tolist()):
            margin = padding if x1 > x0 else 0
            part = slice(max(0, y0 - margin), y1 + margin), slice(max(0, x0 - margin), x1 + margin)
            crop = self.image[part]
            if cut_out:
                crop = np.dstack([crop, self.masks[index][part].astype(np.uint8) * 255])
            crops.append(np.ascontiguousarray(crop))
        return crops


def _extent(area: Any, box: np.ndarray) -> dict[str, Any]:
    """Area and box, x, y, width and height, of an annotation."""
    x0, y0, x1, y1 = box.tolist()
    return {"area": int(area), "bbox": [x0, y0, x1 - x0, y1 - y0]}


def _score(score: Any) -> dict[str, float]:
    return {} if np.isnan(score) else {"score": float(score)}

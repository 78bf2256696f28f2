"""A folder of pictures of bright discs on dark ground, annotated as COCO instances or as label maps."""

import json
from pathlib import Path

import cv2
import numpy as np

SIZE = (48, 64)
CLASSES = ("small", "large")


def make_instances(root: Path, *, train: int = 6, val: int = 2, names: tuple[str, ...] = CLASSES) -> Path:
    """`train/` and `val/`, each with its `_annotations.coco.json`; the last image of each has no object."""
    for split, count in (("train", train), ("val", val)):
        images, annotations = [], []
        for number in range(count):
            picture, discs = _draw(number + (1000 if split == "val" else 0), 0 if number == count - 1 else 3)
            images.append({"id": number, "file_name": f"{number}.png", "height": SIZE[0], "width": SIZE[1]})
            for center, radius in discs:
                polygon = cv2.ellipse2Poly(center, (radius, radius), 0, 0, 360, 20).ravel().tolist()
                box = [center[0] - radius, center[1] - radius, 2 * radius, 2 * radius]
                annotations.append(
                    {"id": len(annotations), "image_id": number, "category_id": 1 + int(radius > 6), "bbox": box,
                     "area": 3 * radius**2, "segmentation": [polygon], "iscrowd": 0}
                )  # fmt: skip
            _write(root / split / f"{number}.png", picture)
        categories = [{"id": number + 1, "name": name} for number, name in enumerate(names)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / split / "_annotations.coco.json").write_text(json.dumps(content), encoding="utf-8")
    return root


def make_label_maps(root: Path, *, train: int = 6, val: int = 2) -> Path:
    """`images/` and `masks/` with a folder for each split; 0 is ground, 1 and 2 are small and large discs."""
    for split, count in (("train", train), ("val", val)):
        for number in range(count):
            picture, discs = _draw(number + (1000 if split == "val" else 0), 3)
            labels = np.zeros(SIZE, np.uint8)
            for center, radius in discs:
                cv2.circle(labels, center, radius, 1 + int(radius > 6), -1)
            _write(root / "images" / split / f"{number}.png", picture)
            _write(root / "masks" / split / f"{number}.png", labels)
    return root


def _draw(seed: int, count: int) -> tuple[np.ndarray, list[tuple[tuple[int, int], int]]]:
    generator = np.random.default_rng(seed)
    picture = generator.integers(0, 60, (*SIZE, 3), dtype=np.uint8)
    discs = []
    for _ in range(count):
        radius = int(generator.integers(4, 10))
        center = (int(generator.integers(10, SIZE[1] - 10)), int(generator.integers(10, SIZE[0] - 10)))
        cv2.circle(picture, center, radius, (200, 220, 90), -1)
        discs.append((center, radius))
    return picture, discs


def _write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())

"""Tiny data sets in the layouts of the releases: a few images of some pixels each, under the root folder given."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.io import savemat

from mask2former.data.images import id_to_rgb

SIZE = (6, 8)
"""Height and width of all images."""


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def save_image(path: Path, seed: int = 0, size: tuple[int, int] = SIZE) -> None:
    save(path, np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def make_ade20k(root: Path, count: int = 2) -> Path:
    """Label maps: 4 columns wall (1), 2 of person (13), 1 of bed (8), 1 of other (0). Two instances of persons."""
    folder = root / "ADEChallengeData2016"
    for split, name in (("training", "train"), ("validation", "val")):
        for index in range(1, count + 1):
            stem = f"ADE_{name}_{index:08d}"
            save_image(folder / "images" / split / f"{stem}.jpg", index)
            labels = np.repeat(np.array([[1, 1, 1, 1, 13, 13, 8, 0]], dtype=np.uint8), SIZE[0], axis=0)
            save(folder / "annotations" / split / f"{stem}.png", labels)
            instances = np.zeros((*SIZE, 3), dtype=np.uint8)
            instances[:, 3:5] = (4, 1, 0)  # person 1 stands before the last column of wall
            instances[:2, 5] = (4, 2, 0)
            save(folder / "annotations_instance" / split / f"{stem}.png", instances)
    return folder


def make_ade20k_full(root: Path, size: tuple[int, int] = SIZE) -> Path:
    """Left half wall (object 2978), right half of an object that is none of the 847 (index 1)."""
    folder = root / "ADE20K_2021_17_01"
    for split, name in (("training", "train"), ("validation", "val")):
        stem = folder / "images" / "ADE" / split / "urban" / "street" / f"ADE_{name}_00000001"
        save_image(stem.with_suffix(".jpg"), size=size)
        code = np.zeros((*size, 3), dtype=np.uint8)
        code[:, : size[1] // 2] = (2978 // 256 * 10, 2978 % 256, 5)
        code[:, size[1] // 2 :] = (0, 1, 5)
        save(stem.parent / f"{stem.name}_seg.png", code)
    return folder


def make_coco_stuff(root: Path) -> Path:
    folder = root / "coco" / "coco_stuff_10k"
    for split, name in (("train", "COCO_train2014_000000000009"), ("test", "COCO_train2014_000000000025")):
        save_image(folder / "images" / f"{name}.jpg")
        labels = np.zeros(SIZE, dtype=np.uint16)
        labels[:, 2:4], labels[:, 4:] = 1, 182
        (folder / "annotations").mkdir(exist_ok=True)
        savemat(folder / "annotations" / f"{name}.mat", {"S": labels})
        (folder / "imageLists").mkdir(exist_ok=True)
        (folder / "imageLists" / f"{split}.txt").write_text(f"{name}\n")
    return folder


def make_coco_panoptic(root: Path) -> Path:
    """One image a split: a person (id 1), a crowd of persons, a rug (id 200), void."""
    folder = root / "coco"
    for split in ("train", "val"):
        name = "000000000009"
        save_image(folder / f"{split}2017" / f"{name}.jpg")
        ids = np.zeros(SIZE, dtype=np.int32)
        ids[:, 1:3], ids[:, 3], ids[:, 4:] = 7, 9, 70000
        save(folder / f"panoptic_{split}2017" / f"{name}.png", id_to_rgb(ids))
        segments = [
            {"id": number, "category_id": category, "iscrowd": crowd, "area": 6 * width, "bbox": [x, 0, width, 6]}
            for number, category, crowd, x, width in ((7, 1, 0, 1, 2), (9, 1, 1, 3, 1), (70000, 200, 0, 4, 4))
        ]
        content = {
            "images": [{"id": 9, "file_name": f"{name}.jpg", "height": SIZE[0], "width": SIZE[1]}],
            "annotations": [{"image_id": 9, "file_name": f"{name}.png", "segments_info": segments}],
            "categories": [],
        }
        write_json(folder / "annotations" / f"panoptic_{split}2017.json", content)
    return folder


def make_mapillary(root: Path) -> Path:
    """v1.2 and v2.0: Bird 1 and 2 (label 0), Curb (label 2), Unlabeled in the last column."""
    folder = root / "mapillary_vistas"
    for split in ("training", "validation"):
        save_image(folder / split / "images" / "abc.jpg")
        ids = np.zeros(SIZE, dtype=np.uint16)
        ids[:, 0], ids[:, 1], ids[:, 2:7], ids[:, 7] = 1, 2, 2 * 256, 65 * 256
        for version, data in (("v1", folder / split), ("v2", folder / split / "v2.0")):
            ids[:, 7] = (65 if version == "v1" else 3) * 256
            labels = Image.fromarray((ids // 256).astype(np.uint8), "P")
            labels.putpalette([0] * 768)
            (data / "labels").mkdir(parents=True)
            labels.save(data / "labels" / "abc.png")
            save(data / "instances" / "abc.png", ids)
            panoptic = np.where(ids // 256 >= 3, 0, ids.astype(np.int32) + 1)
            save(data / "panoptic" / "abc.png", id_to_rgb(panoptic))
            segments = [
                {"id": number, "category_id": category, "iscrowd": 0, "area": 6 * width, "bbox": [x, 0, width, 6]}
                for number, category, x, width in ((2, 1, 0, 1), (3, 1, 1, 1), (513, 3, 2, 5))
            ]
            content = {
                "images": [{"id": "abc", "file_name": "abc.jpg", "height": SIZE[0], "width": SIZE[1]}],
                "annotations": [{"image_id": "abc", "file_name": "abc.png", "segments_info": segments}],
                "categories": [
                    {"id": 3, "name": "construction--curb", "isthing": 0},
                    {"id": 1, "name": "animal--bird", "isthing": 1},
                ],
            }
            write_json(data / "panoptic" / f"panoptic_{'2018' if version == 'v1' else '2020'}.json", content)
    names = ["Bird", "Ground Animal", "Curb", "Unlabeled"]
    labels = [{"name": f"x--{name}", "readable": name, "color": [1, 2, 3], "evaluate": True} for name in names]
    labels[-1].update(name="void--unlabeled", evaluate=False)
    write_json(folder / "config_v2.0.json", {"labels": labels})
    return folder


def make_cityscapes(root: Path) -> Path:
    """Road (7), two cars (26), a group of cars, license plate and ego vehicle (1); the test split has images only."""
    folder = root / "cityscapes"
    for split, city in (("train", "aachen"), ("val", "frankfurt"), ("test", "berlin")):
        frame = f"{city}_000000_000019"
        save_image(folder / "leftImg8bit" / split / city / f"{frame}_leftImg8bit.png")
        if split == "test":
            continue
        ids = np.full(SIZE, 7, dtype=np.uint16)
        ids[:, 0], ids[:, 1], ids[:3, 2], ids[:, 3] = 26000, 26001, 26, 1
        gt = folder / "gtFine" / split / city
        save(gt / f"{frame}_gtFine_instanceIds.png", ids)
        labels = np.where(ids >= 1000, ids // 1000, ids).astype(np.uint8)
        save(gt / f"{frame}_gtFine_labelIds.png", labels)
    return folder


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_api

from mask2former.d2.transforms import NoOpTransform
from mask2former.data.datasets import load_categories
from mask2former.data.images import DataError, read_image, read_label_map, read_panoptic_png
from mask2former.data.prepare.ade20k import (
    instance_to_sceneparse,
    panoptic_record,
    prepare_full,
    prepare_instance,
    prepare_panoptic,
    prepare_semantic,
    read_instance_map,
)
from mask2former.data.targets import panoptic_targets
from tests.helpers.layouts import SIZE, make_ade20k, make_ade20k_full, save


def test_labels_are_shifted(tmp_path: Path) -> None:
    folder = make_ade20k(tmp_path)
    prepare_semantic(folder)
    path = folder / "annotations_detectron2/training/ADE_train_00000002.png"
    assert read_label_map(path)[0].tolist() == [0, 0, 0, 0, 12, 12, 7, 255]
    with Image.open(path) as image:
        assert image.mode == "L"


def test_instances(tmp_path: Path) -> None:
    folder = make_ade20k(tmp_path)
    prepare_instance(folder)
    content = json.loads((folder / "ade20k_instance_val.json").read_text())
    assert content["images"][0] == {
        "id": "ADE_val_00000001",
        "file_name": "ADE_val_00000001.jpg",
        "height": SIZE[0],
        "width": SIZE[1],
    }
    first, second = content["annotations"][:2]
    names = {category["id"]: category["name"] for category in content["categories"]}
    assert [names[annotation["category_id"]] for annotation in (first, second)] == ["person", "person"]
    assert (first["area"], first["bbox"], second["area"], second["bbox"]) == (12, [3, 0, 2, 6], 2, [5, 0, 1, 2])
    mask = np.zeros(SIZE, dtype=np.uint8)
    mask[:, 3:5] = 1
    assert np.array_equal(mask_api.decode(first["segmentation"]), mask)
    assert [annotation["id"] for annotation in content["annotations"]] == [1, 2, 3, 4]


def test_panoptic_paints_instances_over_stuff(tmp_path: Path) -> None:
    folder = make_ade20k(tmp_path)
    prepare_panoptic(folder, workers=2)
    content = json.loads((folder / "ade20k_panoptic_val.json").read_text())
    assert content["categories"] == load_categories("ade20k_150")
    annotation = content["annotations"][0]
    assert (annotation["image_id"], annotation["file_name"]) == ("ADE_val_00000001", "ADE_val_00000001.png")
    segments = {segment["id"]: segment for segment in annotation["segments_info"]}
    assert [(s["category_id"], s["area"], s["bbox"]) for s in segments.values()] == [
        (0, 24, [0, 0, 4, 6]),  # before the person is painted over it
        (12, 12, [3, 0, 2, 6]),
        (12, 2, [5, 0, 1, 2]),
    ]
    ids = read_panoptic_png(folder / "ade20k_panoptic_val/ADE_val_00000001.png")
    # The bed, and the person's pixels without instance, are things that no instance is of: void.
    assert ids[0].tolist() == [1, 1, 1, 2, 2, 3, 0, 0]
    assert ids[5].tolist() == [1, 1, 1, 2, 2, 0, 0, 0]


def test_stuff_that_things_cover_is_annotated_as_published(tmp_path: Path) -> None:
    labels = np.full((10, 20), 1, np.uint8)
    labels[:, 10:], labels[:2, :2] = 3, 6  # wall, sky and, behind a person, a little road
    instances = np.zeros((10, 20, 3), np.uint8)
    instances[:3, :3] = (4, 1, 0)
    save(tmp_path / "labels/a.png", labels)
    save(tmp_path / "instances/a.png", instances)
    folders = (tmp_path / "labels", tmp_path / "instances", tmp_path / "panoptic")
    stuff = [category["id"] for category in load_categories("ade20k_150") if not category["isthing"]]
    record = json.loads(panoptic_record(folders, stuff, instance_to_sceneparse(), "a.png"))
    segments = record["annotations"][0]["segments_info"]
    assert [(s["category_id"], s["area"]) for s in segments] == [(0, 96), (2, 100), (5, 4), (12, 9)]
    classes, masks = panoptic_targets(read_panoptic_png(tmp_path / "panoptic/a.png"), segments, "a.png").transformed(
        NoOpTransform(), (10, 20)
    )
    assert classes.tolist() == [0, 2, 5, 12]
    assert masks.tensor.sum(dim=(1, 2)).tolist() == [91, 100, 0, 9]


def test_panoptic_needs_an_instance_map_of_each_image(tmp_path: Path) -> None:
    folder = make_ade20k(tmp_path)
    (folder / "annotations_instance/validation/ADE_val_00000002.png").unlink()
    with pytest.raises(DataError, match=r"annotations_instance.*lacks 1 files: ADE_val_00000002; unpack annotations_"):
        prepare_panoptic(folder)


def test_labels_of_another_kind(tmp_path: Path) -> None:
    folder = make_ade20k(tmp_path)
    path = folder / "annotations/validation/ADE_val_00000001.png"
    save(path, np.full(SIZE, 151, dtype=np.uint8))
    with pytest.raises(DataError, match=r"ADE_val_00000001\.png: label 151 is above 150"):
        prepare_semantic(folder)
    save(path, np.full((*SIZE, 3), (0, 1, 2), dtype=np.uint8))  # grey ones are read
    with pytest.raises(DataError, match=r"ADE_val_00000001\.png: a label map has one channel"):
        prepare_semantic(folder)
    assert (folder / "annotations_detectron2/validation/ADE_val_00000002.png").is_file()


def test_broken_instance_maps(tmp_path: Path) -> None:
    save(tmp_path / "gray.png", np.zeros(SIZE, dtype=np.uint8))
    with pytest.raises(DataError, match=r"gray\.png.*mode RGB, this file has L"):
        read_instance_map(tmp_path / "gray.png", 100)
    code = np.zeros((*SIZE, 3), dtype=np.uint8)
    code[0, 0] = (101, 1, 0)
    save(tmp_path / "class.png", code)
    with pytest.raises(DataError, match=r"class\.png: class 101 \(red\) is above 100"):
        read_instance_map(tmp_path / "class.png", 100)


def test_full(tmp_path: Path) -> None:
    folder = make_ade20k_full(tmp_path)
    prepare_full(folder)
    path = folder / "annotations_detectron2/validation/ADE_val_00000001.tif"
    with Image.open(path) as image:
        assert image.mode == "I;16"
    labels = read_label_map(path)
    assert labels[0].tolist() == [0] * 4 + [65535] * 4
    assert read_image(folder / "images_detectron2/validation/ADE_val_00000001.jpg").shape[:2] == SIZE


def test_full_reduces_large_images(tmp_path: Path) -> None:
    folder = make_ade20k_full(tmp_path, size=(1024, 1536))
    prepare_full(folder)
    labels = read_label_map(folder / "annotations_detectron2/training/ADE_train_00000001.tif")
    assert labels.shape == (512, 768)
    assert (labels[:, :384] == 0).all()
    assert (labels[:, 384:] == 65535).all()
    assert read_image(folder / "images_detectron2/training/ADE_train_00000001.jpg").shape == (512, 768, 3)

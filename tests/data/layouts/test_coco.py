import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as mask_api

from mask2former.d2.structures import Instances
from mask2former.data.images import DataError, id_to_rgb
from mask2former.data.labels import read_segments
from mask2former.data.layouts import describe
from mask2former.evaluation import InstanceSegEvaluator
from tests.helpers.pictures import SIZE, masks_of, picture, save, square

SQUARE = [1, 1, 5, 1, 5, 4, 1, 4]
"""Corners of the pixels of columns 1 to 4 and rows 1 to 3."""


def image_entry(number: int, name: str = "") -> dict[str, Any]:
    return {"id": number, "file_name": name or f"{number}.jpg", "height": SIZE[0], "width": SIZE[1]}


def annotation(number: int, image: int, category: int, **other: Any) -> dict[str, Any]:
    record = {"id": number, "image_id": image, "category_id": category, "bbox": [1, 1, 4, 3], "area": 12, "iscrowd": 0}
    return {**record, "segmentation": [SQUARE], **other}


def write(path: Path, images: list, annotations: list, categories: list, folder: Path | None = None) -> Path:
    """The JSON file, and its images."""
    for image in images:
        picture((folder or path.parent) / image["file_name"])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


CATEGORIES = [{"id": 1, "name": "boat"}, {"id": 2, "name": "buoy"}]


def write_two(root: Path, **first: Any) -> None:
    """Two images to train on, one without objects, and one to validate on."""
    write(root / "instances_train.json", [image_entry(1), image_entry(2)], [annotation(1, 1, 2, **first)], CATEGORIES,
          root / "train")  # fmt: skip
    write(root / "instances_val.json", [image_entry(7)], [annotation(1, 7, 1)], CATEGORIES, root / "val")


def test_instances_by_file_names(tmp_path: Path) -> None:
    write_two(tmp_path)
    description = describe(tmp_path)
    assert (description.layout, description.task, list(description.classes)) == (
        "coco_instances",
        "instance",
        ["boat", "buoy"],
    )
    (first, empty), (val,) = description.load("train"), description.load("val")
    assert first["file_name"] == str(tmp_path / "train" / "1.jpg")
    assert [item["category_id"] for item in first["annotations"]] == [1]
    assert [item["category_id"] for item in val["annotations"]] == [0]
    assert empty["annotations"] == []
    np.testing.assert_array_equal(masks_of(first), square()[None])


def test_images_of_the_same_names_in_both_splits(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write(tmp_path / f"{split}.json", [image_entry(1)], [annotation(1, 1, 1)], CATEGORIES, tmp_path / split)
    description = describe(tmp_path)
    for split in ("train", "val"):
        assert description.load(split)[0]["file_name"] == str(tmp_path / split / "1.jpg")


def test_predictions_are_scored_against_the_description(tmp_path: Path) -> None:
    write_two(tmp_path)
    (name,) = describe(tmp_path, name="scored").register()["val"]
    instances = Instances(SIZE)
    instances.pred_masks = torch.from_numpy(square()[None])
    instances.scores, instances.pred_classes = torch.ones(1), torch.zeros(1, dtype=torch.int64)
    evaluator = InstanceSegEvaluator(name, distributed=False)
    evaluator.process([{"image_id": 7}], [{"instances": instances}])
    results = evaluator.evaluate()
    assert results is not None
    assert results["segm"]["AP"] == pytest.approx(100)


def test_roboflow(tmp_path: Path) -> None:
    """As exported: `_annotations.coco.json` in each folder, a category that only names the group, ids from 0."""
    categories = [
        {"id": 0, "name": "vessels", "supercategory": "none"},
        {"id": 1, "name": "boat", "supercategory": "vessels"},
        {"id": 2, "name": "buoy", "supercategory": "vessels"},
    ]
    for number, folder in enumerate(("train", "valid", "test")):
        images = [image_entry(0, f"{folder}_jpg.rf.1.jpg")]
        write(tmp_path / folder / "_annotations.coco.json", images, [annotation(0, 0, 1 + number % 2)], categories)
    description = describe(tmp_path)
    assert list(description.classes) == ["boat", "buoy"]
    assert any("vessels" in note for note in description.notes)
    found = {split: description.load(split)[0]["annotations"][0]["category_id"] for split in description.splits}
    assert found == {"train": 0, "val": 1, "test": 0}


def test_ids_from_zero_and_another_order(tmp_path: Path) -> None:
    """Categories are told apart by name: the files of the splits may number them in different ways."""
    boat, buoy = {"id": 0, "name": "boat"}, {"id": 5, "name": "buoy"}
    write(tmp_path / "train.json", [image_entry(1)], [annotation(1, 1, 0)], [boat, buoy])
    write(tmp_path / "val.json", [image_entry(2)], [annotation(1, 2, 0)], [{**boat, "id": 1}, {**buoy, "id": 0}])
    description = describe(tmp_path)
    assert description.load("train")[0]["annotations"][0]["category_id"] == 0
    assert description.load("val")[0]["annotations"][0]["category_id"] == 1


def test_a_supercategory_in_place_of_a_name(tmp_path: Path) -> None:
    write(
        tmp_path / "all.json",
        [image_entry(1), image_entry(2)],
        [annotation(1, 1, 3)],
        [{"id": 3, "supercategory": "cell"}],
    )
    assert list(describe(tmp_path).classes) == ["cell"]


def test_crowds_stay_crowds(tmp_path: Path) -> None:
    mask = np.zeros(SIZE, np.uint8, order="F")
    mask[2:, 3:] = 1
    code = mask_api.encode(mask)
    write_two(tmp_path, iscrowd=1, segmentation={"size": list(SIZE), "counts": code["counts"].decode()})
    record = describe(tmp_path).load("train")[0]
    assert record["annotations"][0]["iscrowd"] == 1
    assert len(masks_of(record)) == 0


def test_panoptic(tmp_path: Path) -> None:
    categories = [{"id": 9, "name": "road", "isthing": 0}, {"id": 4, "name": "car", "isthing": 1}]
    for split, number in (("train", 1), ("val", 1)):
        ids = np.full(SIZE, 300)
        ids[2:4, 2:4] = 7
        save(tmp_path / f"panoptic_{split}" / f"{number}.png", id_to_rgb(ids))
        segments = [{"id": 300, "category_id": 9, "area": 44}, {"id": 7, "category_id": 4, "area": 4}]
        content = [{"image_id": number, "file_name": f"{number}.png", "segments_info": segments}]
        write(tmp_path / "annotations" / f"panoptic_{split}.json", [image_entry(number)], content, categories,
              tmp_path / split)  # fmt: skip
    description = describe(tmp_path)
    assert (description.layout, description.task, list(description.classes)) == (
        "coco_panoptic",
        "panoptic",
        ["car", "road"],
    )
    (record,) = description.load("train")
    (val,) = description.load("val")
    assert val["pan_seg_file_name"] == str(tmp_path / "panoptic_val" / "1.png")
    assert {s["id"]: (s["category_id"], s["isthing"]) for s in record["segments_info"]} == {
        300: (1, False),
        7: (0, True),
    }
    assert (read_segments(record) == 7).sum() == 4
    assert description.metadata()["thing_classes"] == ["car"]
    assert description.metadata()["stuff_classes"] == ["car", "road"]


# --- what is refused -----------------------------------------------------------


def test_missing_image(tmp_path: Path) -> None:
    write_two(tmp_path)
    (tmp_path / "train" / "2.jpg").unlink()
    with pytest.raises(DataError, match=r"instances_train\.json: 1 files that it names are missing: .*2\.jpg"):
        describe(tmp_path)


def test_no_image_at_all(tmp_path: Path) -> None:
    write_two(tmp_path)
    for image in (tmp_path / "train").iterdir():
        image.unlink()
    with pytest.raises(DataError, match=r"none of its images is below .* \(the first: 1\.jpg\)"):
        describe(tmp_path)


def test_unknown_class(tmp_path: Path) -> None:
    write_two(tmp_path, category_id=8)
    with pytest.raises(DataError, match="annotation 1 of image 1: unknown category id 8"):
        describe(tmp_path)


def test_polygon_of_two_points(tmp_path: Path) -> None:
    write_two(tmp_path, segmentation=[[1, 1, 5, 1]])
    with pytest.raises(DataError, match=r"object 1 of .*1\.jpg has polygons of fewer than three points alone"):
        describe(tmp_path)


def test_boxes_alone(tmp_path: Path) -> None:
    write_two(tmp_path, segmentation=[])
    with pytest.raises(DataError, match="annotation 1 of image 1: no mask; a segmentation is a list of polygons"):
        describe(tmp_path)


def test_image_of_another_size(tmp_path: Path) -> None:
    write_two(tmp_path)
    picture(tmp_path / "train" / "1.jpg", (8, 6))
    with pytest.raises(DataError, match=r"1\.jpg is 6x8 pixels .* says 8x6.*EXIF"):
        describe(tmp_path)


def test_two_files_for_one_split(tmp_path: Path) -> None:
    write_two(tmp_path)
    write(tmp_path / "train2" / "train.json", [image_entry(3)], [], CATEGORIES)
    with pytest.raises(DataError, match=r"instances_train\.json and train2/train\.json are both for train"):
        describe(tmp_path)

import json
from pathlib import Path

import pytest

from mask2former.data.images import DataError, read_label_map
from mask2former.data.prepare.coco import prepare_semantic, prepare_stuff_10k
from tests.helpers.layouts import make_coco_panoptic, make_coco_stuff


def test_semantic_from_panoptic(tmp_path: Path) -> None:
    folder = make_coco_panoptic(tmp_path)
    prepare_semantic(folder)
    labels = read_label_map(folder / "panoptic_semseg_val2017/000000000009.png")
    assert labels[0].tolist() == [255, 0, 0, 0, 132, 132, 132, 132]


def test_semantic_of_a_broken_annotation(tmp_path: Path) -> None:
    folder = make_coco_panoptic(tmp_path)
    path = folder / "annotations/panoptic_val2017.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["segments_info"][0]["category_id"] = 12
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"000000000009\.png: unknown category ids \[12\]"):
        prepare_semantic(folder)
    (folder / "panoptic_val2017/000000000009.png").unlink()
    with pytest.raises(FileNotFoundError, match="panoptic_val2017; unpack"):
        prepare_semantic(folder)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"panoptic_val2017\.json; unpack"):
        prepare_semantic(folder)


def test_stuff(tmp_path: Path) -> None:
    folder = make_coco_stuff(tmp_path)
    prepare_stuff_10k(folder)
    name = "COCO_train2014_000000000009"
    labels = read_label_map(folder / f"annotations_detectron2/train/{name}.png")
    assert labels[0].tolist() == [255, 255, 0, 0, 170, 170, 170, 170]
    image = folder / f"images_detectron2/train/{name}.jpg"
    assert image.read_bytes() == (folder / f"images/{name}.jpg").read_bytes()
    prepare_stuff_10k(folder)  # again: nothing to do


def test_incomplete_stuff(tmp_path: Path) -> None:
    folder = make_coco_stuff(tmp_path)
    path = folder / "annotations/COCO_train2014_000000000009.mat"
    path.write_bytes(b"no matrix")
    with pytest.raises(DataError, match=r"000000000009\.mat: no MATLAB file"):
        prepare_stuff_10k(folder)
    path.unlink()
    with pytest.raises(DataError, match=r"annotations: lacks 1 files: COCO_train2014_000000000009; unpack"):
        prepare_stuff_10k(folder)
    (folder / "imageLists/train.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"train\.txt; unpack"):
        prepare_stuff_10k(folder)

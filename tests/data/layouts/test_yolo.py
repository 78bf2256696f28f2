"""Files as https://docs.ultralytics.com/datasets/segment/ describes them."""

from pathlib import Path

import numpy as np
import pytest

from mask2former.data.images import DataError
from mask2former.data.layouts import describe
from tests.helpers.pictures import masks_of, picture, square

SQUARE = "1 0.125 0.1666667 0.625 0.1666667 0.625 0.6666667 0.125 0.6666667\n"
"""In an image of 8x6: from (1, 1) to (5, 4), of class 1."""
NAMES = "names:\n  0: boat\n  1: buoy\n"


def write(
    root: Path, yaml: str = f"path: .\ntrain: images/train\nval: images/val\n{NAMES}", line: str = SQUARE
) -> None:
    """Two images to train on, one of which has no text file, and one to validate on."""
    for name in ("train/a", "train/b", "val/c"):
        picture(root / "images" / f"{name}.jpg")
    for name in ("train/a", "val/c"):
        (root / "labels" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "labels" / f"{name}.txt").write_text(line)
    if yaml:
        (root / "data.yaml").write_text(yaml)


@pytest.mark.parametrize("given", ["", "data.yaml"])
def test_data_yaml(tmp_path: Path, given: str) -> None:
    write(tmp_path)
    description = describe(tmp_path / given)
    assert (description.layout, description.task, list(description.classes)) == ("yolo", "instance", ["boat", "buoy"])
    a, b = description.load("train")
    assert b["annotations"] == []
    assert [item["category_id"] for item in a["annotations"]] == [1]
    np.testing.assert_array_equal(masks_of(a), square()[None])
    (c,) = description.load("val")
    np.testing.assert_array_equal(masks_of(c), square()[None])


def test_roboflow(tmp_path: Path) -> None:
    """As exported: `../train/images`, relative to nothing that is there, and a list of names."""
    for split in ("train", "valid", "test"):
        picture(tmp_path / split / "images" / "a.jpg")
        (tmp_path / split / "labels").mkdir()
        (tmp_path / split / "labels" / "a.txt").write_text(SQUARE)
    yaml = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\nnc: 2\nnames: ['boat', 'buoy']\n"
    (tmp_path / "data.yaml").write_text(yaml)
    description = describe(tmp_path)
    for split in ("train", "val", "test"):
        np.testing.assert_array_equal(masks_of(description.load(split)[0]), square()[None])


def test_lists_of_images(tmp_path: Path) -> None:
    write(tmp_path, f"train: train.txt\nval: val.txt\n{NAMES}")
    (tmp_path / "train.txt").write_text("./images/train/a.jpg\n")
    (tmp_path / "val.txt").write_text("./images/val/c.jpg\n./images/train/b.jpg\n")
    description = describe(tmp_path)
    np.testing.assert_array_equal(masks_of(description.load("train")[0]), square()[None])
    assert [len(record["annotations"]) for record in description.load("val")] == [1, 0]


def test_folders_without_a_yaml_file(tmp_path: Path) -> None:
    write(tmp_path, "")
    assert list(describe(tmp_path).classes) == ["class_0", "class_1"]
    (tmp_path / "classes.txt").write_text("boat\nbuoy\n")
    description = describe(tmp_path)
    assert list(description.classes) == ["boat", "buoy"]
    np.testing.assert_array_equal(masks_of(description.load("train")[0]), square()[None])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2 0 0 1 0 1 1\n", "class 2, of which the last is 1"),
        ("boat 0 0 1 0 1 1\n", "a class is a number from 0, not 'boat'"),
        (f"{SQUARE}1 0.1 0.1 0.5 0.5\n", "line 2: a box, no polygon: export the data for segmentation"),
        ("1 0.1 0.1\n", "a polygon of 1 points"),
        ("1 0.1 0.1 0.5\n", "a polygon of 1 points"),
        ("1 0.1 0.1 0.5 0.1 0.5 0.5 0.3\n", "a polygon of 7 numbers"),
        ("1 1 1 5 1 5 4 1 4\n", "corners outside of 0..1"),
        ("1 a b c d e f\n", "could not convert"),
        ("1 nan 0 1 0 1 1\n", "corners outside of 0..1"),
    ],
)
def test_wrong_lines(tmp_path: Path, line: str, message: str) -> None:
    write(tmp_path, line=line)
    with pytest.raises(DataError, match=rf"labels/train/a\.txt: line \d: .*{message}|line 2: .*{message}|{message}"):
        describe(tmp_path)


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        (f"train: images/nowhere\nval: images/val\n{NAMES}", "train: there is no folder or file images/nowhere"),
        ("train: images/train\nval: images/val\nnames: {0: a, 2: b}\n", "names gives the numbers 0, 2"),
        ("train: images/train\nval: images/val\nnames: []\n", "names is no list of classes"),
        (f"train: [images/train, images/val]\nval: images/val\n{NAMES}", "is not one folder"),
    ],
)
def test_wrong_yaml(tmp_path: Path, yaml: str, message: str) -> None:
    write(tmp_path, yaml)
    with pytest.raises(DataError, match=rf"data\.yaml: {message}|data\.yaml: .*{message}"):
        describe(tmp_path)


def test_missing_image(tmp_path: Path) -> None:
    write(tmp_path, f"train: train.txt\nval: images/val\n{NAMES}")
    (tmp_path / "train.txt").write_text("./images/train/x.jpg\n")
    with pytest.raises(DataError, match=r"train\.txt: there is no image .*x\.jpg"):
        describe(tmp_path)

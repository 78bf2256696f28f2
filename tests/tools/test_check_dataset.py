import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mask2former.data.datasets import register_coco_instances, register_semantic
from mask2former.data.datasets.ade20k import register_ade20k
from mask2former.data.prepare.ade20k import prepare_full, prepare_panoptic
from tests.helpers.catalog import registered_below
from tests.helpers.layouts import SIZE, make_ade20k, make_ade20k_full, save, save_image
from tools.check_dataset import main


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    folder = make_ade20k(tmp_path)
    prepare_panoptic(folder)
    with registered_below(tmp_path, register_ade20k):
        yield folder


def check(root: Path, name: str, *arguments: str) -> int:
    return main([name, "--output", str(root / "out"), "--workers", "1", *arguments])


@pytest.mark.parametrize("name", ["ade20k_sem_seg_val", "ade20k_instance_val", "ade20k_panoptic_val"])
def test_a_good_set(root: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(root, name) == 0
    output = capsys.readouterr().out
    assert "2 of 2 images read" in output
    assert "Nothing is wrong" in output
    with Image.open(root / "out" / f"{name}.png") as sheet:
        assert sheet.size[0] > 1600  # two pairs of image and annotation in a row


def test_statistics(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(root, "ade20k_panoptic_val", "--workers", "2")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["12", "person", "2", "4", "29.17"] in lines  # (12 + 2) of 48 pixels
    assert ["0", "wall", "2", "2", "37.50"] in lines
    assert any(line[:5] == ["148", "of", "150", "classes", "do"] for line in lines)


def test_limit_and_no_pictures(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(root, "ade20k_sem_seg_train", "--limit", "1", "--pictures", "0") == 0
    assert "1 of 2 images read" in capsys.readouterr().out
    assert not (root / "out").exists()


def test_sixteen_bits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare_full(make_ade20k_full(tmp_path))
    with registered_below(tmp_path, register_ade20k):
        assert check(tmp_path, "ade20k_full_sem_seg_val") == 0
    assert "846 of 847 classes do not occur" in capsys.readouterr().out


def rgb_label(root: Path) -> None:
    save_image(root / "annotations_detectron2/validation/ADE_val_00000001.png")


def high_label(root: Path) -> None:
    save(root / "annotations_detectron2/validation/ADE_val_00000001.png", np.full(SIZE, 150, np.uint8))


def other_size(root: Path) -> None:
    save(root / "annotations_detectron2/validation/ADE_val_00000001.png", np.zeros((3, 3), np.uint8))


def broken_image(root: Path) -> None:
    path = root / "images/validation/ADE_val_00000001.jpg"
    path.write_bytes(path.read_bytes()[:50])


def lost_segment(root: Path) -> None:
    save(root / "ade20k_panoptic_val/ADE_val_00000001.png", np.zeros((*SIZE, 3), np.uint8))


def lost_png(root: Path) -> None:
    (root / "ade20k_panoptic_val/ADE_val_00000001.png").unlink()


BAD: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "rgb label": (rgb_label, "ade20k_sem_seg_val", "ADE_val_00000001.png: a label map has one channel"),
    "label above": (high_label, "ade20k_sem_seg_val", "label 150 is neither a class (0..149) nor the ignore label 255"),
    "size": (other_size, "ade20k_sem_seg_val", "is 3x3 pixels (width x height), but"),
    "image": (broken_image, "ade20k_instance_val", "ADE_val_00000001.jpg: cannot be read as an image"),
    "lost segment": (lost_segment, "ade20k_panoptic_val", "segment ids of the annotation have no pixel"),
    "lost png": (lost_png, "ade20k_panoptic_val", "No such file"),
    "panoptic and its labels": (rgb_label, "ade20k_panoptic_val", "a label map has one channel"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_said(root: Path, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    spoil, name, message = BAD[case]
    spoil(root)
    assert check(root, name) == 1
    output = capsys.readouterr().out
    assert message in output
    assert "1 problems" in output


def test_all_problems_are_listed(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in (1, 2):
        save_image(root / f"annotations_detectron2/validation/ADE_val_{number:08d}.png")
        save(root / f"images/validation/ADE_val_{number:08d}.jpg", np.zeros((4, 4, 3), np.uint8))
    assert check(root, "ade20k_panoptic_val", "--problems", "3") == 1
    lines = capsys.readouterr().out.splitlines()
    # Of each image: its size against the JSON file, the panoptic PNG against it, and the label map's mode.
    assert len([line for line in lines if line.startswith("problem: ")]) == 3
    assert lines[-2:] == ["and 3 more", "6 problems"]


def test_masks_of_another_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_image(tmp_path / "a.jpg")
    annotation = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 2, 2]}
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": SIZE[0], "width": SIZE[1]}],
        "categories": [{"id": 1, "name": "x"}],
        "annotations": [
            {**annotation, "id": 1, "segmentation": [[0, 0, 2, 0, 2, 2]]},
            {**annotation, "id": 2, "segmentation": [[0, 0, 90, 0, 2, 2]]},
        ],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    with registered_below(tmp_path):
        register_coco_instances("own", image_root=tmp_path, json_file=tmp_path / "a.json")
        assert check(tmp_path, "own") == 1
    output = capsys.readouterr().out
    assert "a.jpg: the mask of its annotation 2 of 2 is not of its 8x6 pixels" in output
    assert "1 problem" in output


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0, 255), "the label maps hold 0 and 255 alone"),
        ((255, 255), "hold nothing but the ignore label 255"),
        ((1, 2), "Where 0 stands for nothing and classes count from 1, shift the labels down"),
        ((0, 1), "At most 2 objects in an image"),
    ],
)
def test_masks_that_are_no_label_maps(
    values: tuple[int, int], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        save_image(tmp_path / "images" / f"{name}.jpg")
        labels = np.full(SIZE, values[0], np.uint8)
        labels[2:] = values[1]
        save(tmp_path / "labels" / f"{name}.png", labels)
    with registered_below(tmp_path):
        roots = {"image_root": tmp_path / "images", "label_root": tmp_path / "labels"}
        register_semantic("masks", classes=["background", "crack"], **roots)
        assert check(tmp_path, "masks") == (0 if values == (0, 1) else 1)
    assert message in capsys.readouterr().out


def test_a_set_without_annotations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_image(tmp_path / "a.jpg")
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": SIZE[0], "width": SIZE[1]}],
        "categories": [{"id": 1, "name": "x"}],
        "annotations": [],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    with registered_below(tmp_path):
        register_coco_instances("empty", image_root=tmp_path, json_file=tmp_path / "a.json")
        assert check(tmp_path, "empty") == 1
    assert "problem: no image has an annotation" in capsys.readouterr().out


def test_a_set_that_cannot_be_loaded(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "annotations_detectron2/validation/ADE_val_00000001.png").unlink()
    assert check(root, "ade20k_sem_seg_val") == 1
    assert "ade20k_sem_seg_val: cannot be loaded: 1 of the 2 files" in capsys.readouterr().out


def test_unknown_name(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        check(root, "ade20k_semseg_val")
    assert "ade20k_sem_seg_val" in capsys.readouterr().err


def test_own_set_of_a_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_image(tmp_path / "images" / "a.jpg")
    save(tmp_path / "labels" / "a.png", np.zeros(SIZE, np.uint8))
    (tmp_path / "my_garden_data.py").write_text(
        "from mask2former import register_semantic\n"
        "register_semantic('garden', image_root='images', label_root='labels', classes=['grass'])\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with registered_below(tmp_path):
        assert check(tmp_path, "garden", "--import", "my_garden_data") == 0
    assert "grass" in capsys.readouterr().out


def test_a_test_set_has_no_statistics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_image(tmp_path / "a.jpg")
    with registered_below(tmp_path):
        register_semantic("unlabelled", image_root=tmp_path, label_root=None, classes=["a"])
        assert check(tmp_path, "unlabelled") == 0
    assert "No annotations" in capsys.readouterr().out
